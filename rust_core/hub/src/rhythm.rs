//! When connections are pinged.
//!
//! Rule: spread evenly over the interval, but in steps, so that a shard wakes for many pings at once: a wake-up costs as much as
//! several of them. Steps of different shards fall into different moments. A ping may come a step early, never late, because what
//! it keeps open is closed by others after a time without traffic.

use crate::{
    Millis,
    timers::{TICK_MS, Tick, is_due, tick_after, tick_before},
};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    interval_ms: Millis,
    /// Ticks between two moments at which this shard pings.
    step: Tick,
    phase: Tick,
}

/// Steps of an interval: 117 ms of 30 s. The 62 pings of a full shard (16,000 connections) that then go out together take a
/// fifth of a millisecond, which nobody notices, and one wake-up instead of eight.
const STEPS: u64 = 256;

impl Rhythm {
    pub fn new(shard: u16, interval_ms: Millis) -> Self {
        let step = (interval_ms / STEPS / TICK_MS).clamp(1, Tick::MAX.into()) as Tick;
        Self { interval_ms, step, phase: Tick::from(shard) % step }
    }

    /// The first ping of a connection: between half an interval and a whole one after `now`, by slot, so that a storm of
    /// handshakes is not followed by a storm of pings.
    pub fn first(&self, slot: u32, now: Millis) -> Tick {
        let half = self.interval_ms / 2;
        // Fibonacci hashing spreads neighbouring slots evenly
        let spread = u64::from(slot.wrapping_mul(0x9e37_79b9));
        self.within(half + ((half * spread) >> 32), now)
    }

    /// An interval after `now`.
    pub fn next(&self, now: Millis) -> Tick {
        self.within(self.interval_ms, now)
    }

    /// The last of this shard's moments within `wait_ms`, but not before the next tick.
    pub fn within(&self, wait_ms: Millis, now: Millis) -> Tick {
        let at = tick_after(now + wait_ms);
        let early = at.wrapping_sub(self.phase) % self.step;
        let soonest = tick_before(now).wrapping_add(1);
        let moment = at.wrapping_sub(early);
        if is_due(soonest, moment) { moment } else { soonest }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const INTERVAL_MS: Millis = 30_000;

    #[test]
    fn pings_of_a_shard_share_moments_and_none_is_later_than_an_interval() {
        let rhythm = Rhythm::new(5, INTERVAL_MS);
        let moments: HashSet<Tick> = (0..20_000).map(|now| rhythm.next(now)).collect();
        assert!(moments.len() <= 20_000 / 112 + 2, "{}", moments.len());
        for now in 0..20_000 {
            let wait_ms = u64::from(rhythm.next(now)) * TICK_MS - now;
            assert!((29_850..=INTERVAL_MS + TICK_MS).contains(&wait_ms), "{wait_ms} ms after {now}");
        }
    }

    #[test]
    fn shards_ping_at_different_moments() {
        let moments: HashSet<Tick> = (0..7).map(|shard| Rhythm::new(shard, INTERVAL_MS).next(1_000)).collect();
        assert_eq!(moments.len(), 7);
    }

    #[test]
    fn first_pings_are_spread_over_the_second_half_of_the_interval() {
        let rhythm = Rhythm::new(0, INTERVAL_MS);
        let mut moments: Vec<Tick> = (0..10_000).map(|slot| rhythm.first(slot, 0)).collect();
        moments.sort_unstable();
        let [first, last] = [moments[0], moments[moments.len() - 1]].map(|tick| u64::from(tick) * TICK_MS);
        assert!(first >= INTERVAL_MS / 2 - 120 && last <= INTERVAL_MS + TICK_MS, "{first} to {last}");
        let largest = moments.chunk_by(|a, b| a == b).map(<[Tick]>::len).max();
        assert!(largest <= Some(10_000 / (STEPS as usize / 2) * 3 / 2), "{largest:?} at once");
    }

    #[test]
    fn a_short_interval_is_kept_to_the_tick_and_never_lies_in_the_past() {
        let rhythm = Rhythm::new(3, 1_000);
        assert_eq!(rhythm.next(0), tick_after(1_000));
        let at_once = Rhythm::new(3, 1);
        assert_eq!((at_once.next(100), at_once.first(9, 96)), (tick_after(101), tick_before(96) + 1));
    }
}
