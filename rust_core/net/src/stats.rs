//! What a shard tells of itself: copied where a scrape finds it, summed only when somebody asks.
//!
//! Rule: a shard tells before it sleeps and at most every 50 ms while busy, so a scrape sees the truth and a busy shard pays nothing.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tidegate_hub::{Refusal, Stats};

/// One shard's last word.
#[derive(Default)]
pub struct Report {
    snapshot: Mutex<Snapshot>,
    drained: AtomicBool,
}

#[derive(Clone, Default)]
pub struct Snapshot {
    pub hub: Stats,
    /// Refusals by the socket layer itself.
    pub refused: Refusals,
    pub lag_us_max: u64,
    pub relays_now: u64,
}

/// Refusals by the socket layer.
#[derive(Clone, Default)]
pub struct Refusals([u64; Refusal::ALL.len()]);

impl Refusals {
    pub fn count(&mut self, why: Refusal) {
        self.0[why as usize] += 1;
    }

    fn of(&self, why: Refusal) -> u64 {
        self.0[why as usize]
    }
}

impl Report {
    pub fn tell(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::Release);
    }

    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Acquire)
    }
}

/// The longest pass of the last five to ten seconds.
pub struct Lag {
    window_began: Instant,
    before: Duration,
    now: Duration,
}

impl Lag {
    pub fn new(at: Instant) -> Self {
        Self { window_began: at, before: Duration::ZERO, now: Duration::ZERO }
    }

    pub fn add(&mut self, pass: Duration, at: Instant) {
        let age = at.duration_since(self.window_began);
        if age >= LAG_WINDOW {
            // after a long sleep the last window is too old to tell
            self.before = if age >= 2 * LAG_WINDOW { Duration::ZERO } else { self.now };
            (self.now, self.window_began) = (Duration::ZERO, at);
        }
        self.now = self.now.max(pass);
    }

    pub fn max_us(&self) -> u64 {
        self.now.max(self.before).as_micros() as u64
    }
}

/// Sums what the shards told, by the names that `Engine::stats` promises. `rooms` comes from the directory: a room with members on
/// two shards is one room.
pub fn sum(reports: &[Report], rooms: usize, events_queued: usize) -> Vec<(String, u64)> {
    let shards: Vec<Snapshot> = reports.iter().map(Report::snapshot).collect();
    let total = |read: fn(&Stats) -> u64| shards.iter().map(|shard| read(&shard.hub)).sum::<u64>();
    let mut sums: Vec<(String, u64)> = FIELDS.iter().map(|(name, read)| ((*name).to_owned(), total(*read))).collect();
    for why in Refusal::ALL {
        let refused = shards.iter().map(|shard| shard.hub.refused(why) + shard.refused.of(why)).sum();
        sums.push((format!("refused.{}", why.label()), refused));
    }
    sums.push(("rooms_now".into(), rooms as u64));
    sums.push(("shards".into(), shards.len() as u64));
    sums.push(("shard_lag_us_max".into(), shards.iter().map(|shard| shard.lag_us_max).max().unwrap_or(0)));
    sums.push(("http_relays_now".into(), shards.iter().map(|shard| shard.relays_now).sum()));
    sums.push(("events_queued_now".into(), events_queued as u64));
    sums
}

type Field = (&'static str, fn(&Stats) -> u64);

const FIELDS: [Field; 14] = [
    ("connections_now", |stats| stats.connections_now),
    ("handshakes_now", |stats| stats.handshakes_now),
    ("connections", |stats| stats.connections),
    ("memberships_now", |stats| stats.memberships_now),
    ("messages_in", |stats| stats.messages_in),
    ("bytes_in", |stats| stats.bytes_in),
    ("deliveries", |stats| stats.deliveries),
    ("broadcasts", |stats| stats.broadcasts),
    ("bytes_out", |stats| stats.bytes_out),
    ("writes", |stats| stats.writes),
    ("outbox_bytes_now", |stats| stats.outbox_bytes_now),
    ("backlog_bytes_now", |stats| stats.backlog_bytes_now),
    ("pings", |stats| stats.pings),
    ("deflate_now", |stats| stats.deflate_now),
];

const LAG_WINDOW: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'a>(sums: &'a [(String, u64)], name: &str) -> &'a u64 {
        &sums.iter().find(|(of, _)| of == name).unwrap().1
    }

    #[test]
    fn a_scrape_sums_the_shards_and_both_layers_refusals() {
        let reports = [Report::default(), Report::default()];
        for report in &reports {
            let mut snapshot = Snapshot { lag_us_max: 7, relays_now: 1, ..Snapshot::default() };
            snapshot.hub.connections_now = 10;
            snapshot.hub.refuse(Refusal::Proxy);
            snapshot.refused.count(Refusal::Proxy);
            snapshot.refused.count(Refusal::Proxy);
            report.tell(snapshot);
        }
        let sums = sum(&reports, 3, 5);
        assert_eq!((of(&sums, "connections_now"), of(&sums, "refused.proxy")), (&20, &6));
        assert_eq!((of(&sums, "shard_lag_us_max"), of(&sums, "http_relays_now")), (&7, &2));
        assert_eq!((of(&sums, "shards"), of(&sums, "events_queued_now")), (&2, &5));
        assert_eq!(of(&sums, "rooms_now"), &3);
    }

    #[test]
    fn the_longest_pass_is_told_for_a_while_and_then_forgotten() {
        let began = Instant::now();
        let mut lag = Lag::new(began);
        lag.add(Duration::from_micros(900), began);
        lag.add(Duration::from_micros(5), began + LAG_WINDOW);
        assert_eq!(lag.max_us(), 900);
        lag.add(Duration::from_micros(5), began + 2 * LAG_WINDOW);
        assert_eq!(lag.max_us(), 5);
        lag.add(Duration::from_micros(800), began + 2 * LAG_WINDOW);
        lag.add(Duration::from_micros(5), began + 9 * LAG_WINDOW);
        assert_eq!(lag.max_us(), 5, "a long sleep ends both windows");
    }
}
