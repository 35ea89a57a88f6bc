//! Joining and leaving rooms.
//!
//! Rule: a member gets exactly what was published while it was one, even if a fan-out reaches it only later: who joins is marked to miss what
//! was published before, and who leaves takes along what it has not seen yet.

use crate::{ConnId, Effect, Hub, Millis, Refusal, rooms::Left};

impl Hub {
    /// Whatever becomes of it, the directory hears of it once.
    pub(crate) fn join(&mut self, conn: ConnId, room: &str, now: Millis) {
        let hash = self.keys.room(room);
        let too_many = self.find_open(conn).filter(|&slot| !self.join_room(slot, hash, room));
        self.effects.push_back(Effect::Joined { hash });
        if let Some(slot) = too_many {
            self.begin_close(slot, 1008, "too many rooms", Some(Refusal::Rooms), now);
        }
    }

    /// `false` when some were too many.
    pub(crate) fn join_all(&mut self, slot: u32, rooms: &[Box<str>]) -> bool {
        let mut within_limit = true;
        for room in rooms {
            let hash = self.keys.room(room);
            within_limit &= self.join_room(slot, hash, room);
            self.effects.push_back(Effect::Joined { hash });
        }
        within_limit
    }

    pub(crate) fn drop_joins(&mut self, rooms: &[Box<str>]) {
        let Self { effects, keys, .. } = self;
        effects.extend(rooms.iter().map(|room| Effect::Joined { hash: keys.room(room) }));
    }

    pub(crate) fn leave(&mut self, slot: u32, room: &str, now: Millis) {
        let Some(number) = self.rooms.find(self.keys.room(room), room) else {
            return;
        };
        let Some(at) = self.slab.at(slot).and_then(|client| client.rooms.iter().position(|&joined| joined == number))
        else {
            return;
        };
        self.catch_up(slot, number, now);
        // catching up may have ended its membership everywhere
        if let Some(client) = self.slab.at_mut(slot)
            && client.rooms.get(at) == Some(&number)
        {
            client.rooms.remove(at);
            self.leave_room(slot, number);
        }
    }

    /// Gives a member, before it goes, what was published to its rooms and has not reached it.
    pub(crate) fn catch_up_all(&mut self, slot: u32, now: Millis) {
        if self.fanout.is_idle() {
            return;
        }
        let rooms = self.slab.at(slot).map(|client| client.rooms.clone()).unwrap_or_default();
        for &number in rooms.iter() {
            self.catch_up(slot, number, now);
        }
    }

    pub(crate) fn leave_all(&mut self, slot: u32) {
        let rooms = self.slab.at_mut(slot).map(|client| std::mem::take(&mut client.rooms));
        for &number in rooms.unwrap_or_default().iter() {
            self.leave_room(slot, number);
        }
    }

    fn catch_up(&mut self, slot: u32, number: u32, now: Millis) {
        let job = self.rooms.get(number).and_then(|room| room.members.job());
        let unseen = job.map(|job| self.fanout.unseen(job, slot)).unwrap_or_default();
        if !unseen.is_empty() {
            self.deliver(slot, &unseen, now);
        }
    }

    /// `false` when the connection is in as many rooms as it may be.
    fn join_room(&mut self, slot: u32, hash: u64, name: &str) -> bool {
        let Some(client) = self.slab.at_mut(slot) else {
            return true;
        };
        if self.rooms.find(hash, name).is_some_and(|number| client.rooms.contains(&number)) {
            return true;
        }
        if client.rooms.len() >= self.settings.rooms_max {
            return false;
        }
        let joined = self.rooms.join(hash, name, slot);
        client.rooms.push(joined.room);
        self.stats.memberships_now += 1;
        self.stats.rooms_now = self.rooms.len() as u64;
        if joined.opened {
            self.effects.push_back(Effect::RoomOpened { hash });
        }
        if let Some(job) = self.rooms.get(joined.room).and_then(|room| room.members.job()) {
            self.fanout.skip_pending(job, slot);
        }
        true
    }

    fn leave_room(&mut self, slot: u32, number: u32) {
        let left = self.rooms.leave(number, slot);
        if left == Left::NoMember {
            return;
        }
        self.stats.memberships_now -= 1;
        self.stats.rooms_now = self.rooms.len() as u64;
        if let Left::Emptied { hash, job } = left {
            self.effects.extend(hash.map(|hash| Effect::RoomEmptied { hash }));
            if let Some(job) = job.and_then(|job| self.fanout.cancel(job)) {
                self.stats.backlog_bytes_now -= job.bytes() as u64;
            }
        }
    }
}
