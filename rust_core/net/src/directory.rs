//! Which shards hold members of a room, so that a message for a room of two wakes one or two shards and not all.
//!
//! Two marks a room and shard: `present`, set and cleared by the shard as its first member comes and its last one goes, and
//! `pending`, the joins submitted to that shard and not yet carried out. A publish goes to shards with either mark.
//!
//! Why it misses nobody: whoever submits a join marks it pending before the shard can see it, and the shard forgets the pending
//! join only after it has set present. Rule: so `opened` comes before `joined`; `emptied` may come late, that costs a useless visit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::{HashMap, hash_map::Entry};

pub struct Directory {
    stripes: Box<[Mutex<Stripe>]>,
}

#[derive(Default)]
struct Stripe {
    present: HashMap<u64, Shards, Keyed>,
    /// Joins under way: short-lived, so its size does not matter.
    pending: HashMap<u64, Vec<(u16, u32)>, Keyed>,
    /// Rooms on more shards than `Shards` can name.
    bitmaps: Bitmaps,
}

impl Directory {
    /// `rooms`: how many to plan for. More fit all the same.
    pub fn new(rooms: u64) -> Self {
        Self { stripes: (0..stripes_for(rooms)).map(|_| Mutex::default()).collect() }
    }

    /// Before the join goes into the shard's mailbox.
    pub fn join_submitted(&self, hash: u64, shard: u16) {
        let mut stripe = self.stripe(hash);
        let joins = stripe.pending.entry(hash).or_default();
        match joins.iter_mut().find(|(of, _)| *of == shard) {
            Some((_, count)) => *count += 1,
            None => joins.push((shard, 1)),
        }
    }

    /// The join was carried out or dropped.
    pub fn joined(&self, hash: u64, shard: u16) {
        let mut stripe = self.stripe(hash);
        let Entry::Occupied(mut entry) = stripe.pending.entry(hash) else {
            return;
        };
        let joins = entry.get_mut();
        if let Some(at) = joins.iter().position(|(of, _)| *of == shard) {
            joins[at].1 -= 1;
            if joins[at].1 == 0 {
                joins.swap_remove(at);
            }
        }
        if joins.is_empty() {
            entry.remove();
        }
    }

    /// The room's first member on this shard.
    pub fn opened(&self, hash: u64, shard: u16) {
        let Stripe { present, bitmaps, .. } = &mut *self.stripe(hash);
        let shards = present.entry(hash).or_insert(Shards::EMPTY);
        *shards = shards.with(shard, bitmaps);
    }

    /// The room's last member on this shard left.
    pub fn emptied(&self, hash: u64, shard: u16) {
        let Stripe { present, bitmaps, .. } = &mut *self.stripe(hash);
        let Entry::Occupied(mut entry) = present.entry(hash) else {
            return;
        };
        let left = entry.get().without(shard, bitmaps);
        if left == Shards::EMPTY {
            entry.remove();
        } else {
            entry.insert(left);
        }
    }

    /// Puts the shards that must see a publish to this room into `shards`, each once.
    pub fn lookup(&self, hash: u64, shards: &mut Vec<u16>) {
        shards.clear();
        let stripe = self.stripe(hash);
        if let Some(present) = stripe.present.get(&hash) {
            present.list(&stripe.bitmaps, shards);
        }
        for (shard, _) in stripe.pending.get(&hash).into_iter().flatten() {
            if !shards.contains(shard) {
                shards.push(*shard);
            }
        }
    }

    /// Rooms that have members anywhere.
    pub fn rooms(&self) -> usize {
        self.stripes.iter().map(|stripe| stripe.lock().unwrap_or_else(PoisonError::into_inner).present.len()).sum()
    }

    /// The bits between those the map uses for the bucket (low) and for its tags (the top seven).
    fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        let stripe = &self.stripes[(hash >> 32) as u16 as usize % self.stripes.len()];
        stripe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many that the maps are nearly full when all the planned rooms exist: a map doubles, and one that just has keeps half of itself unused.
/// Twelve bytes a room less at a million than with a fixed number.
fn stripes_for(rooms: u64) -> usize {
    let planned = |buckets: u64| rooms.div_ceil(buckets / 8 * 7 / 16 * 15).max(STRIPES_MIN);
    (5..32).map(|power| planned(1 << power)).take_while(|stripes| *stripes > STRIPES_MIN).last().unwrap_or(STRIPES_MIN)
        as usize
}

/// A set of shards in eight bytes: with its key an entry of the map is 17 bytes, so a million rooms cost 20 to 40 MB however
/// the map happens to be filled. Bit 63: the rest is the number of a bitmap; else three bits of length, then five times 12 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shards(u64);

impl Shards {
    const EMPTY: Self = Self(0);

