//! Connections by number.
//!
//! Rule: an id names one connection for ever. A slot's next tenant has another generation, and a slot whose generations are used
//! up is never let again, so an id that somebody still holds can only miss.

use crate::{chunked::Chunked, connection::Connection, id::ConnId};

struct Slot {
    generation: u32,
    tenant: Option<Connection>,
}

pub(crate) struct Slab {
    slots: Chunked<Slot>,
    /// Last freed first: its memory is still in the cache.
    free: Vec<u32>,
    shard: u16,
    slots_max: usize,
    live: usize,
}

impl Slab {
    pub fn new(shard: u16, slots_max: usize) -> Self {
        let slots_max = slots_max.min(ConnId::SLOTS_MAX);
        Self { slots: Chunked::new(), free: Vec::new(), shard, slots_max, live: 0 }
    }

    /// `None` when all slots are taken.
    pub fn insert(&mut self, connection: Connection) -> Option<ConnId> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < self.slots_max => self.slots.push(Slot { generation: 1, tenant: None }) as u32,
            None => return None,
        };
        self.slots[slot as usize].tenant = Some(connection);
        self.live += 1;
        self.id_at(slot)
    }

    pub fn remove(&mut self, slot: u32) -> Option<Connection> {
        let entry = self.slots.get_mut(slot as usize)?;
        let tenant = entry.tenant.take()?;
        self.live -= 1;
        entry.generation = entry.generation.wrapping_add(1);
        if entry.generation != 0 {
            self.free.push(slot);
        }
        Some(tenant)
    }

    /// The slot of a connection that still exists.
    pub fn find(&self, id: ConnId) -> Option<u32> {
        (self.id_at(id.slot()) == Some(id)).then(|| id.slot())
    }

    pub fn at(&self, slot: u32) -> Option<&Connection> {
        self.slots.get(slot as usize)?.tenant.as_ref()
    }

    pub fn at_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.tenant.as_mut()
    }

    pub fn id_at(&self, slot: u32) -> Option<ConnId> {
        let entry = self.slots.get(slot as usize)?;
        entry.tenant.as_ref().map(|_| ConnId::new(self.shard, slot, entry.generation))
    }

    /// How many connections exist.
    pub fn live(&self) -> usize {
        self.live
    }

    /// One more than the highest slot ever used.
    pub fn end(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Connection)> {
        (0u32..).zip(self.slots.iter()).filter_map(|(slot, entry)| Some((slot, entry.tenant.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slab(slots_max: usize) -> Slab {
        Slab::new(3, slots_max)
    }

    #[test]
    fn a_stale_id_never_hits_the_next_tenant_of_its_slot() {
        let mut slab = slab(4);
        let first = slab.insert(Connection::default()).unwrap();
        slab.remove(first.slot()).unwrap();
        let second = slab.insert(Connection::default()).unwrap();
        assert_eq!(first.slot(), second.slot());
        assert_eq!(slab.find(first), None);
        assert_eq!(slab.find(second), Some(second.slot()));
    }

    #[test]
    fn a_full_slab_takes_no_more_until_a_slot_is_freed() {
        let mut slab = slab(2);
        let first = slab.insert(Connection::default()).unwrap();
        slab.insert(Connection::default()).unwrap();
        assert_eq!(slab.insert(Connection::default()), None);
        slab.remove(first.slot()).unwrap();
        assert!(slab.insert(Connection::default()).is_some());
        assert_eq!(slab.live(), 2);
    }

    #[test]
    fn a_slot_whose_generations_are_used_up_is_retired() {
        let mut slab = slab(2);
        let id = slab.insert(Connection::default()).unwrap();
        slab.slots[id.slot() as usize].generation = u32::MAX;
        slab.remove(id.slot()).unwrap();
        let next = slab.insert(Connection::default()).unwrap();
        assert_ne!(next.slot(), id.slot());
        assert_eq!(slab.insert(Connection::default()), None);
    }

    #[test]
    fn an_id_of_another_shard_is_not_found() {
        let mut slab = slab(2);
        let id = slab.insert(Connection::default()).unwrap();
        assert_eq!(slab.find(ConnId::new(4, id.slot(), id.generation())), None);
    }

    #[test]
    fn a_slot_costs_at_most_80_bytes() {
        assert!(size_of::<Slot>() <= 80, "{}", size_of::<Slot>());
    }
}
