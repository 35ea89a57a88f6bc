//! What happened, on its way to Python: one queue for all shards, and the eventfd that Python's loop watches.
//!
//! Rule: nothing is dropped. When Python falls behind, the queue is full and shards stop reading from clients, whose own TCP then
//! holds them back; it opens again at half, so that shards are not woken for every event. What is no answer to reading (a
//! connection that ended, what became of a command) is let in all the same: that is bounded by the number of connections, and by what Python
//! itself has asked.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tidegate_hub::Event;

use crate::fds::{Wake, eventfd};

pub struct Events {
    queue: Mutex<Queue>,
    owner: OwnedFd,
    full: AtomicBool,
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    bytes: usize,
}

impl Events {
    pub fn new() -> io::Result<Self> {
        Ok(Self { queue: Mutex::default(), owner: eventfd()?, full: AtomicBool::new(false) })
    }

    pub fn wake(&self) -> Wake {
        Wake::of(&self.owner)
    }

    /// Adds all of `events` and leaves it empty.
    pub fn push(&self, events: &mut Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut queue = self.lock();
        let first = queue.events.is_empty();
        queue.bytes += events.iter().map(bytes_of).sum::<usize>();
        queue.events.extend(events.drain(..));
        if queue.events.len() >= EVENTS_MAX || queue.bytes >= BYTES_MAX {
            self.full.store(true, Ordering::SeqCst);
        }
        drop(queue);
        if first {
            self.wake().signal();
        }
    }

    /// Moves up to `limit` events, or about `BATCH_BYTES_MAX`, to `events`. True when shards that had stopped reading may go on: the caller wakes them.
    pub fn drain(&self, limit: usize, events: &mut Vec<Event>) -> bool {
        let mut queue = self.lock();
        let mut bytes = 0;
        for _ in 0..limit {
            if bytes >= BATCH_BYTES_MAX {
                break;
            }
            let Some(event) = queue.events.pop_front() else { break };
            bytes += bytes_of(&event);
            events.push(event);
        }
        queue.bytes -= bytes;
        if queue.events.is_empty() {
            // under the lock: a push that finds the queue empty signals after this
            self.wake().reset();
            queue.events.shrink_to(EVENTS_KEPT);
        }
        let relieved = queue.events.len() < EVENTS_MAX / 2 && queue.bytes < BYTES_MAX / 2;
        relieved && self.full.load(Ordering::SeqCst) && self.full.swap(false, Ordering::SeqCst)
    }

    /// Whether shards must not read from clients.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    pub fn len(&self) -> usize {
        self.lock().events.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(event: &Event) -> usize {
    size_of::<Event>()
        + match event {
            Event::Upgrade { target, headers, .. } => {
                target.len() + headers.iter().flatten().map(|value| value.len() + size_of::<usize>()).sum::<usize>()
            }
            Event::Message { session, payload, .. } => session.len() + payload.len(),
            Event::Closed { session, .. } | Event::Overdue { session, .. } => session.len(),
            Event::Failed { .. } | Event::Told { .. } => 0,
        }
}

/// A quarter of a second of what Python can take on one core.
const EVENTS_MAX: usize = 16_384;
/// Sixty-four of the largest messages that clients may send by default: more would only wait longer, and out of the cache.
const BYTES_MAX: usize = 4 << 20;
/// What Python may hold of them at once: a few milliseconds of its work.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// What a burst made the queue grow by is given back, except this much.
const EVENTS_KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use tidegate_hub::ConnId;

    use super::*;

    fn message(number: u64, len: usize) -> Event {
        Event::Message { conn: ConnId(number), session: Box::default(), payload: vec![0; len].into(), text: true }
    }

    fn is_signalled(events: &Events) -> bool {
        let mut poll = libc::pollfd { fd: events.wake().fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd, as the count says.
        unsafe { libc::poll(&mut poll, 1, 0) == 1 }
    }

    #[test]
    fn the_eventfd_is_readable_until_the_last_event_is_taken() {
        let events = Events::new().unwrap();
        events.push(&mut vec![message(1, 0), message(2, 0)]);
        let mut taken = Vec::new();
        events.drain(1, &mut taken);
        assert!(is_signalled(&events));
        events.drain(10, &mut taken);
        assert!(!is_signalled(&events));
        assert_eq!(taken.len(), 2);
        events.push(&mut vec![message(3, 0)]);
        assert!(is_signalled(&events));
    }

    #[test]
    fn too_many_events_stop_the_reading_until_half_are_taken() {
        let events = Events::new().unwrap();
        events.push(&mut (0..EVENTS_MAX as u64).map(|number| message(number, 0)).collect());
        assert!(events.is_full());
        let mut taken = Vec::new();
        assert!(!events.drain(EVENTS_MAX / 2, &mut taken));
        assert!(events.is_full(), "half is not under half");
        assert!(events.drain(1, &mut taken), "the shards are to be woken");
        assert!(!events.is_full());
        assert!(!events.drain(1, &mut taken), "once");
    }

    #[test]
    fn few_events_of_many_bytes_stop_it_too_and_none_is_dropped() {
        let events = Events::new().unwrap();
        for number in 0..3 {
            events.push(&mut vec![message(number, BYTES_MAX / 2)]);
        }
        assert!(events.is_full());
        let mut taken = Vec::new();
        assert!(!events.drain(10, &mut taken), "one at a time: a batch is bounded in bytes too");
        assert_eq!(taken.len(), 1);
        assert!(!events.drain(10, &mut taken));
        assert!(events.drain(10, &mut taken));
        assert_eq!(taken.len(), 3);
    }
}
