//! Plain HTTP on the WebSocket's port: bytes are relayed between the client and the HTTP app's UNIX socket, both ways.
//!
//! Why a relay and not a passed socket: the client's side may be TLS, and the app's server stays an ordinary one. Rule: a direction
//! reads only when its last bytes are written, so each side is pressed by the other and a relay holds one read at most.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use tidegate_hub::Millis;

use crate::{
    limit::Debt,
    socket::{self, Moved},
    tls::{Received, Tls},
};

pub struct Relay {
    client: Client,
    app: OwnedFd,
    up: Pipe,
    down: Pipe,
    pub debt: Option<Box<Debt>>,
    /// When bytes last moved.
    pub active_at: Millis,
    /// Waits for its turn.
    pub queued: bool,
}

/// A socket that may speak TLS.
pub struct Client {
    pub socket: OwnedFd,
    pub tls: Option<Box<Tls>>,
}

/// One direction.
#[derive(Default)]
struct Pipe {
    waiting: Vec<u8>,
    written: usize,
    /// The source sends no more.
    ended: bool,
    /// The sink has been told.
    closed: bool,
}

/// What a turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Wait for an edge.
    Idle,
    /// There is more to do at once.
    More,
    /// The app has said all and it is with the client's socket: let it linger.
    Done,
    /// One side is gone.
    Broken,
}

impl Relay {
    /// `head` is what has been read from the client already.
    pub fn new(client: Client, app: OwnedFd, head: Vec<u8>, debt: Option<Box<Debt>>, now: Millis) -> Self {
        let up = Pipe { waiting: head, ..Pipe::default() };
        Self { client, app, up, down: Pipe::default(), debt, active_at: now, queued: false }
    }

    pub fn app_fd(&self) -> RawFd {
        self.app.as_raw_fd()
    }

    pub fn client_fd(&self) -> RawFd {
        self.client.socket.as_raw_fd()
    }

    pub fn into_client(self) -> (Client, Option<Box<Debt>>) {
        (self.client, self.debt)
    }

    /// Moves what can be moved, up to a bound.
    pub fn turn(&mut self, scratch: &mut [u8], now: Millis) -> Turn {
        for _ in 0..READS_A_TURN {
            let up = self.move_up(scratch);
            let down = self.move_down(scratch);
            if up == Progress::Broken || down == Progress::Broken {
                return Turn::Broken;
            }
            if self.down.closed {
                return Turn::Done;
            }
            if up == Progress::Blocked && down == Progress::Blocked {
                return Turn::Idle;
            }
            self.active_at = now;
        }
        Turn::More
    }

    fn move_up(&mut self, scratch: &mut [u8]) -> Progress {
        let app = self.app.as_raw_fd();
        if !self.up.flush(|part| socket::write(app, &[part])) {
            // the app wants no more of the request; its answer still counts
            self.up = Pipe { ended: true, closed: true, ..Pipe::default() };
        }
        if !self.up.wants_more() {
            return self.up.close_if_over(|| socket::end_writing(app));
        }
        let mut plain = Vec::new();
        match self.client.read(scratch, &mut plain) {
            Moved::Bytes(_) => {}
            Moved::End => self.up.ended = true,
            Moved::Blocked => return Progress::Blocked,
            Moved::Broken => return Progress::Broken,
        }
        self.up.waiting = plain;
        Progress::Made
    }

    fn move_down(&mut self, scratch: &mut [u8]) -> Progress {
        let client = &mut self.client;
        if !client.flush() || !self.down.flush(|part| client.write(part)) {
            return Progress::Broken;
        }
        if !self.down.wants_more() {
            return self.down.close_if_over(|| {});
        }
        match socket::read(self.app.as_raw_fd(), scratch) {
            Moved::Bytes(count) => self.down.waiting = scratch[..count].to_vec(),
            Moved::Blocked => return Progress::Blocked,
            // an app that closes with part of the request unread resets, after all that it has said
            Moved::End | Moved::Broken => self.down.ended = true,
        }
        Progress::Made
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Made,
    Blocked,
    Broken,
}

impl Pipe {
    /// False when the sink is gone.
    fn flush(&mut self, mut write: impl FnMut(&[u8]) -> Moved) -> bool {
        while self.written < self.waiting.len() {
            match write(&self.waiting[self.written..]) {
                Moved::Bytes(count) => self.written += count,
                Moved::Blocked => return true,
                Moved::End | Moved::Broken => return false,
            }
        }
        // an idle relay owns no buffer
        (self.waiting, self.written) = (Vec::new(), 0);
        true
    }

    fn wants_more(&self) -> bool {
        self.waiting.is_empty() && !self.ended
    }

