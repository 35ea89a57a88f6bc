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

/// A UUID has 122 free bits: two halves of 61 for the permutation.
const HALF_BITS: u32 = 61;
const HALF: u64 = (1 << HALF_BITS) - 1;
/// Four rounds make a strong permutation of a good round function (Luby and Rackoff); two more are cheap.
const ROUNDS: u32 = 6;
/// Where RFC 9562 section 5.4 wants the version (4) and the variant (binary 10), counted from the lowest bit.
const VERSION_AT: u32 = 76;
const VARIANT_AT: u32 = 62;

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
        // 64 bits of id and 58 of zeros, which `conn` expects to find again
        let (mut left, mut right) = (conn.0 >> HALF_BITS, conn.0 & HALF);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.round(round, right));
        }
        let hex = format!("{:032x}", with_version(u128::from(left) << HALF_BITS | u128::from(right)));
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }

    /// The connection that `uuid` named; `None` when it comes from another run, another node or somebody's imagination.
    pub fn conn(&self, uuid: &str) -> Option<ConnId> {
        let bits = without_version(parse(uuid)?)?;
        let (mut left, mut right) = ((bits >> HALF_BITS) as u64, bits as u64 & HALF);
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ self.round(round, left), left);
        }
        (left < 1 << (u64::BITS - HALF_BITS)).then_some(ConnId(left << HALF_BITS | right))
    }

    fn round(&self, round: u32, half: u64) -> u64 {
        self.hasher.hash_one((round, half)) & HALF
    }
}

fn with_version(bits: u128) -> u128 {
    let low = bits & ((1 << VARIANT_AT) - 1);
    let middle = bits >> VARIANT_AT & 0xfff;
    let high = bits >> (VARIANT_AT + 12);
    high << (VERSION_AT + 4) | 4 << VERSION_AT | middle << (VARIANT_AT + 2) | 0b10 << VARIANT_AT | low
}

fn without_version(uuid: u128) -> Option<u128> {
    let low = uuid & ((1 << VARIANT_AT) - 1);
    let middle = uuid >> (VARIANT_AT + 2) & 0xfff;
    let bits = uuid >> (VERSION_AT + 4) << (VARIANT_AT + 12) | middle << VARIANT_AT | low;
    (with_version(bits) == uuid).then_some(bits)
}

fn parse(uuid: &str) -> Option<u128> {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    if uuid.len() != 36 {
        return None;
    }
    uuid.bytes().enumerate().try_fold(0, |value: u128, (at, byte)| match byte {
        b'-' if DASHES.contains(&at) => Some(value),
        _ if DASHES.contains(&at) => None,
        _ => Some(value << 4 | u128::from(char::from(byte).to_digit(16)?)),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_connection_is_found_again_by_its_uuid(number: u64) {
            let keys = Keys::new(RandomState::new());
            let uuid = keys.uuid(ConnId(number));
            prop_assert_eq!(keys.conn(&uuid), Some(ConnId(number)));
            prop_assert_eq!(keys.conn(&uuid.to_uppercase()), Some(ConnId(number)));
        }

        #[test]
        fn a_uuid_of_another_run_names_nobody(number: u64) {
            let uuid = Keys::new(RandomState::new()).uuid(ConnId(number));
            prop_assert_eq!(Keys::new(RandomState::new()).conn(&uuid), None);
        }

        #[test]
        fn no_text_is_too_odd_to_parse(text in "[0-9a-f-]{30,40}|\\PC{0,40}") {
            prop_assert_eq!(Keys::new(RandomState::new()).conn(&text), None);
        }
    }

    #[test]
    fn a_uuid_has_the_form_of_version_4() {
        let uuid = Keys::new(RandomState::new()).uuid(ConnId::new(5, 77, 3));
        let bytes = uuid.as_bytes();
        assert_eq!(uuid.len(), 36);
        assert_eq!(bytes[14], b'4');
        assert!(matches!(bytes[19], b'8' | b'9' | b'a' | b'b'), "{uuid}");
    }

    #[test]
    fn changing_any_character_loses_the_connection() {
        let keys = Keys::new(RandomState::new());
        let uuid = keys.uuid(ConnId::new(5, 77, 3));
        for at in 0..36 {
            let mut changed = uuid.clone().into_bytes();
            changed[at] = if changed[at] == b'7' { b'1' } else { b'7' };
            assert_eq!(keys.conn(std::str::from_utf8(&changed).unwrap()), None, "character {at}");
        }
    }

    #[test]
    fn neighbours_get_uuids_that_share_nothing() {
        let keys = Keys::new(RandomState::new());
        let heads: HashSet<String> = (0..1000).map(|slot| keys.uuid(ConnId::new(0, slot, 1))[..8].into()).collect();
        assert!(heads.len() >= 999);
    }
}
