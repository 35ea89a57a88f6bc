//! When each connection must be looked at again: a hashed timer wheel, driven by the time it is given.
//!
//! Rule: one deadline a connection, the earliest of all it waits for, rounded up to a tick. The wheel only says "look at this
//! slot"; what is due there the connection knows ([`Timer`]), so moving a deadline back costs nothing until it fires.

use crate::{Millis, chunked::Chunked};

/// What the deadline of a connection means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Timer {
    /// The handshake took too long.
    Handshake,
    /// Nobody has said who is there.
    Overdue,
    /// It is time to ask whether the peer is still there.
    Ping,
    /// Nothing came since the first of some pings: the peer is dead.
    Pong,
    /// Bytes are owed and the socket took none for too long.
    Write,
    /// The peer did not end the connection after our close frame or refusal.
    Close,
}

/// Milliseconds are counted in sixteens, so that a storm of pings shares its wake-ups; no deadline of a socket needs finer steps.
pub(crate) const TICK_MS: u64 = 16;

/// Wraps after two years; compared by difference.
pub(crate) type Tick = u32;

/// One turn is 65 s, longer than a ping interval usually is: few deadlines are visited twice.
const WHEEL: usize = 4096;
const NONE: u32 = u32::MAX;

/// The first tick at or after `at`.
pub(crate) fn tick_after(at: Millis) -> Tick {
    at.div_ceil(TICK_MS) as Tick
}

/// The last tick at or before `at`.
pub(crate) fn tick_before(at: Millis) -> Tick {
    (at / TICK_MS) as Tick
}

/// Whether `deadline` has passed at `now`.
pub(crate) fn is_due(deadline: Tick, now: Tick) -> bool {
    now.wrapping_sub(deadline) as i32 >= 0
}

#[derive(Clone)]
struct Node {
    next: u32,
    /// Another slot, or `HEAD` + bucket.
    prev: u32,
    tick: Tick,
    bucket: u16,
    armed: bool,
}

pub(crate) struct Timers {
    nodes: Chunked<Node>,
    heads: Box<[u32]>,
    /// One bit a bucket: not empty.
    occupied: Box<[u64]>,
    /// The last tick whose bucket was emptied.
    now: u64,
}

impl Timers {
    pub fn new() -> Self {
        Self { nodes: Chunked::new(), heads: vec![NONE; WHEEL].into(), occupied: vec![0; WHEEL / 64].into(), now: 0 }
    }

    /// Sets the slot's only deadline.
    pub fn arm(&mut self, slot: u32, tick: Tick) {
        self.cancel(slot);
        while self.nodes.len() <= slot as usize {
            self.nodes.push(Node { next: NONE, prev: NONE, tick: 0, bucket: 0, armed: false });
        }
        // a deadline already past goes where the next turn of the wheel finds it first
        let placed = if is_due(tick, self.now as Tick) { self.now as Tick + 1 } else { tick };
        let bucket = placed as usize % WHEEL;
        let next = self.heads[bucket];
        self.nodes[slot as usize] = Node { next, prev: NONE, tick, bucket: bucket as u16, armed: true };
        if next != NONE {
            self.nodes[next as usize].prev = slot;
        }
        self.heads[bucket] = slot;
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
    }

    pub fn cancel(&mut self, slot: u32) {
        let Some(node) = self.nodes.get_mut(slot as usize).filter(|node| node.armed) else {
            return;
        };
        node.armed = false;
        let Node { next, prev, bucket, .. } = *node;
        if next != NONE {
            self.nodes[next as usize].prev = prev;
        }
        if prev != NONE {
            self.nodes[prev as usize].next = next;
            return;
        }
        let bucket = usize::from(bucket);
        self.heads[bucket] = next;
        if next == NONE {
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
        }
    }

    pub fn deadline(&self, slot: u32) -> Option<Tick> {
        self.nodes.get(slot as usize).filter(|node| node.armed).map(|node| node.tick)
    }

    /// Disarms every slot whose deadline has come and appends it to `due`.
    pub fn expire(&mut self, now: Millis, due: &mut Vec<u32>) {
        let target = now / TICK_MS;
        while let Some(distance) = self.distance_to_occupied() {
            if self.now + distance > target {
                break;
            }
            self.now += distance;
            self.empty_bucket(self.now as usize % WHEEL, target as Tick, due);
        }
        self.now = self.now.max(target);
    }

    /// When to call `expire` next. It may come early, never late.
    pub fn next(&self) -> Option<Millis> {
        self.distance_to_occupied().map(|distance| (self.now + distance) * TICK_MS)
    }

