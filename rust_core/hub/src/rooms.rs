//! Rooms by name, and who is in them.
//!
//! Rule: a room exists exactly while it has a member. Its number is let again afterwards, so nobody but a member and a running
//! fan-out may keep it.

use hashbrown::HashTable;

use crate::{chunked::Chunked, fanout::JobId, members::Members};

pub(crate) struct Room {
    pub name: Box<str>,
    pub hash: u64,
    pub members: Members,
}

/// What a leave did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    NoMember,
    /// Others are still there.
    Others,
    /// The room is gone. `hash` is given when no other room here has it; `job` must be cancelled.
    Emptied {
        hash: Option<u64>,
        job: Option<JobId>,
    },
}

/// What a join did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub room: u32,
    /// It was no member before.
    pub new: bool,
    /// The first room of this hash here.
    pub opened: bool,
}

pub(crate) struct Rooms {
    /// Room numbers under the keyed hash of the room's name.
    table: HashTable<u32>,
    rooms: Chunked<Option<Room>>,
    free: Vec<u32>,
}

impl Rooms {
    pub fn new() -> Self {
        Self { table: HashTable::new(), rooms: Chunked::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.table.len()
    }

    pub fn find(&self, hash: u64, name: &str) -> Option<u32> {
        self.table.find(hash, |&room| self.get(room).is_some_and(|room| &*room.name == name)).copied()
    }

    pub fn get(&self, room: u32) -> Option<&Room> {
        self.rooms.get(room as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, room: u32) -> Option<&mut Room> {
        self.rooms.get_mut(room as usize)?.as_mut()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Room)> {
        (0u32..).zip(self.rooms.iter()).filter_map(|(number, room)| Some((number, room.as_ref()?)))
    }

    pub fn join(&mut self, hash: u64, name: &str, slot: u32) -> Joined {
        let (number, opened) = match self.find(hash, name) {
            Some(number) => (number, false),
            None => self.open(hash, name),
        };
        let new = self.rooms[number as usize].as_mut().is_some_and(|room| room.members.insert(slot));
        Joined { room: number, new, opened }
    }

    pub fn leave(&mut self, number: u32, slot: u32) -> Left {
        let Some(room) = self.get_mut(number) else {
            return Left::NoMember;
        };
        if !room.members.remove(slot) {
            return Left::NoMember;
        }
        if room.members.len() > 0 {
            return Left::Others;
        }
        self.close(number)
    }

    fn open(&mut self, hash: u64, name: &str) -> (u32, bool) {
        let opened = !self.holds(hash);
        let room = Some(Room { name: name.into(), hash, members: Members::new() });
        let number = match self.free.pop() {
            Some(number) => {
                self.rooms[number as usize] = room;
                number
            }
            None => self.rooms.push(room) as u32,
        };
        let rooms = &self.rooms;
        self.table.insert_unique(hash, number, |&other| hash_of(rooms, other));
        (number, opened)
    }

    fn close(&mut self, number: u32) -> Left {
        let Some(room) = self.rooms[number as usize].take() else {
            return Left::NoMember;
        };
        if let Ok(entry) = self.table.find_entry(room.hash, |&other| other == number) {
            entry.remove();
        }
        self.free.push(number);
        let rooms = &self.rooms;
        // a storm that has passed must not keep its table
        if self.table.capacity() > 64 && self.table.len() < self.table.capacity() / 8 {
            self.table.shrink_to(self.table.len() * 2, |&other| hash_of(rooms, other));
        }
        Left::Emptied { hash: (!self.holds(room.hash)).then_some(room.hash), job: room.members.job() }
    }

    /// Whether any room has this hash; two names of one hash are rare and harmless.
    fn holds(&self, hash: u64) -> bool {
        self.table.iter_hash(hash).any(|&room| self.get(room).is_some_and(|room| room.hash == hash))
    }
}

fn hash_of(rooms: &Chunked<Option<Room>>, number: u32) -> u64 {
    rooms[number as usize].as_ref().map_or(0, |room| room.hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_member_opens_a_room_and_the_last_one_ends_it() {
        let mut rooms = Rooms::new();
        let first = rooms.join(7, "a", 1);
        assert_eq!(first, Joined { room: 0, new: true, opened: true });
        assert_eq!(rooms.join(7, "a", 2), Joined { room: 0, new: true, opened: false });
        assert_eq!(rooms.join(7, "a", 2), Joined { room: 0, new: false, opened: false });
        assert_eq!(rooms.leave(0, 3), Left::NoMember);
        assert_eq!(rooms.leave(0, 1), Left::Others);
        assert_eq!(rooms.leave(0, 2), Left::Emptied { hash: Some(7), job: None });
        assert_eq!((rooms.len(), rooms.find(7, "a")), (0, None));
    }

    #[test]
    fn rooms_that_share_a_hash_are_told_apart_and_announced_once() {
        let mut rooms = Rooms::new();
        let a = rooms.join(7, "a", 1);
        let b = rooms.join(7, "b", 1);
        assert_ne!(a.room, b.room);
        assert!(a.opened && !b.opened);
        assert_eq!(rooms.leave(a.room, 1), Left::Emptied { hash: None, job: None });
        assert_eq!(rooms.leave(b.room, 1), Left::Emptied { hash: Some(7), job: None });
    }

    #[test]
    fn numbers_of_rooms_that_ended_are_let_again() {
        let mut rooms = Rooms::new();
        for round in 0..1000u64 {
            let room = rooms.join(round, "room", 1).room;
            assert_eq!(room, 0);
            rooms.leave(room, 1);
        }
        assert_eq!(rooms.rooms.len(), 1);
    }

    #[test]
    fn the_table_shrinks_after_a_storm() {
        let mut rooms = Rooms::new();
        for slot in 0..10_000 {
            rooms.join(u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15), &slot.to_string(), slot);
        }
        (0..10_000).for_each(|room| assert_ne!(rooms.leave(room, room), Left::NoMember));
        assert!(rooms.table.capacity() <= 64, "{}", rooms.table.capacity());
    }

    #[test]
    fn a_room_costs_at_most_40_bytes_and_its_name() {
        assert!(size_of::<Option<Room>>() <= 40, "{}", size_of::<Option<Room>>());
    }
}
