//! Things of a shard that are not connections (relays, lingering sockets), by a number that epoll carries as a token.
//!
//! Rule: a number is never used again, though its place is: an event of the last tenant finds nobody.

pub struct Numbered<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    len_max: usize,
}

/// Place and generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Number {
    pub place: u32,
    pub generation: u32,
}

impl<T> Numbered<T> {
    pub fn new(len_max: usize) -> Self {
        Self { places: Vec::new(), free: Vec::new(), len_max }
    }

    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.len_max
    }

    /// The number that the next `insert` will give.
    pub fn next(&self) -> Number {
        match self.free.last() {
            Some(&place) => Number { place, generation: self.places[place as usize].0 },
            None => Number { place: self.places.len() as u32, generation: 0 },
        }
    }

    pub fn insert(&mut self, thing: T) -> Number {
        let number = self.next();
        match self.free.pop() {
            Some(place) => self.places[place as usize].1 = Some(thing),
            None => self.places.push((0, Some(thing))),
        }
        number
    }

    pub fn get(&mut self, number: Number) -> Option<&mut T> {
        let (generation, thing) = self.places.get_mut(number.place as usize)?;
        thing.as_mut().filter(|_| *generation == number.generation)
    }

    pub fn remove(&mut self, number: Number) -> Option<T> {
        self.get(number)?;
        let (generation, thing) = &mut self.places[number.place as usize];
        *generation = generation.wrapping_add(1);
        self.free.push(number.place);
        thing.take()
    }

    pub fn iter(&self) -> impl Iterator<Item = (Number, &T)> {
        self.places.iter().enumerate().filter_map(|(place, (generation, thing))| {
            let number = Number { place: place as u32, generation: *generation };
            thing.as_ref().map(|thing| (number, thing))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_never_used_again() {
        let mut things = Numbered::new(2);
        let first = things.insert('a');
        assert_eq!(things.remove(first), Some('a'));
        let second = things.insert('b');
        assert_eq!(second.place, first.place);
        assert!(things.get(first).is_none() && things.remove(first).is_none());
        assert_eq!(things.get(second), Some(&mut 'b'));
    }

    #[test]
    fn the_next_number_is_known_before_it_is_given() {
        let mut things = Numbered::new(2);
        for _ in 0..2 {
            let next = things.next();
            assert_eq!(things.insert(()), next);
        }
        assert!(things.is_full());
        let numbers: Vec<Number> = things.iter().map(|(number, ())| number).collect();
        things.remove(numbers[0]);
        let next = things.next();
        assert_eq!(things.insert(()), next);
        assert_eq!(things.len(), 2);
    }
}
