//! Who is in one room: a list of a few slots, or a bitmap.
//!
//! Most rooms of a gateway hold one connection (a user's own room), some hold everybody. Rule: in either form the members come in
//! ascending order of their slots, so that a fan-out can stop anywhere and go on while members come and go.

use roaring::RoaringBitmap;

use crate::{fanout::JobId, short::Short};

/// Beyond this a bitmap is smaller and quicker than a list.
pub(crate) const FEW_MAX: usize = 32;
/// A bitmap becomes a list again well below that, or a member who comes and goes would convert it each time.
const FEW_AGAIN: u64 = 16;

#[derive(Debug)]
pub(crate) enum Members {
    /// Sorted; none only before the first and after the last member.
    Few(Short),
    Many(Box<Many>),
}

#[derive(Debug, Default)]
pub(crate) struct Many {
    slots: RoaringBitmap,
    /// The fan-out under way, if any: see `fanout`. While there is one the room stays in this form, however few are left.
    job: Option<JobId>,
}

impl Members {
    pub fn new() -> Self {
        Members::Few(Short::EMPTY)
    }

    /// `false` when it was a member before.
    pub fn insert(&mut self, slot: u32) -> bool {
        match self {
            Members::Few(list) => {
                let Err(at) = list.binary_search(&slot) else {
                    return false;
                };
                list.insert(at, slot);
                if list.len() > FEW_MAX {
                    *self = Members::Many(Box::new(Many { slots: list.iter().copied().collect(), job: None }));
                }
                true
            }
            Members::Many(many) => many.slots.insert(slot),
        }
    }

    /// `false` when it was none.
    pub fn remove(&mut self, slot: u32) -> bool {
        match self {
            Members::Few(list) => {
                let Ok(at) = list.binary_search(&slot) else {
                    return false;
                };
                list.remove(at);
                true
            }
            Members::Many(many) => {
                let found = many.slots.remove(slot);
                if found {
                    self.make_few();
                }
                found
            }
        }
    }

    pub fn contains(&self, slot: u32) -> bool {
        match self {
            Members::Few(list) => list.binary_search(&slot).is_ok(),
            Members::Many(many) => many.slots.contains(slot),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Members::Few(list) => list.len(),
            Members::Many(many) => many.slots.len() as usize,
        }
    }

    pub fn job(&self) -> Option<JobId> {
        match self {
            Members::Few(_) => None,
            Members::Many(many) => many.job,
        }
    }

    /// The job of a room with many members, made by `begin` if there is none. Few members need none.
    pub fn job_or_begin(&mut self, begin: impl FnOnce() -> JobId) -> Option<JobId> {
        match self {
            Members::Few(_) => None,
            Members::Many(many) => Some(*many.job.get_or_insert_with(begin)),
        }
    }

    pub fn end_job(&mut self) {
        if let Members::Many(many) = self {
            many.job = None;
            self.make_few();
        }
    }

    /// Appends up to `limit` members from slot `start` on.
    pub fn copy_from(&self, start: u32, limit: usize, slots: &mut Vec<u32>) {
        match self {
            Members::Few(list) => {
                let first = list.partition_point(|&slot| slot < start);
                slots.extend(list[first..].iter().take(limit));
            }
            Members::Many(many) => {
                let mut rest = many.slots.iter();
                rest.advance_to(start);
                slots.extend(rest.take(limit));
            }
        }
    }

    fn make_few(&mut self) {
        if let Members::Many(many) = self
            && many.job.is_none()
            && many.slots.len() <= FEW_AGAIN
        {
            *self = Members::Few(many.slots.iter().collect());
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
        (0..FEW_MAX as u32).for_each(|slot| assert!(members.insert(slot) && matches!(members, Members::Few(_))));
        assert!(members.insert(1000) && matches!(members, Members::Many(_)));
        for slot in 0..FEW_MAX as u32 {
            members.remove(slot);
        }
        assert!(matches!(members, Members::Few(Short::Inline { .. })));
        assert_eq!(all(&members), [1000]);
    }

    #[test]
    fn a_room_with_a_fan_out_under_way_stays_a_bitmap_until_it_ends() {
        let mut members = Members::new();
        assert_eq!(members.job_or_begin(|| JobId::MIN), None, "few members need no job");
        (0..=FEW_MAX as u32).for_each(|slot| assert!(members.insert(slot)));
        assert_eq!(members.job_or_begin(|| JobId::MIN), Some(JobId::MIN));
        (1..=FEW_MAX as u32).for_each(|slot| assert!(members.remove(slot)));
        assert_eq!((members.job(), members.len()), (Some(JobId::MIN), 1));
        members.end_job();
        assert!(matches!(members, Members::Few(_)));
        assert_eq!(all(&members), [0]);
    }

    #[test]
    fn members_fit_into_16_bytes() {
        assert_eq!(size_of::<Members>(), 16);
    }
}
