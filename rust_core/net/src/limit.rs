//! What a shard takes from the limits that all shards share, and gives back.
//!
//! Rule: what was taken is in a [`Debt`] or a slot's `counted`, and is given back once, when that ends; so no path of a connection's
//! end can forget or repeat it. No lock is taken for a limit that is off.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tidegate_hub::{
    Keys, Millis, Refusal,
    limits::{Caps, Limits},
};

pub struct SharedLimits {
    caps: Caps,
    limits: Mutex<Limits>,
}

/// What a connection has taken besides its place among `connections_max`.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Debt {
    pub address: Option<u64>,
    pub user: Option<u64>,
}

impl SharedLimits {
    pub fn new(caps: Caps) -> Self {
        Self { caps, limits: Mutex::new(Limits::new(caps)) }
    }

    /// Counts a connection from `peer`.
    pub fn connect(&self, keys: &Keys, peer: IpAddr) -> Result<Option<Box<Debt>>, Refusal> {
        if self.caps.per_address_max == 0 {
            return Ok(None);
        }
        let address = keys.room(&network_of(peer).to_string());
        self.lock().connect(address)?;
        Ok(Some(Box::new(Debt { address: Some(address), user: None })))
    }

    /// Counts one of `connections_max` and one handshake.
    pub fn admit(&self, now: Millis) -> Result<(), Refusal> {
        self.lock().admit(now)
    }

    /// Counts a connection of `user`, once however often it is asked.
    pub fn admit_user(&self, user: u64, debt: &mut Option<Box<Debt>>) -> Result<(), Refusal> {
        if self.caps.per_user_max == 0 || debt.as_ref().is_some_and(|debt| debt.user.is_some()) {
            return Ok(());
        }
        self.lock().admit_user(user)?;
        debt.get_or_insert_default().user = Some(user);
        Ok(())
    }

    /// Counts a connection that is to be `user`'s; the caller sees to it that `take_over` follows.
    pub fn claim_user(&self, user: u64) -> bool {
        self.caps.per_user_max == 0 || self.lock().admit_user(user).is_ok()
    }

    /// What was claimed belongs to a connection now, and who was on it before has one less. Without a connection it is given back.
    pub fn take_over(&self, user: u64, debt: Option<&mut Option<Box<Debt>>>) {
        if self.caps.per_user_max == 0 {
            return;
        }
        let before = match debt {
            Some(debt) => debt.get_or_insert_default().user.replace(user),
            None => Some(user),
        };
        before.into_iter().for_each(|user| self.lock().release_user(user));
    }

    pub fn give_back(&self, counted: bool, debt: Option<Box<Debt>>) {
        if !counted && debt.is_none() {
            return;
        }
        let mut limits = self.lock();
        if counted {
            limits.release();
        }
        let debt = debt.map(|debt| *debt).unwrap_or_default();
        if let Some(address) = debt.address {
            limits.disconnect(address);
        }
        if let Some(user) = debt.user {
            limits.release_user(user);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever has an IPv6 address has 2^64 of them: the network is what counts as one address (RFC 6177).
fn network_of(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }

    #[test]
    fn a_limit_that_is_off_costs_no_memory() {
        let limits =
            SharedLimits::new(Caps { connections_max: 1, per_address_max: 0, per_user_max: 0, handshakes_per_s: 0 });
        let keys = Keys::new(RandomState::new());
        let mut debt = limits.connect(&keys, [127, 0, 0, 1].into()).unwrap();
        limits.admit_user(7, &mut debt).unwrap();
        assert_eq!(debt, None);
    }

    #[test]
    fn who_is_on_a_connection_may_become_known_later_and_change() {
        let limits =
            SharedLimits::new(Caps { connections_max: 9, per_address_max: 0, per_user_max: 1, handshakes_per_s: 0 });
        let mut debt = None;
        assert!(limits.claim_user(7) && !limits.claim_user(7));
        limits.take_over(7, Some(&mut debt));
        assert!(limits.claim_user(8));
        limits.take_over(8, Some(&mut debt));
        assert!(limits.claim_user(7), "7 is on no connection any more");
        limits.take_over(7, None);
        limits.give_back(false, debt);
        assert!(limits.claim_user(7) && limits.claim_user(8), "nobody is on any");
    }

    #[test]
    fn what_was_taken_is_given_back_once() {
        let limits =
            SharedLimits::new(Caps { connections_max: 9, per_address_max: 1, per_user_max: 1, handshakes_per_s: 0 });
        let keys = Keys::new(RandomState::new());
        let peer = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..3 {
            let mut debt = limits.connect(&keys, peer).unwrap();
            limits.admit_user(7, &mut debt).unwrap();
            limits.admit_user(7, &mut debt).expect("a second answer to one connection does not count");
            assert_eq!(limits.connect(&keys, peer), Err(Refusal::Address));
            assert_eq!(limits.admit_user(7, &mut None), Err(Refusal::User));
            limits.give_back(false, debt);
        }
    }
}
