//! Budgets shared by all shards: connections in all, per address and per user, handshakes a second.
//!
//! Pure counting: the socket layer keeps one behind a lock and asks at an upgrade. Rule: what was admitted is released exactly once.

use crate::{Millis, Refusal};

#[derive(Clone, Copy, Debug)]
pub struct Caps {
    pub connections_max: u64,
    /// 0 = no limit, here and below.
    pub per_address_max: u32,
    pub per_user_max: u32,
    pub handshakes_per_s: u32,
}

pub struct Limits {
    caps: Caps,
}

#[allow(unused_variables)]
impl Limits {
    pub fn new(caps: Caps) -> Self {
        Self { caps }
    }

    /// A socket was accepted from `address` (a keyed hash). Counts it, half-open ones included.
    pub fn connect(&mut self, address: u64) -> Result<(), Refusal> {
        Ok(())
    }

    pub fn disconnect(&mut self, address: u64) {}

    /// An upgrade wants one of the connections.
    pub fn admit(&mut self, now: Millis) -> Result<(), Refusal> {
        Ok(())
    }

    pub fn release(&mut self) {}

    pub fn admit_user(&mut self, user: u64) -> Result<(), Refusal> {
        Ok(())
    }

    pub fn release_user(&mut self, user: u64) {}
}
