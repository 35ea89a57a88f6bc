//! Who is in one room: a single slot, a few, or a bitmap.
//!
//! Most rooms of a gateway hold one connection (a user's own room), some hold everybody. Rule: in every form the members come in
//! ascending order of their slots, so that a fan-out can stop anywhere and go on while members come and go.

use roaring::RoaringBitmap;

/// Beyond this a bitmap is smaller and quicker than a list.
pub(crate) const FEW_MAX: usize = 32;
/// A bitmap becomes a list again well below that, or a member who comes and goes would convert it each time.
const FEW_AGAIN: u64 = 16;

#[derive(Debug)]
pub(crate) enum Members {
    One(u32),
    /// Sorted; none only before the first and after the last member.
    Few(Vec<u32>),
    Many(Box<RoaringBitmap>),
}

impl Members {
    pub fn new() -> Self {
        Members::Few(Vec::new())
    }

    /// `false` when it was a member before.
    pub fn insert(&mut self, slot: u32) -> bool {
        match self {
            Members::One(only) if *only == slot => false,
            Members::One(only) => {
                *self = Members::Few(vec![slot.min(*only), slot.max(*only)]);
                true
            }
            Members::Few(list) if list.is_empty() => {
                *self = Members::One(slot);
                true
            }
            Members::Few(list) => {
                let Err(at) = list.binary_search(&slot) else {
                    return false;
                };
                list.insert(at, slot);
                if list.len() > FEW_MAX {
                    *self = Members::Many(Box::new(list.iter().copied().collect()));
                }
                true
            }
            Members::Many(bitmap) => bitmap.insert(slot),
        }
    }

    /// `false` when it was none.
    pub fn remove(&mut self, slot: u32) -> bool {
        match self {
            Members::One(only) => {
                let found = *only == slot;
                if found {
                    *self = Members::new();
                }
                found
            }
            Members::Few(list) => {
                let Ok(at) = list.binary_search(&slot) else {
                    return false;
                };
                list.remove(at);
                if let [only] = list[..] {
                    *self = Members::One(only);
                }
                true
            }
            Members::Many(bitmap) => {
                let found = bitmap.remove(slot);
                if found && bitmap.len() <= FEW_AGAIN {
                    *self = Members::Few(bitmap.iter().collect());
                }
                found
            }
        }
    }

    pub fn contains(&self, slot: u32) -> bool {
        match self {
            Members::One(only) => *only == slot,
            Members::Few(list) => list.binary_search(&slot).is_ok(),
            Members::Many(bitmap) => bitmap.contains(slot),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Members::One(_) => 1,
            Members::Few(list) => list.len(),
            Members::Many(bitmap) => bitmap.len() as usize,
        }
    }

    pub fn is_many(&self) -> bool {
        matches!(self, Members::Many(_))
    }

    /// Appends up to `limit` members from slot `start` on.
    pub fn copy_from(&self, start: u32, limit: usize, slots: &mut Vec<u32>) {
        match self {
            Members::One(only) => slots.extend((*only >= start && limit > 0).then_some(*only)),
            Members::Few(list) => {
                let first = list.partition_point(|&slot| slot < start);
                slots.extend(list[first..].iter().take(limit));
            }
            Members::Many(bitmap) => {
                let mut rest = bitmap.iter();
                rest.advance_to(start);
                slots.extend(rest.take(limit));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn all(members: &Members) -> Vec<u32> {
        let mut slots = Vec::new();
        members.copy_from(0, usize::MAX, &mut slots);
        slots
    }

    proptest! {
        #[test]
        fn members_are_what_a_sorted_set_would_hold(steps: Vec<(bool, u8)>, start: u8, limit in 0usize..300) {
            let (mut members, mut model) = (Members::new(), BTreeSet::new());
            for (joins, slot) in steps {
                let slot = u32::from(slot);
                if joins {
                    prop_assert_eq!(members.insert(slot), model.insert(slot));
                } else {
                    prop_assert_eq!(members.remove(slot), model.remove(&slot));
                }
                prop_assert_eq!(members.len(), model.len());
                prop_assert_eq!(members.contains(slot), joins);
            }
            let mut slots = Vec::new();
            members.copy_from(u32::from(start), limit, &mut slots);
            prop_assert!(slots.into_iter().eq(model.range(u32::from(start)..).copied().take(limit)));
        }
    }

    #[test]
    fn a_room_grows_to_a_bitmap_and_shrinks_back() {
        let mut members = Members::new();
        (0..FEW_MAX as u32).for_each(|slot| assert!(members.insert(slot) && !members.is_many()));
        assert!(members.insert(1000) && members.is_many());
        for slot in 0..FEW_MAX as u32 {
            members.remove(slot);
        }
        assert!(matches!(members, Members::One(1000)));
        assert_eq!(all(&members), [1000]);
    }

    #[test]
    fn a_room_of_one_needs_no_memory_of_its_own() {
        assert_eq!(size_of::<Members>(), 24);
    }
}
