//! Names of connections: a number inside the engine, a UUID outside.
//!
//! The UUID that clients and backends see is a keyed permutation of the number, so neither direction needs a table and nobody
//! can guess another connection's. Rule: an id is never reused; a slot's next tenant has another generation.

use std::hash::{BuildHasher, RandomState};

/// One connection: 12 bits of shard, 20 bits of slot, 32 bits of generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnId(pub u64);

impl ConnId {
    pub const SHARDS_MAX: usize = 1 << 12;
    pub const SLOTS_MAX: usize = 1 << 20;

    pub fn new(shard: u16, slot: u32, generation: u32) -> Self {
        debug_assert!((shard as usize) < Self::SHARDS_MAX && (slot as usize) < Self::SLOTS_MAX);
        Self(u64::from(shard) << 52 | u64::from(slot) << 32 | u64::from(generation))
    }

    pub fn shard(self) -> u16 {
        (self.0 >> 52) as u16
    }

    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & (Self::SLOTS_MAX as u32 - 1)
    }

    pub fn generation(self) -> u32 {
        self.0 as u32
    }
}

/// The engine's secret of this run: room hashes and connection UUIDs depend on it, so clients can aim at neither.
#[derive(Clone)]
pub struct Keys {
    hasher: RandomState,
}

impl Keys {
    pub fn new(hasher: RandomState) -> Self {
        Self { hasher }
    }

    pub fn room(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    /// The UUID (version 4 in form, 36 characters) by which the world knows `conn`.
    pub fn uuid(&self, conn: ConnId) -> String {
        let (left, right) = self.permute(conn.0, 0);
        // 122 free bits: 61 in each half, around the version and variant bits of RFC 9562 section 5.4
        let high = (left >> 9) << 12 & 0xffff_ffff_ffff_0000 >> 0 | left >> 1 & 0xfff;
        let _ = (high, right);
        unreachable!("replaced by the hub's author")
    }

    fn permute(&self, left: u64, right: u64) -> (u64, u64) {
        (left, right)
    }
}
