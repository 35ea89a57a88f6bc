//! A token bucket in eight bytes: so much a second, and so many at once.
//!
//! It remembers only when the bucket would be full again (the generic cell rate algorithm), so an idle client needs no refill.

use crate::Millis;

const NANOS_PER_S: u64 = 1_000_000_000;
const NANOS_PER_MS: u64 = 1_000_000;

/// What a token is reckoned in: the cost of something that counts in full.
pub(crate) const WHOLE: u32 = 100;

#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Bucket {
    full_at_ns: u64,
}

impl Bucket {
    /// Takes `cost` of [`WHOLE`] a token; `rate` tokens a second, 0 = no limit; `burst` may be taken at once.
    pub fn take(&mut self, now: Millis, rate: u32, burst: u32, cost: u32) -> bool {
        if rate == 0 {
            return true;
        }
        let token = NANOS_PER_S / u64::from(rate);
        let now = now.saturating_mul(NANOS_PER_MS);
        let taken = token * u64::from(cost) / u64::from(WHOLE);
        let full_at = self.full_at_ns.max(now).saturating_add(taken);
        if full_at - now > token * u64::from(burst.max(1)) {
            return false;
        }
        self.full_at_ns = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::default();
        assert_eq!((0..100).filter(|_| bucket.take(5000, 10, 20, WHOLE)).count(), 20);
        assert_eq!((0..100).filter(|_| bucket.take(5500, 10, 20, WHOLE)).count(), 5);
        assert_eq!((0..100).filter(|_| bucket.take(60_000, 10, 20, WHOLE)).count(), 20);
    }

    #[test]
    fn a_rate_of_zero_limits_nothing() {
        let mut bucket = Bucket::default();
        assert!((0..10_000).all(|_| bucket.take(0, 0, 0, WHOLE)));
    }

    #[test]
    fn a_hundred_hundredths_are_a_token_and_are_bounded_like_one() {
        let mut bucket = Bucket::default();
        assert_eq!((0..10_000).filter(|_| bucket.take(5000, 10, 20, 1)).count(), 2000);
        assert!(!bucket.take(5000, 10, 20, WHOLE));
        assert!(bucket.take(5100, 10, 20, WHOLE), "a tenth of a second gave one back");
        assert!(!bucket.take(5100, 10, 20, 1));
    }
}
