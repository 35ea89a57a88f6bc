//! What a thread of clients is told at its start and while it runs.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use crate::target::{Target, Template};

pub struct Setup {
    pub target: Target,
    pub sources: u32,
    pub in_flight: usize,
    pub timeout_ns: u64,
    /// A client counts as open when so many messages have come; 0 = at the 101.
    pub welcomes: u8,
    /// What it says when the first of them has come.
    pub hello: Vec<Template>,
    /// One client in so many offers permessage-deflate; 0 = none.
    pub deflate_every: u32,
    /// Whether messages of im-gateway are acked, by their ids.
    pub acks: bool,
}

impl Setup {
    pub fn deflates(&self, client: u32) -> bool {
        self.deflate_every > 0 && client.is_multiple_of(self.deflate_every)
    }
}

pub struct Order {
    pub what: What,
    pub done: Sender<()>,
}

#[derive(Clone)]
pub enum What {
    /// Clients `first`, `first + stride`, ... `count` of them, `per_second` (0 = as fast as possible).
    Open {
        first: u32,
        stride: u32,
        count: u32,
        per_second: f64,
    },
    Reset,
    /// Each open client sends `text`, with its own number filled in, `times` in turn.
    Send {
        text: Arc<Template>,
        times: u32,
    },
    /// Breaks one in `1 / share` connections without a close.
    Cut {
        share: f64,
    },
    Close,
    /// Open clients whose number modulo `of` is below `first` read nothing more.
    Pause {
        first: u32,
        of: u32,
    },
    /// They read again, all that has come meanwhile.
    Resume,
    /// Whether a client whose connection ends, by a cut or by the server, opens it again.
    Reconnect {
        on: bool,
    },
}

/// How far a thread is with the clients it was told to open.
#[derive(Default)]
pub struct Opening {
    pub next: u32,
    pub stride: u32,
    pub left: u32,
    pub begun: u32,
    pub per_second: f64,
    pub since_ns: u64,
}

impl Opening {
    /// How many may be begun by now at the rate asked for.
    pub fn due(&self, now: u64) -> u32 {
        if self.per_second == 0.0 {
            return self.left;
        }
        let due = (now - self.since_ns) as f64 / 1e9 * self.per_second;
        (due as u32).saturating_sub(self.begun).min(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::Opening;

    #[test]
    fn at_a_rate_only_as_many_are_due_as_the_time_allows() {
        let opening = Opening { left: 100, begun: 3, per_second: 10.0, since_ns: 5, ..Opening::default() };
        assert_eq!(opening.due(5 + 1_000_000_000), 7);
        assert_eq!(opening.due(5), 0);
        assert_eq!(opening.due(5 + 60_000_000_000), 100);
    }
}
