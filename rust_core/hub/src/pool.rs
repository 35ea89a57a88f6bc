//! Outboxes at rest.
//!
//! Rule: what comes out is empty, and no more is kept than a quiet shard needs again soon.

use crate::outbox::Outbox;

/// So that a burst costs no allocation a member.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "a connection takes the box as it is")]
pub(crate) struct Pool {
    spare: Vec<Box<Outbox>>,
}

impl Pool {
    /// As many as owe something between two passes of a quiet shard; a busy one allocates the rest.
    const SPARE_MAX: usize = 64;
    /// An outbox that has grown beyond this is freed instead.
    const CAPACITY_MAX: usize = 8;

    pub fn take(&mut self) -> Box<Outbox> {
        self.spare.pop().unwrap_or_default()
    }

    pub fn give(&mut self, mut outbox: Box<Outbox>) {
        if self.spare.len() < Self::SPARE_MAX && outbox.capacity() <= Self::CAPACITY_MAX {
            outbox.clear();
            self.spare.push(outbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_back_what_it_was_given_and_keeps_a_bounded_number() {
        let mut pool = Pool::default();
        for _ in 0..10 * Pool::SPARE_MAX {
            let mut outbox = Box::<Outbox>::default();
            outbox.push_whole(b"owed".to_vec());
            pool.give(outbox);
        }
        assert_eq!(pool.spare.len(), Pool::SPARE_MAX);
        assert_eq!(pool.take().bytes(), 0);
    }
}