    fn with(self, shard: u16, bitmaps: &mut Bitmaps) -> Self {
        if let Some(bitmap) = self.bitmap() {
            bitmaps.set(bitmap, shard);
            return self;
        }
        let count = self.count();
        if self.inline().any(|one| one == shard) {
            return self;
        }
        if count == INLINE_MAX {
            let bitmap = bitmaps.open(self.inline().chain([shard]));
            return Self(ON_BITMAP | u64::from(bitmap));
        }
        Self::of(self.inline().chain([shard]))
    }

    fn without(self, shard: u16, bitmaps: &mut Bitmaps) -> Self {
        let Some(bitmap) = self.bitmap() else {
            return Self::of(self.inline().filter(|one| *one != shard));
        };
        // back to the short form only at half its length, so that one member coming and going does not move it each time
        let few = bitmaps.clear(bitmap, shard, INLINE_MAX / 2);
        few.map_or(self, |few| Self::of(few.into_iter()))
    }

    fn list(self, bitmaps: &Bitmaps, shards: &mut Vec<u16>) {
        match self.bitmap() {
            Some(bitmap) => bitmaps.list(bitmap, shards),
            None => shards.extend(self.inline()),
        }
    }

    fn of(shards: impl Iterator<Item = u16>) -> Self {
        let packed = shards
            .enumerate()
            .fold((0, 0u64), |(_, bits), (at, shard)| (at as u64 + 1, bits | u64::from(shard) << (12 * at)));
        Self(packed.0 << LENGTH_SHIFT | packed.1)
    }

    fn bitmap(self) -> Option<u32> {
        (self.0 & ON_BITMAP != 0).then_some(self.0 as u32)
    }

    fn count(self) -> usize {
        (self.0 >> LENGTH_SHIFT & 7) as usize
    }

    fn inline(self) -> impl Iterator<Item = u16> {
        (0..self.count()).map(move |at| (self.0 >> (12 * at) & 0xfff) as u16)
    }
}

/// Sets of any size, by number; numbers are used again.
#[derive(Default)]
struct Bitmaps {
    maps: Vec<Vec<u64>>,
    free: Vec<u32>,
}

impl Bitmaps {
    fn open(&mut self, shards: impl Iterator<Item = u16>) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.maps.push(Vec::new());
            self.maps.len() as u32 - 1
        });
        shards.for_each(|shard| self.set(number, shard));
        number
    }

    fn set(&mut self, number: u32, shard: u16) {
        let map = &mut self.maps[number as usize];
        let word = usize::from(shard / 64);
        if map.len() <= word {
            map.resize(word + 1, 0);
        }
        map[word] |= 1 << (shard % 64);
    }

    /// When no more than `few` are left, gives them back and forgets the map.
    fn clear(&mut self, number: u32, shard: u16, few: usize) -> Option<Vec<u16>> {
        let map = &mut self.maps[number as usize];
        if let Some(word) = map.get_mut(usize::from(shard / 64)) {
            *word &= !(1 << (shard % 64));
        }
        if map.iter().map(|word| word.count_ones() as usize).sum::<usize>() > few {
            return None;
        }
        let mut left = Vec::new();
        self.list(number, &mut left);
        self.maps[number as usize] = Vec::new();
        self.free.push(number);
        Some(left)
    }

    fn list(&self, number: u32, shards: &mut Vec<u16>) {
        for (at, word) in self.maps[number as usize].iter().enumerate() {
            shards.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| (at * 64 + bit) as u16));
        }
    }
}

/// The keys are hashes already (keyed, so that nobody can choose them): hashing them again would buy nothing.
#[derive(Clone, Copy, Default)]
struct Keyed;

struct AsIs(u64);

impl std::hash::BuildHasher for Keyed {
    type Hasher = AsIs;

    fn build_hasher(&self) -> AsIs {
        AsIs(0)
    }
}

