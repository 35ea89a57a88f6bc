//! Sockets whose connection is over and whose last bytes are still on the way.
//!
//! Why: closing a socket that has unread bytes sends a reset, and a reset makes the peer throw away the answer it has not read yet
//! (RFC 9112 section 9.6). So we end our half, read and forget what comes, and close when the peer has ended its half or time is up.
//! Rule: few and short; when there are too many, the newcomer is closed at once.

use std::{collections::VecDeque, os::fd::AsRawFd};

use tidegate_hub::Millis;

use crate::{
    numbered::{Number, Numbered},
    relay::Client,
    socket::{self, Moved},
};

pub struct Lingers {
    clients: Numbered<Lingering>,
    /// In the order of their deadlines, since all have the same time. May name some that are gone.
    deadlines: VecDeque<(Millis, Number)>,
}

struct Lingering {
    client: Client,
    ended: bool,
}

impl Lingers {
    pub fn new(len_max: usize) -> Self {
        Self { clients: Numbered::new(len_max), deadlines: VecDeque::new() }
    }

    /// Sees a socket off. If it stays for a while, `watch` is told the number under which its events must come.
    pub fn see_off(&mut self, mut client: Client, scratch: &mut [u8], now: Millis, watch: impl FnOnce(Number) -> bool) {
        if let Some(tls) = &mut client.tls {
            tls.end(client.socket.as_raw_fd());
        }
        let mut lingering = Lingering { client, ended: false };
        if lingering.turn(scratch) || self.clients.is_full() {
            return;
        }
        let number = self.clients.next();
        if watch(number) {
            self.clients.insert(lingering);
            self.deadlines.push_back((now + LINGER_MS, number));
        }
    }

    pub fn handle_ready(&mut self, number: Number, scratch: &mut [u8]) {
        if self.clients.get(number).is_some_and(|lingering| lingering.turn(scratch)) {
            self.clients.remove(number);
        }
    }

    pub fn handle_timeout(&mut self, now: Millis) {
        while let Some((_, number)) = self.deadlines.front().copied().filter(|(at, _)| *at <= now) {
            self.deadlines.pop_front();
            self.clients.remove(number);
        }
    }

    pub fn poll_timeout(&self) -> Option<Millis> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    pub fn is_empty(&self) -> bool {
        self.clients.len() == 0
    }
}

impl Lingering {
    /// True when it may be closed.
    fn turn(&mut self, scratch: &mut [u8]) -> bool {
        if !self.client.flush() {
            return true;
        }
        if !self.ended && !self.client.is_blocked() {
            socket::end_writing(self.client.socket.as_raw_fd());
            self.ended = true;
        }
        for _ in 0..READS_A_TURN {
            match socket::read(self.client.socket.as_raw_fd(), scratch) {
                Moved::Bytes(_) => {}
                Moved::Blocked => return false,
                Moved::End => return self.ended,
                Moved::Broken => return true,
            }
        }
        // it sends faster than an honest client that has been refused would
        true
    }
}

/// A few round trips of a slow network.
const LINGER_MS: Millis = 2_000;
/// Of 64 KiB each.
const READS_A_TURN: usize = 4;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    fn see_off(lingers: &mut Lingers, near: UnixStream) -> Option<Number> {
        let mut given = None;
        let client = Client { socket: near.into(), tls: None };
        lingers.see_off(client, &mut [0; 1024], 0, |number| {
            given = Some(number);
            true
        });
        given
    }

    #[test]
    fn a_peer_that_has_ended_too_is_closed_at_once() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert_eq!(see_off(&mut Lingers::new(8), near), None);
    }

    #[test]
    fn a_peer_that_still_sends_reads_the_answer_and_an_end() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        far.write_all(b"unread").unwrap();
        near.write_all(b"no").unwrap();
        let mut lingers = Lingers::new(8);
        let number = see_off(&mut lingers, near).unwrap();
        let mut answer = String::new();
        far.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "no");
        far.write_all(b"more").unwrap();
        lingers.handle_ready(number, &mut [0; 1024]);
        assert!(!lingers.is_empty());
        drop(far);
        lingers.handle_ready(number, &mut [0; 1024]);
        assert!(lingers.is_empty());
    }

    #[test]
    fn one_that_never_ends_is_closed_when_its_time_is_up() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut lingers = Lingers::new(8);
        see_off(&mut lingers, near).unwrap();
        assert_eq!(lingers.poll_timeout(), Some(LINGER_MS));
        lingers.handle_timeout(LINGER_MS - 1);
        assert!(!lingers.is_empty());
        lingers.handle_timeout(LINGER_MS);
        assert!(lingers.is_empty() && lingers.poll_timeout().is_none());
    }

    #[test]
    fn when_too_many_linger_the_newcomer_is_closed_at_once() {
        let mut lingers = Lingers::new(1);
        let (one, _one) = UnixStream::pair().unwrap();
        let (two, mut far) = UnixStream::pair().unwrap();
        assert!(see_off(&mut lingers, one).is_some());
        assert!(see_off(&mut lingers, two).is_none());
        assert_eq!(far.read(&mut [0; 8]).unwrap(), 0);
    }
}
