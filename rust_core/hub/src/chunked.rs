//! A growing table that never moves what it holds.
//!
//! A vector of 20,000 connections doubles by copying and keeps up to half of itself unused; this one grows by a chunk. Rule: an index stays valid for ever.

use std::ops::{Index, IndexMut};

/// Entries a chunk: large enough that the outer vector stays tiny, small enough that the last chunk wastes little.
const CHUNK: usize = 256;

pub(crate) struct Chunked<T> {
    chunks: Vec<Vec<T>>,
}

impl<T> Chunked<T> {
    pub fn new() -> Self {
        Self { chunks: Vec::new() }
    }

    pub fn len(&self) -> usize {
        match self.chunks.last() {
            Some(last) => (self.chunks.len() - 1) * CHUNK + last.len(),
            None => 0,
        }
    }

    /// Returns the index of the new entry.
    pub fn push(&mut self, value: T) -> usize {
        let index = self.len();
        if index.is_multiple_of(CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        self.chunks[index / CHUNK].push(value);
        index
    }

    pub fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / CHUNK)?.get(index % CHUNK)
    }

    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.chunks.get_mut(index / CHUNK)?.get_mut(index % CHUNK)
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten()
    }
}

impl<T> Index<usize> for Chunked<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.chunks[index / CHUNK][index % CHUNK]
    }
}

impl<T> IndexMut<usize> for Chunked<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        &mut self.chunks[index / CHUNK][index % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_stay_valid_across_chunks() {
        let mut table = Chunked::new();
        for value in 0..3 * CHUNK + 1 {
            assert_eq!(table.push(value), value);
        }
        assert_eq!(table.len(), 3 * CHUNK + 1);
        assert_eq!(table.get(2 * CHUNK), Some(&(2 * CHUNK)));
        assert_eq!(table.get(3 * CHUNK + 1), None);
        assert!(table.iter().copied().eq(0..3 * CHUNK + 1));
    }
}