    fn empty_bucket(&mut self, bucket: usize, target: Tick, due: &mut Vec<u32>) {
        let mut slot = self.heads[bucket];
        while slot != NONE {
            let node = &self.nodes[slot as usize];
            let (next, tick) = (node.next, node.tick);
            if is_due(tick, target) {
                self.cancel(slot);
                due.push(slot);
            }
            slot = next;
        }
    }

    /// Ticks from now to the next bucket that holds anything, 1 to `WHEEL`.
    fn distance_to_occupied(&self) -> Option<u64> {
        let start = (self.now as usize + 1) % WHEEL;
        let words = self.occupied.len();
        let first = self.occupied[start / 64] & (!0 << (start % 64));
        let found = (0..=words).find_map(|step| {
            let index = (start / 64 + step) % words;
            let word = if step == 0 { first } else { self.occupied[index] };
            (word != 0).then(|| index * 64 + word.trailing_zeros() as usize)
        })?;
        Some(((found + WHEEL - start) % WHEEL) as u64 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(timers: &mut Timers, now: Millis) -> Vec<u32> {
        let mut due = Vec::new();
        timers.expire(now, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn a_deadline_fires_at_its_tick_and_not_before() {
        let mut timers = Timers::new();
        timers.arm(7, tick_after(1000));
        assert_eq!(timers.next(), Some(1008));
        assert_eq!(expired(&mut timers, 1007), []);
        assert_eq!(expired(&mut timers, 1008), [7]);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn the_last_arm_counts() {
        let mut timers = Timers::new();
        timers.arm(1, tick_after(100));
        timers.arm(1, tick_after(500));
        assert_eq!(expired(&mut timers, 400), []);
        assert_eq!(expired(&mut timers, 600), [1]);
    }

    #[test]
    fn a_cancelled_deadline_never_fires() {
        let mut timers = Timers::new();
        for slot in 0..3 {
            timers.arm(slot, 10);
        }
        timers.cancel(1);
        timers.cancel(1);
        timers.cancel(99);
        assert_eq!(expired(&mut timers, 10_000), [0, 2]);
    }

    #[test]
    fn a_deadline_many_turns_ahead_waits_for_its_turn() {
        let mut timers = Timers::new();
        let far = WHEEL as u64 * TICK_MS * 3 + 160;
        timers.arm(0, tick_after(far));
        let mut now = 0;
        while let Some(next) = timers.next() {
            assert!(next > now && next <= far);
            now = next;
            if expired(&mut timers, now) == [0] {
                break;
            }
        }
        assert_eq!(now, far);
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_tick() {
        let mut timers = Timers::new();
        assert_eq!(expired(&mut timers, 50_000), []);
        timers.arm(0, tick_after(10));
        assert_eq!(timers.next(), Some(50_000 / TICK_MS * TICK_MS + TICK_MS));
        assert_eq!(expired(&mut timers, 50_016), [0]);
    }

    #[test]
    fn ticks_wrap_without_a_deadline_lost() {
        let mut timers = Timers::new();
        let near_wrap = (u64::from(u32::MAX) - 2) * TICK_MS;
        assert_eq!(expired(&mut timers, near_wrap), []);
        timers.arm(4, tick_after(near_wrap + 10 * TICK_MS));
        assert_eq!(expired(&mut timers, near_wrap + 9 * TICK_MS), []);
        assert_eq!(expired(&mut timers, near_wrap + 10 * TICK_MS), [4]);
    }

    #[test]
    fn random_deadlines_fire_exactly_as_a_sorted_list_says() {
        let mut timers = Timers::new();
        let mut model: Vec<Option<u64>> = vec![None; 64];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut now = 0;
        for _ in 0..20_000 {
            let slot = (random() % 64) as usize;
            match random() % 4 {
                0 => {
                    timers.cancel(slot as u32);
                    model[slot] = None;
                }
                1 => {
                    now += random() % 200;
                    let due: Vec<u32> =
                        (0..64).filter(|&s| model[s as usize].is_some_and(|at| at <= now / TICK_MS)).collect();
                    assert_eq!(expired(&mut timers, now), due);
                    due.iter().for_each(|&s| model[s as usize] = None);
                }
                _ => {
                    let at = now + TICK_MS + random() % 100_000;
                    timers.arm(slot as u32, tick_after(at));
                    model[slot] = Some(at.div_ceil(TICK_MS));
                }
            }
        }
    }
}
