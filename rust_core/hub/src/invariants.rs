//! What must hold between any two calls, checked by the tests and the fuzzer.

use std::collections::HashSet;

use crate::{Hub, connection::State};

impl Hub {
    /// Panics when the state contradicts itself. Takes time in proportion to everything there is.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        self.check_membership();
        self.check_connections();
        self.check_fanout();
    }

    /// Memory an idle connection should not own: true when this one owns any.
    #[doc(hidden)]
    pub fn owns_buffers(&self, conn: crate::ConnId) -> bool {
        let client = self.slab.find(conn).and_then(|slot| self.slab.at(slot));
        client.is_some_and(|client| client.outbox.is_some() || client.unfinished.is_some())
    }

    fn check_membership(&self) {
        let mut memberships = 0;
        for (slot, client) in self.slab.iter() {
            let rooms: HashSet<u32> = client.rooms.iter().copied().collect();
            assert_eq!(rooms.len(), client.rooms.len(), "slot {slot} is in a room twice");
            assert!(client.state == State::Open || rooms.is_empty(), "slot {slot} is in rooms and not open");
            for number in rooms {
                let room = self.rooms.get(number).expect("a member's room exists");
                assert!(room.members.contains(slot), "room {number} does not know its member {slot}");
            }
            memberships += client.rooms.len();
        }
        let members: usize = self.rooms.iter().map(|(_, room)| room.members.len()).sum();
        assert_eq!(members, memberships, "members without a connection");
        assert_eq!(self.stats.memberships_now, memberships as u64);
        for (number, room) in self.rooms.iter() {
            assert!(room.members.len() > 0, "room {number} is empty");
            assert_eq!(self.rooms.find(room.hash, &room.name), Some(number), "room {number} is not found by its name");
        }
        assert_eq!(self.stats.rooms_now, self.rooms.iter().count() as u64);
        assert_eq!(self.rooms.len(), self.rooms.iter().count());
    }

    fn check_connections(&self) {
        let (mut owed, mut admitted, mut deflating) = (0, 0, 0);
        let queued: HashSet<u32> = self.dirty.iter().copied().collect();
        for (slot, client) in self.slab.iter() {
            if let Some(outbox) = &client.outbox {
                assert!(outbox.bytes() > 0, "slot {slot} has an outbox and owes nothing");
                assert_eq!(outbox.bytes(), outbox.sum(), "slot {slot} miscounts what it owes");
                assert!(client.blocked || client.dirty, "slot {slot} owes bytes and nobody will write them");
                owed += outbox.bytes();
            }
            assert!(!client.dirty || queued.contains(&slot), "slot {slot} is dirty and not queued");
            let in_handshake = matches!(client.state, State::Head | State::Deciding);
            assert_eq!(client.handshake().is_some(), in_handshake, "slot {slot}: handshake and state disagree");
            let (due, _) = client.deadline(&self.settings);
            let armed = self.timers.deadline(slot).expect("every connection has a deadline");
            assert!(crate::timers::is_due(armed, due), "slot {slot}: armed for {armed}, due at {due}");
            admitted += u64::from(client.state.is_admitted());
            deflating += u64::from(client.is_deflating());
        }
        assert_eq!(self.slab.iter().count(), self.slab.live());
        assert_eq!(self.stats.outbox_bytes_now, owed as u64);
        assert_eq!((self.stats.connections_now, self.stats.deflate_now), (admitted, deflating));
        assert_eq!(self.stats.handshakes_now, self.slab.live() as u64 - admitted);
    }

    fn check_fanout(&self) {
        assert_eq!(self.stats.backlog_bytes_now, self.fanout.bytes() as u64);
        let running = self.rooms.iter().filter_map(|(number, room)| Some((number, room.members.job()?)));
        let mut jobs = 0;
        for (number, job) in running {
            assert_eq!(self.fanout.room_of(job), Some(number), "room {number} waits for a job that is not its own");
            jobs += 1;
        }
        assert_eq!(self.fanout.is_idle(), jobs == 0, "a job without a room");
    }
}