    fn close_if_over(&mut self, close: impl FnOnce()) -> Progress {
        if !self.ended || self.closed || !self.waiting.is_empty() {
            return Progress::Blocked;
        }
        close();
        self.closed = true;
        Progress::Made
    }
}

impl Client {
    /// Plain text that the client sent, added to `plain`. `Bytes(0)`: some of TLS's own, or nothing of use.
    pub fn read(&mut self, scratch: &mut [u8], plain: &mut Vec<u8>) -> Moved {
        let fd = self.socket.as_raw_fd();
        let moved = socket::read(fd, scratch);
        let Moved::Bytes(count) = moved else {
            return moved;
        };
        let Some(tls) = &mut self.tls else {
            plain.extend_from_slice(&scratch[..count]);
            return moved;
        };
        match tls.receive(fd, &scratch[..count], plain) {
            Received::Open => Moved::Bytes(plain.len()),
            Received::Ended => Moved::End,
            Received::Failed => Moved::Broken,
        }
    }

    /// False when the socket is gone.
    pub fn flush(&mut self) -> bool {
        let fd = self.socket.as_raw_fd();
        self.tls.as_mut().is_none_or(|tls| tls.flush(fd) != Moved::Broken)
    }

    pub fn write(&mut self, part: &[u8]) -> Moved {
        let fd = self.socket.as_raw_fd();
        match &mut self.tls {
            Some(tls) => tls.write(fd, &[part]),
            None => socket::write(fd, &[part]),
        }
    }

    /// TLS still holds bytes that the socket did not take.
    pub fn is_blocked(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_blocked())
    }
}

/// Of 64 KiB each: a large download takes its turns like everybody else.
const READS_A_TURN: usize = 4;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
    };

    use super::*;

    /// A relay between two sockets, and the far ends of both.
    fn relay(head: &[u8]) -> (Relay, UnixStream, UnixStream) {
        let (client, browser) = UnixStream::pair().unwrap();
        let (app, server) = UnixStream::pair().unwrap();
        let client = Client { socket: client.into(), tls: None };
        (Relay::new(client, app.into(), head.to_vec(), None, 0), browser, server)
    }

    fn turn(relay: &mut Relay) -> Turn {
        relay.turn(&mut vec![0; 64 * 1024], 0)
    }

    fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_head_comes_first_and_the_body_follows() {
        let (mut relay, mut browser, mut server) = relay(b"POST / ");
        browser.write_all(b"body").unwrap();
        assert_eq!(turn(&mut relay), Turn::Idle);
        assert_eq!(read(&mut server, 11), b"POST / body");
        server.write_all(b"answer").unwrap();
        assert_eq!(turn(&mut relay), Turn::Idle);
        assert_eq!(read(&mut browser, 6), b"answer");
    }

    #[test]
    fn a_client_that_ends_its_half_still_gets_the_answer() {
        let (mut relay, mut browser, mut server) = relay(b"GET / ");
        browser.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(turn(&mut relay), Turn::Idle);
        let mut request = String::new();
        server.read_to_string(&mut request).unwrap();
        assert_eq!(request, "GET / ");
        server.write_all(b"late").unwrap();
        drop(server);
        assert_eq!(turn(&mut relay), Turn::Done);
        assert_eq!(read(&mut browser, 4), b"late");
    }

    #[test]
    fn an_app_that_answers_without_reading_the_request_is_heard() {
        let (mut relay, mut browser, mut server) = relay(b"POST / and a body");
        assert_eq!(turn(&mut relay), Turn::Idle);
        server.write_all(b"413").unwrap();
        drop(server);
        browser.write_all(b"more of the body").unwrap();
        assert_eq!(turn(&mut relay), Turn::Done);
        assert_eq!(read(&mut browser, 3), b"413");
    }

    #[test]
    fn a_client_that_does_not_read_presses_the_app_and_loses_nothing() {
        let (mut relay, mut browser, server) = relay(b"");
        server.set_nonblocking(true).unwrap();
        let (mut sent, chunk) = (0, vec![7; 64 * 1024]);
        // until neither the app's socket nor the relay takes more
        let mut stalled = 0;
        while stalled < 3 {
            match (&server).write(&chunk) {
                Ok(count) => (sent, stalled) = (sent + count, 0),
                Err(_) => stalled += 1,
            }
            turn(&mut relay);
        }
        assert!(relay.down.waiting.len() <= 64 * 1024, "a relay holds one read at most");
        let mut got = 0;
        browser.set_nonblocking(true).unwrap();
        while got < sent {
            got += browser.read(&mut vec![0; 64 * 1024]).unwrap_or(0);
            turn(&mut relay);
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_client_that_breaks_ends_the_relay() {
        let (mut relay, browser, server) = relay(b"GET / ");
        turn(&mut relay);
        drop(browser);
        (&server).write_all(b"answer").unwrap();
        assert_eq!(turn(&mut relay), Turn::Broken);
    }
}
