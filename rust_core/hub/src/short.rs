//! A list of room or slot numbers in 16 bytes: three in place, more on the heap.
//!
//! Most lists of a gateway are this short: a client's own rooms are three, and its user's room has one member. There are two such lists a
//! connection, so eight bytes more would be sixteen.

use std::ops::Deref;

const INLINE_MAX: usize = 3;

#[derive(Clone, Debug)]
pub(crate) enum Short {
    Inline {
        len: u8,
        numbers: [u32; INLINE_MAX],
    },
    #[expect(clippy::box_collection, reason = "a vector is 24 bytes, and the list must fit into 16")]
    Heap(Box<Vec<u32>>),
}

impl Short {
    pub const EMPTY: Self = Short::Inline { len: 0, numbers: [0; INLINE_MAX] };

    pub fn push(&mut self, number: u32) {
        self.insert(self.len(), number);
    }

    /// Puts `number` at `at`, before what is there.
    pub fn insert(&mut self, at: usize, number: u32) {
        match self {
            Short::Inline { len, numbers } if usize::from(*len) < INLINE_MAX => {
                numbers.copy_within(at..usize::from(*len), at + 1);
                numbers[at] = number;
                *len += 1;
            }
            Short::Inline { .. } => {
                let mut list = self.to_vec();
                list.insert(at, number);
                *self = Short::Heap(Box::new(list));
            }
            Short::Heap(list) => list.insert(at, number),
        }
    }

    /// Takes out what is at `at`, and keeps the order. Shorter lists come back from the heap well below what fits, or one that
    /// changes to and fro would move each time.
    pub fn remove(&mut self, at: usize) {
        match self {
            Short::Inline { len, numbers } => {
                numbers.copy_within(at + 1..usize::from(*len), at);
                *len -= 1;
            }
            Short::Heap(list) => {
                list.remove(at);
                if list.len() < INLINE_MAX {
                    *self = list.iter().copied().collect();
                }
            }
        }
    }
}

impl Default for Short {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Deref for Short {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Short::Inline { len, numbers } => &numbers[..usize::from(*len)],
            Short::Heap(list) => list,
        }
    }
}

impl FromIterator<u32> for Short {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let mut list = Self::EMPTY;
        numbers.into_iter().for_each(|number| list.push(number));
        list
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_short_list_does_what_a_vector_does(steps: Vec<(bool, usize, u32)>) {
            let (mut list, mut model) = (Short::EMPTY, Vec::new());
            for (adds, at, number) in steps {
                if adds {
                    let at = at % (model.len() + 1);
                    list.insert(at, number);
                    model.insert(at, number);
                } else if !model.is_empty() {
                    let at = at % model.len();
                    list.remove(at);
                    model.remove(at);
                }
                prop_assert_eq!(&list[..], &model[..]);
            }
        }
    }

    #[test]
    fn a_list_is_sixteen_bytes_and_three_numbers_need_no_more() {
        assert_eq!(size_of::<Short>(), 16);
        let mut list: Short = [1, 2, 3].into_iter().collect();
        assert!(matches!(list, Short::Inline { .. }));
        list.push(4);
        assert!(matches!(list, Short::Heap(_)));
        (0..2).for_each(|_| list.remove(0));
        assert!(matches!(list, Short::Inline { .. }) && *list == [3, 4]);
    }
}
