//! Clients that lost their connection and want it back at once.
//!
//! Rule: while the server is gone one client of each thread asks for it now and then, not all of them: here the clients share the
//! server's cores, and a million refused connects a second would be the only thing measured.

use std::collections::VecDeque;

#[derive(Default)]
pub struct Lost {
    pub on: bool,
    clients: VecDeque<u32>,
    not_before_ns: u64,
}

/// After a connection that could not be made. Against the seconds that a restart takes it is nothing.
const PAUSE_NS: u64 = 5_000_000;
pub const PAUSE_MS: i32 = (PAUSE_NS / 1_000_000) as i32;

impl Lost {
    pub fn add(&mut self, client: u32) {
        if self.on {
            self.clients.push_back(client);
        }
    }

    /// The server took no connection: nobody asks again before the pause is over.
    pub fn pause(&mut self, now: u64) {
        self.not_before_ns = now + PAUSE_NS;
    }

    /// Whose turn it is.
    pub fn next(&mut self, now: u64) -> Option<u32> {
        if now < self.not_before_ns { None } else { self.clients.pop_front() }
    }

    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Those that still wait stay away.
    pub fn give_up(&mut self) {
        self.clients.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::{Lost, PAUSE_NS};

    #[test]
    fn after_a_refusal_nobody_asks_until_the_pause_is_over() {
        let mut lost = Lost { on: true, ..Lost::default() };
        lost.add(7);
        lost.add(8);
        assert_eq!(lost.next(1), Some(7));
        lost.pause(1);
        assert_eq!((lost.next(PAUSE_NS), lost.len()), (None, 1));
        assert_eq!(lost.next(PAUSE_NS + 1), Some(8));
    }

    #[test]
    fn who_is_not_to_come_back_is_forgotten() {
        let mut lost = Lost::default();
        lost.add(7);
        assert_eq!(lost.len(), 0);
    }
}
