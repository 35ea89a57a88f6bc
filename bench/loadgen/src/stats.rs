//! What one thread of clients saw, and the sum over all threads as JSON.
//!
//! Rule: one thread writes, the control thread reads; plain loads and stores. Reasons are words a driver can print.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::histogram::{Histogram, quantiles};

#[derive(Default)]
pub struct Stats {
    pub open: Counter,
    pub opened: Counter,
    /// Handshakes not begun yet, and those under way.
    pub waiting: Counter,
    pub in_flight: Counter,
    pub last_opened_ns: Counter,
    pub received: Counter,
    /// Messages without a marker: welcomes, answers.
    pub other: Counter,
    pub bytes: Counter,
    /// Messages that came compressed, of those received and other.
    pub compressed: Counter,
    pub out_of_order: Counter,
    pub missing: Counter,
    pub pings: Counter,
    pub texts_sent: Counter,
    pub sends_blocked: Counter,
    pub first_sent_ns: Counter,
    pub last_received_ns: Counter,
    pub handshake: Histogram,
    pub latency: Histogram,
    /// The thread's CPU clock; 0 until it runs.
    pub cpu_clock: Counter,
    failures: Mutex<BTreeMap<String, u64>>,
}

#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    pub fn add(&self, count: u64) {
        self.set(self.get() + count);
    }

    pub fn subtract(&self, count: u64) {
        self.set(self.get() - count);
    }
}

impl Stats {
    /// Counts a connection that could not be opened, or that ended without our doing, by reason.
    pub fn fail(&self, reason: String) {
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner).entry(reason).or_insert(0) += 1;
    }

    /// Forgets what was measured; what is open stays.
    pub fn reset(&self) {
        let counters = [
            &self.opened,
            &self.last_opened_ns,
            &self.received,
            &self.other,
            &self.bytes,
            &self.compressed,
            &self.out_of_order,
            &self.missing,
            &self.pings,
            &self.texts_sent,
            &self.sends_blocked,
            &self.first_sent_ns,
            &self.last_received_ns,
        ];
        counters.iter().for_each(|counter| counter.set(0));
        self.handshake.reset();
        self.latency.reset();
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// `stamp` is when the message was made, `now` when it was read, both in nanoseconds.
    pub fn message(&self, stamp: u64, now: u64) {
        self.received.add(1);
        self.latency.record(now.saturating_sub(stamp));
        self.last_received_ns.set(now);
        if self.first_sent_ns.get() == 0 || stamp < self.first_sent_ns.get() {
            self.first_sent_ns.set(stamp);
        }
    }
}

pub fn sum(all: &[&Stats], field: impl Fn(&Stats) -> &Counter) -> u64 {
    all.iter().map(|stats| field(stats).get()).sum()
}

/// All threads' counts as the inside of a JSON object.
pub fn fields(all: &[&Stats]) -> Vec<String> {
    let latencies: Vec<&Histogram> = all.iter().map(|stats| &stats.latency).collect();
    let handshakes: Vec<&Histogram> = all.iter().map(|stats| &stats.handshake).collect();
    let [p50, p90, p99, p999, max] = quantiles(&latencies, [0.5, 0.9, 0.99, 0.999, 1.0]);
    let [handshake_p50, handshake_p99, handshake_max] = quantiles(&handshakes, [0.5, 0.99, 1.0]);
    let first_sent = all.iter().map(|stats| stats.first_sent_ns.get()).filter(|stamp| *stamp > 0).min();
    let latest = |field: fn(&Stats) -> &Counter| all.iter().map(|stats| field(stats).get()).max().unwrap_or(0);
    let numbers = [
        ("open", sum(all, |stats| &stats.open)),
        ("opened", sum(all, |stats| &stats.opened)),
        ("waiting", sum(all, |stats| &stats.waiting)),
        ("in_flight", sum(all, |stats| &stats.in_flight)),
        ("received", sum(all, |stats| &stats.received)),
        ("other", sum(all, |stats| &stats.other)),
        ("bytes", sum(all, |stats| &stats.bytes)),
        ("compressed", sum(all, |stats| &stats.compressed)),
        ("out_of_order", sum(all, |stats| &stats.out_of_order)),
        ("missing", sum(all, |stats| &stats.missing)),
        ("pings", sum(all, |stats| &stats.pings)),
        ("texts_sent", sum(all, |stats| &stats.texts_sent)),
        ("sends_blocked", sum(all, |stats| &stats.sends_blocked)),
        ("first_sent_ns", first_sent.unwrap_or(0)),
        ("last_received_ns", latest(|stats| &stats.last_received_ns)),
        ("last_opened_ns", latest(|stats| &stats.last_opened_ns)),
        ("latency_p50_ns", p50),
        ("latency_p90_ns", p90),
        ("latency_p99_ns", p99),
        ("latency_p999_ns", p999),
        ("latency_max_ns", max),
        ("handshake_p50_ns", handshake_p50),
        ("handshake_p99_ns", handshake_p99),
        ("handshake_max_ns", handshake_max),
    ];
    let mut fields: Vec<String> = numbers.iter().map(|(name, value)| format!(r#""{name}":{value}"#)).collect();
    fields.push(format!(r#""failed":{{{}}}"#, failures(all)));
    fields
}

fn failures(all: &[&Stats]) -> String {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for stats in all {
        for (reason, count) in &*stats.failures.lock().unwrap_or_else(PoisonError::into_inner) {
            *sums.entry(reason.clone()).or_insert(0) += count;
        }
    }
    let pairs: Vec<String> = sums.iter().map(|(reason, count)| format!(r#""{reason}":{count}"#)).collect();
    pairs.join(",")
}
