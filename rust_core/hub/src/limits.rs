//! Budgets shared by all shards: connections in all, per address and per user, handshakes a second.
//!
//! Pure counting: the socket layer keeps one behind a lock and asks at an upgrade. Rule: what was admitted is released exactly once.

use std::collections::{HashMap, hash_map::Entry};

use crate::{
    Millis, Refusal,
    bucket::{Bucket, WHOLE},
};

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
    connections: u64,
    handshakes: Bucket,
    addresses: Counts,
    users: Counts,
}

impl Limits {
    pub fn new(caps: Caps) -> Self {
        Self {
            connections: 0,
            handshakes: Bucket::default(),
            addresses: Counts::new(caps.per_address_max),
            users: Counts::new(caps.per_user_max),
            caps,
        }
    }

    /// A socket was accepted from `address` (a keyed hash). Counts it, half-open ones included.
    pub fn connect(&mut self, address: u64) -> Result<(), Refusal> {
        self.addresses.add(address).ok_or(Refusal::Address)
    }

    pub fn disconnect(&mut self, address: u64) {
        self.addresses.remove(address);
    }

    /// An upgrade wants one of the connections.
    pub fn admit(&mut self, now: Millis) -> Result<(), Refusal> {
        if self.connections >= self.caps.connections_max {
            return Err(Refusal::Connections);
        }
        // a burst as large as one second's budget: a second without handshakes is not lost
        let rate = self.caps.handshakes_per_s;
        if !self.handshakes.take(now, rate, rate, WHOLE) {
            return Err(Refusal::HandshakeRate);
        }
        self.connections += 1;
        Ok(())
    }

    pub fn release(&mut self) {
        debug_assert!(self.connections > 0, "released more than was admitted");
        self.connections = self.connections.saturating_sub(1);
    }

    pub fn admit_user(&mut self, user: u64) -> Result<(), Refusal> {
        self.users.add(user).ok_or(Refusal::User)
    }

    pub fn release_user(&mut self, user: u64) {
        self.users.remove(user);
    }
}

/// How often each key is held. A key held by nobody costs nothing.
struct Counts {
    counts: HashMap<u64, u32>,
    /// 0 = no limit, and then nothing is counted.
    max: u32,
}

impl Counts {
    fn new(max: u32) -> Self {
        Self { counts: HashMap::new(), max }
    }

    /// `None`, and nothing counted, when the key is at its limit.
    fn add(&mut self, key: u64) -> Option<()> {
        if self.max == 0 {
            return Some(());
        }
        let count = self.counts.entry(key).or_insert(0);
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(())
    }

    fn remove(&mut self, key: u64) {
        if let Entry::Occupied(mut entry) = self.counts.entry(key) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections_max: u64, per_address_max: u32, per_user_max: u32, handshakes_per_s: u32) -> Limits {
        Limits::new(Caps { connections_max, per_address_max, per_user_max, handshakes_per_s })
    }

    #[test]
    fn exactly_the_allowed_number_is_admitted() {
        let mut limits = limits(3, 0, 0, 0);
        assert_eq!((0..10).filter(|_| limits.admit(0).is_ok()).count(), 3);
        assert_eq!(limits.admit(0), Err(Refusal::Connections));
        limits.release();
        assert_eq!(limits.admit(0), Ok(()));
    }

    #[test]
    fn each_address_and_each_user_has_its_own_budget() {
        let mut limits = limits(100, 2, 1, 0);
        assert_eq!([limits.connect(1), limits.connect(1), limits.connect(1)], [Ok(()), Ok(()), Err(Refusal::Address)]);
        assert_eq!(limits.connect(2), Ok(()));
        assert_eq!([limits.admit_user(9), limits.admit_user(9)], [Ok(()), Err(Refusal::User)]);
        limits.disconnect(1);
        limits.release_user(9);
        assert_eq!((limits.connect(1), limits.admit_user(9)), (Ok(()), Ok(())));
    }

    #[test]
    fn keys_that_nobody_holds_are_forgotten() {
        let mut limits = limits(100, 5, 5, 0);
        for key in 0..1000 {
            limits.connect(key).unwrap();
            limits.admit_user(key).unwrap();
            limits.disconnect(key);
            limits.release_user(key);
        }
        assert!(limits.addresses.counts.is_empty() && limits.users.counts.is_empty());
    }

    #[test]
    fn a_full_house_costs_no_handshake_budget() {
        let mut limits = limits(1, 0, 0, 2);
        assert_eq!(limits.admit(0), Ok(()));
        assert_eq!((0..50).filter(|_| limits.admit(0) == Err(Refusal::Connections)).count(), 50);
        limits.release();
        assert_eq!(limits.admit(0), Ok(()));
        limits.release();
        assert_eq!(limits.admit(0), Err(Refusal::HandshakeRate));
        assert_eq!(limits.admit(1000), Ok(()));
    }
}
