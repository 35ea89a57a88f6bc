//! Leaving in good order: everybody is told to go, evenly over the time, so that they do not all come back at once elsewhere.
//!
//! Rule: nobody is told before what was published to it is owed to it; nobody stays after the time.

use crate::{
    Hub, Millis,
    connection::State,
    timers::{TICK_MS, is_due, tick_after},
};

/// RFC 6455 section 7.4.1.
const GOING_AWAY: u16 = 1001;

#[derive(Clone, Debug)]
pub(crate) struct Drain {
    began: Millis,
    /// The last close frame goes out before this.
    spread_ms: u64,
    ends: Millis,
    /// Open connections at the start, and how many of that number have had their turn.
    total: u64,
    told: u64,
    /// The next slot to look at.
    cursor: u32,
    next: Option<Millis>,
}

impl Drain {
    /// Who has not sent its request by then gets no answer: a silent socket must not hold up the exit.
    pub const HANDSHAKE_MS: u64 = 1000;

    /// A hundred newcomers a second trouble no server: few clients are told sooner than the time allows.
    const SPREAD_MS_EACH: u64 = 10;

    pub fn next(&self) -> Option<Millis> {
        self.next
    }

    /// How many should have been told by `now`: the first at once, all at the end of the spread.
    fn target(&self, now: Millis) -> u64 {
        let elapsed = now.saturating_sub(self.began);
        if elapsed >= self.spread_ms { self.total } else { (self.total * elapsed / self.spread_ms + 1).min(self.total) }
    }

    /// When the next one's turn comes; `ends` when all had theirs.
    fn turn(&self, now: Millis) -> Millis {
        let turn = self.began + (self.told * self.spread_ms).div_ceil(self.total.max(1));
        if self.told < self.total { turn.max(now + TICK_MS).min(self.ends) } else { self.ends }
    }
}

impl Hub {
    pub(crate) fn begin_drain(&mut self, within_ms: u64, now: Millis) {
        self.drain = Some(Drain {
            began: now,
            // the last tenth is for the answers to the last close frames
            spread_ms: (within_ms - within_ms / 10).min(self.stats.connections_now * Drain::SPREAD_MS_EACH),
            ends: now + within_ms,
            total: self.stats.connections_now,
            told: 0,
            cursor: 0,
            next: Some(now),
        });
        self.hurry_handshakes(now);
        self.tell_next(now);
    }

    pub(crate) fn drive_drain(&mut self, now: Millis) {
        let Some(drain) = &self.drain else { return };
        if now >= drain.ends {
            (0..self.slab.end()).for_each(|slot| self.end(slot));
        } else if drain.next.is_some_and(|next| now >= next) {
            self.tell_next(now);
        }
        if let Some(drain) = self.drain.as_mut().filter(|_| self.slab.live() == 0) {
            drain.next = None;
        }
    }

    /// Closes those whose turn has come and plans the next turn.
    fn tell_next(&mut self, now: Millis) {
        let Some(mut drain) = self.drain.clone() else {
            return;
        };
        let target = drain.target(now);
        while drain.told < target && drain.cursor < self.slab.end() {
            let open = self.slab.at(drain.cursor).is_some_and(|client| client.state == State::Open);
            if open {
                self.say_last(drain.cursor, |notices| notices.farewell.as_ref(), now);
                self.close_caught_up(drain.cursor, GOING_AWAY, "going away", None, now);
                drain.told += 1;
            }
            drain.cursor += 1;
        }
        if drain.cursor >= self.slab.end() {
            // some went by themselves
            drain.told = drain.total;
        }
        drain.next = Some(drain.turn(now));
        self.drain = Some(drain);
    }

    fn hurry_handshakes(&mut self, now: Millis) {
        let due = tick_after(now + self.handshake_ms());
        for slot in 0..self.slab.end() {
            let Some(client) = self.slab.at_mut(slot) else {
                continue;
            };
            if client.state == State::Head && is_due(due, client.due) {
                client.due = due;
                self.plan(slot);
            }
        }
    }
}
