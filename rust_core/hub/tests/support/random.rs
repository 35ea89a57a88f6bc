//! Random numbers from a printed seed.

/// SplitMix64: one word of state, and every seed is as good as any other.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// 0 to `end`, exclusive.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// Seeds to run: `TIDEGATE_SEED` replays one, `TIDEGATE_SEEDS` asks for more than `count`.
#[expect(clippy::disallowed_methods, reason = "a test is replayed by its environment")]
pub fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("TIDEGATE_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("TIDEGATE_SEEDS").unwrap_or(count)).collect(),
    }
}

/// Runs `test` for each seed and says which one failed.
pub fn for_each_seed(count: u64, test: impl Fn(u64)) {
    for seed in seeds(count) {
        let replay = Replay(seed);
        test(seed);
        std::mem::forget(replay);
    }
}

/// Dropped only by a panic.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        eprintln!("failed; replay with TIDEGATE_SEED={}", self.0);
    }
}
