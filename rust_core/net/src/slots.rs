//! The sockets of a shard's connections, by the slot number that the hub gave each.
//!
//! Rule: a connection is found by its whole id, so an event meant for a slot's last tenant never reaches the next. An entry is
//! kept small, because there may be a million: what only some connections have is boxed.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use tidegate_hub::ConnId;

use crate::{limit::Debt, tls::Tls};

#[derive(Default)]
pub struct Slots(Vec<Option<Slot>>);

pub struct Slot {
    pub socket: OwnedFd,
    generation: u32,
    pub tls: Option<Box<Tls>>,
    /// What was taken from the shared limits; `None` while those are off.
    pub debt: Option<Box<Debt>>,
    /// It is one of `connections_max`.
    pub counted: bool,
    /// Waits in the shard's queue of sockets to read from.
    pub queued: bool,
    /// The application has enough of what it sent: the rest waits in the socket.
    pub held: bool,
    /// The peer sends no more: only reading to the end shows it.
    pub ended: bool,
    /// The socket took less than offered: an edge will tell when it takes more.
    pub blocked: bool,
    /// Its real address has too many connections: refused as soon as it asks for something.
    pub unwelcome: bool,
    /// A PROXY header in plain text is still to come before TLS.
    pub proxied: bool,
}

impl Slot {
    pub fn new(conn: ConnId, socket: OwnedFd) -> Self {
        Self {
            socket,
            generation: conn.generation(),
            tls: None,
            debt: None,
            counted: false,
            queued: false,
            held: false,
            ended: false,
            blocked: false,
            unwelcome: false,
            proxied: false,
        }
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Slots {
    pub fn insert(&mut self, conn: ConnId, slot: Slot) {
        let at = conn.slot() as usize;
        if self.0.len() <= at {
            self.0.resize_with(at + 1, || None);
        }
        self.0[at] = Some(slot);
    }

    pub fn get(&mut self, conn: ConnId) -> Option<&mut Slot> {
        self.0.get_mut(conn.slot() as usize)?.as_mut().filter(|slot| slot.generation == conn.generation())
    }

    pub fn remove(&mut self, conn: ConnId) -> Option<Slot> {
        self.get(conn)?;
        self.0[conn.slot() as usize].take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fds::eventfd;

    #[test]
    fn a_stale_id_never_reaches_the_next_tenant() {
        let mut slots = Slots::default();
        let (old, new) = (ConnId::new(0, 5, 1), ConnId::new(0, 5, 2));
        slots.insert(new, Slot::new(new, eventfd().unwrap()));
        assert!(slots.get(old).is_none() && slots.remove(old).is_none());
        assert!(slots.get(new).is_some() && slots.remove(new).is_some());
        assert!(slots.get(new).is_none() && slots.get(ConnId::new(0, 900, 1)).is_none());
    }

    #[test]
    fn a_slot_costs_at_most_32_bytes() {
        assert!(size_of::<Option<Slot>>() <= 32);
    }
}