impl std::hash::Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Locks: many times the shards of a usual machine, so that two of them rarely meet.
const STRIPES_MIN: u64 = 64;
const INLINE_MAX: usize = 5;
const ON_BITMAP: u64 = 1 << 63;
const LENGTH_SHIFT: u32 = 60;

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        hash::{BuildHasher, RandomState},
        mem,
    };

    use super::*;

    fn shards_of(directory: &Directory, hash: u64) -> Vec<u16> {
        let mut shards = Vec::new();
        directory.lookup(hash, &mut shards);
        shards.sort_unstable();
        shards
    }

    #[test]
    fn a_publish_right_after_a_join_was_submitted_visits_its_shard() {
        let directory = Directory::new(0);
        directory.join_submitted(1, 3);
        assert_eq!(shards_of(&directory, 1), [3], "submitted, not yet carried out");
        directory.opened(1, 3);
        assert_eq!(shards_of(&directory, 1), [3], "each shard once");
        directory.joined(1, 3);
        assert_eq!(shards_of(&directory, 1), [3]);
    }

    #[test]
    fn a_join_that_was_dropped_leaves_no_mark() {
        let directory = Directory::new(0);
        directory.join_submitted(1, 3);
        directory.joined(1, 3);
        assert!(shards_of(&directory, 1).is_empty());
    }

    #[test]
    fn a_second_join_on_its_way_survives_the_leaving_of_the_first_member() {
        let directory = Directory::new(0);
        directory.join_submitted(1, 3);
        directory.opened(1, 3);
        directory.joined(1, 3);
        directory.join_submitted(1, 3);
        directory.emptied(1, 3);
        assert_eq!(shards_of(&directory, 1), [3], "the first left while the second was on its way");
        directory.opened(1, 3);
        directory.joined(1, 3);
        assert_eq!(shards_of(&directory, 1), [3]);
    }

    #[test]
    fn joins_of_two_shards_are_counted_apart() {
        let directory = Directory::new(0);
        directory.join_submitted(1, 3);
        directory.join_submitted(1, 4);
        directory.join_submitted(1, 3);
        directory.joined(1, 3);
        assert_eq!(shards_of(&directory, 1), [3, 4]);
        directory.joined(1, 3);
        assert_eq!(shards_of(&directory, 1), [4]);
    }

    #[test]
    fn what_was_never_submitted_is_forgotten_without_harm() {
        let directory = Directory::new(0);
        directory.joined(1, 3);
        directory.emptied(1, 3);
        assert!(shards_of(&directory, 1).is_empty());
    }

    #[test]
    fn any_set_of_shards_is_kept_exactly_as_rooms_open_and_empty() {
        let directory = Directory::new(0);
        let (seed, mut model) = (RandomState::new().hash_one(0), BTreeSet::new());
        println!("seed {seed}");
        let mut state = seed | 1;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // few rooms and a drifting number of shards, so that short and long forms change into each other often
            let (hash, shard) = (state >> 62, (state >> 40) as u16 % if state >> 61 & 1 == 0 { 12 } else { 4096 });
            if state >> 33 & 1 == 0 {
                directory.opened(hash, shard);
                model.insert((hash, shard));
            } else {
                let shard = model.iter().find(|(of, _)| *of == hash).map_or(shard, |(_, first)| *first);
                directory.emptied(hash, shard);
                model.remove(&(hash, shard));
            }
            let expected: Vec<u16> = model.iter().filter(|(of, _)| *of == hash).map(|(_, shard)| *shard).collect();
            assert_eq!(shards_of(&directory, hash), expected);
        }
    }

    #[test]
    fn maps_are_nearly_full_with_the_planned_rooms() {
        for rooms in [100_000, 300_000, 600_000, 1_000_000] {
            let stripes = stripes_for(rooms);
            let of_one = rooms as usize / stripes;
            let buckets = HashMap::<u64, Shards, Keyed>::with_capacity_and_hasher(of_one, Keyed).capacity() / 7 * 8;
            assert!(
                (64..=128).contains(&stripes) && of_one * 100 > buckets * 78,
                "{rooms} rooms: {of_one} of {buckets} in {stripes}"
            );
        }
        assert_eq!(stripes_for(0), 64);
    }

    #[test]
    fn an_entry_of_the_map_is_sixteen_bytes() {
        assert_eq!(mem::size_of::<(u64, Shards)>(), 16);
    }
}
