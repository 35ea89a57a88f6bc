//! Latencies in buckets whose width grows with the value: 3 % wide, from nanoseconds to minutes, in 16 KiB.
//!
//! Rule: one thread records, any thread may read; no locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Sub-buckets per power of two, as bits: 32 make a bucket at most 3.2 % wide.
const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
const BUCKETS: usize = ((64 - SUB_BITS as usize) + 1) << SUB_BITS;

pub struct Histogram {
    counts: Box<[AtomicU64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl Histogram {
    pub fn record(&self, nanoseconds: u64) {
        let count = &self.counts[bucket(nanoseconds)];
        // a plain store: only one thread writes
        count.store(count.load(Relaxed) + 1, Relaxed);
    }

    pub fn reset(&self) {
        for count in &self.counts {
            count.store(0, Relaxed);
        }
    }
}

/// The values below which each of `shares` of all recorded values lie, in nanoseconds (the upper edge of the bucket).
pub fn quantiles<const N: usize>(histograms: &[&Histogram], shares: [f64; N]) -> [u64; N] {
    let sums: Vec<u64> =
        (0..BUCKETS).map(|index| histograms.iter().map(|one| one.counts[index].load(Relaxed)).sum()).collect();
    let total: u64 = sums.iter().sum();
    shares.map(|share| {
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let found = sums.iter().position(|count| {
            seen += count;
            seen >= wanted && seen > 0
        });
        found.map_or(0, upper_edge)
    })
}

fn bucket(value: u64) -> usize {
    if value < SUB {
        return value as usize;
    }
    let power = 63 - value.leading_zeros();
    let sub = (value >> (power - SUB_BITS)) & (SUB - 1);
    ((u64::from(power - SUB_BITS + 1) << SUB_BITS) + sub) as usize
}

fn upper_edge(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let shift = (bucket >> SUB_BITS) - 1;
    (((SUB + (bucket & (SUB - 1))) + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::{Histogram, bucket, quantiles, upper_edge};

    #[test]
    fn every_value_lies_in_a_bucket_at_most_four_percent_wide() {
        for power in 0..60 {
            for value in [1u64 << power, (1u64 << power) + 1, 3u64 << power] {
                let edge = upper_edge(bucket(value));
                assert!(edge >= value && edge as f64 <= value as f64 * 1.04, "{value} -> {edge}");
            }
        }
    }

    #[test]
    fn quantiles_are_those_of_all_histograms_together() {
        let (low, high) = (Histogram::default(), Histogram::default());
        (0..99).for_each(|_| low.record(10));
        high.record(1_000_000);
        let [p50, p99, max] = quantiles(&[&low, &high], [0.5, 0.99, 1.0]);
        assert_eq!((p50, p99), (10, 10));
        assert!(max >= 1_000_000);
    }

    #[test]
    fn an_empty_histogram_answers_zero() {
        assert_eq!(quantiles(&[&Histogram::default()], [0.5]), [0]);
    }
}
