//! One thread of the limit program: its own descriptor table, listener, epoll, connections and rooms.
//!
//! Rule: no lock, allocation or table look-up on the way of a message to a member that keeps up; just `send`. A member whose
//! socket is full is owed the rest and gets it when the kernel says so; it is never skipped, so every figure counts whole deliveries.

use std::io;
use std::net::SocketAddrV4;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::broadcast::Broadcast;
use crate::connection::{CLOSE, Connection, State, TEXT, client_frame};
use crate::nats::Subscription;
use crate::rooms::Rooms;
use crate::setup::{Counters, Order, Setup, add};
use crate::sys::{self, Epoll, Mailbox};
use crate::upgrade;

pub struct Worker {
    setup: Arc<Setup>,
    mailbox: Arc<Mailbox<Order>>,
    counters: Arc<Counters>,
    epoll: Epoll,
    listener: RawFd,
    subscription: Option<Subscription>,
    connections: Vec<Connection>,
    rooms: Rooms,
    buffer: Vec<u8>,
    pings: Pings,
}

/// A sweep over the table, spread evenly over the interval.
struct Pings {
    cursor: usize,
    next_ns: u64,
}

/// Bytes read by one call; a client's messages are small.
const READ_BYTES: usize = 64 * 1024;

/// A client that has sent this much of an incomplete request or frame is closed.
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// Accepted in one go before members are served again.
const ACCEPTS_PER_EVENT: usize = 64;

/// Steps of a ping sweep: a second's load is even, and a step's timer costs nothing.
const PING_STEPS: u64 = 256;

const PING_FRAME: [u8; 2] = [0x89, 0];

impl Worker {
    /// Must be called on the thread that will `run` it: descriptors belong to the thread.
    pub fn open(setup: Arc<Setup>, mailbox: Arc<Mailbox<Order>>) -> io::Result<Self> {
        sys::keep_only(mailbox.wake)?;
        let epoll = Epoll::new()?;
        epoll.add(mailbox.wake, sys::LEVEL_EVENTS)?;
        let listener = listen(setup.address)?;
        epoll.add(listener, sys::LEVEL_EVENTS)?;
        let subscription =
            setup.feed.as_ref().map(|feed| Subscription::open(&feed.server, &feed.subject)).transpose()?;
        if let Some(subscription) = &subscription {
            epoll.add(subscription.descriptor(), sys::LEVEL_EVENTS)?;
        }
        Ok(Self {
            setup,
            mailbox,
            counters: Arc::default(),
            epoll,
            listener,
            subscription,
            connections: Vec::new(),
            rooms: Rooms::default(),
            buffer: vec![0; READ_BYTES],
            pings: Pings { cursor: 0, next_ns: sys::now_ns() },
        })
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Runs until something breaks that no single client can be blamed for.
    pub fn run(mut self) -> io::Error {
        let step_ms = (self.setup.ping_ms / PING_STEPS).max(1) as i32;
        let timeout_ms = if self.setup.ping_ms == 0 { -1 } else { step_ms };
        loop {
            let count = match self.epoll.wait(timeout_ms) {
                Ok(count) => count,
                Err(error) => return error,
            };
            for index in 0..count {
                let (fd, events) = self.epoll.event(index);
                if let Err(error) = self.serve(fd, events) {
                    return error;
                }
            }
            self.ping_some();
        }
    }

    fn serve(&mut self, fd: RawFd, events: i32) -> io::Result<()> {
        if fd == self.listener {
            return self.accept();
        }
        if fd == self.mailbox.wake {
            for order in self.mailbox.take() {
                self.publish(&order.broadcast);
                let _ = order.done.send(());
            }
            return Ok(());
        }
        if self.subscription.as_ref().is_some_and(|subscription| subscription.descriptor() == fd) {
            return self.forward();
        }
        let broken = (events & !libc::EPOLLOUT != 0 && self.read(fd).is_err())
            || (events & libc::EPOLLOUT != 0 && self.flush(fd).is_err());
        if broken {
            self.close(fd);
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_EVENT {
            // SAFETY: null pointers mean that the peer's address is not asked for
            let fd = unsafe {
                libc::accept4(self.listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_NONBLOCK)
            };
            if fd < 0 {
                return ignore_transient(io::Error::last_os_error());
            }
            let slot = fd as usize;
            if slot >= self.connections.len() {
                self.connections.resize_with(slot + 1, Connection::default);
            }
            self.connections[slot].state = State::Handshake;
            self.epoll.add(fd, sys::CONNECTION_EVENTS)?;
        }
        Ok(())
    }

    /// Reads until the socket is empty: a read shorter than the buffer says so without a further call.
    fn read(&mut self, fd: RawFd) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = loop {
            match sys::receive(fd, &mut buffer) {
                Ok(None) => break Ok(()),
                Ok(Some(0)) => break Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(Some(count)) => {
                    if let Err(error) = self.take_bytes(fd, &buffer[..count]) {
                        break Err(error);
                    }
                    if count < buffer.len() {
                        break Ok(());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        self.buffer = buffer;
        result
    }

    fn take_bytes(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<()> {
        let trouble = self.connections[fd as usize].trouble.as_mut();
        let Some(unread) = trouble.map(|trouble| &mut trouble.unread).filter(|unread| !unread.is_empty()) else {
            let used = self.take_whole(fd, bytes)?;
            return self.keep_unread(fd, &bytes[used..]);
        };
        let mut joined = std::mem::take(unread);
        joined.extend_from_slice(bytes);
        let used = self.take_whole(fd, &joined)?;
        self.keep_unread(fd, &joined[used..])
    }

    fn keep_unread(&mut self, fd: RawFd, rest: &[u8]) -> io::Result<()> {
        if rest.len() > UNREAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if !rest.is_empty() {
            let trouble = self.connections[fd as usize].trouble.get_or_insert_default();
            trouble.unread = rest.to_vec();
        }
        Ok(())
    }

    /// Takes the request or the whole frames at the start of `bytes`, and says how many bytes those were.
    fn take_whole(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        if self.connections[fd as usize].state == State::Handshake {
            used = self.shake_hands(fd, bytes)?;
            if used == 0 {
                return Ok(0);
            }
        }
        while let Some((opcode, length)) = client_frame(&bytes[used..]) {
            used += length;
            match opcode {
                TEXT => self.answer(fd)?,
                CLOSE => return Err(io::ErrorKind::ConnectionAborted.into()),
                _ => {}
            }
        }
        Ok(used)
    }

    fn shake_hands(&mut self, fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
        let upgrade = match upgrade::answer(bytes) {
            Ok(Some(upgrade)) => upgrade,
            Ok(None) => return Ok(0),
            Err(_) => {
                add(&self.counters.refused, 1);
                sys::send(fd, upgrade::REFUSAL)?;
                return Err(io::ErrorKind::InvalidData.into());
            }
        };
        let joined = upgrade.rooms.iter().map(|room| self.rooms.join(room, fd)).collect();
        let connection = &mut self.connections[fd as usize];
        connection.rooms = joined;
        connection.state = State::Open;
        add(&self.counters.open, 1);
        add(&self.counters.handshakes, 1);
        let length = upgrade.answer.len();
        self.send_or_owe(fd, &Arc::new(upgrade.answer), 0..length)?;
        Ok(upgrade.length)
    }

    fn answer(&mut self, fd: RawFd) -> io::Result<()> {
        add(&self.counters.texts, 1);
        let Some(frame) = self.setup.answer.clone() else {
            return Ok(());
        };
        let length = frame.len();
        self.send_or_owe(fd, &frame, 0..length)
    }

    fn forward(&mut self) -> io::Result<()> {
        let Some(mut subscription) = self.subscription.take() else {
            return Ok(());
        };
        let setup = Arc::clone(&self.setup);
        let fixed = setup.feed.as_ref().and_then(|feed| feed.room.as_deref());
        let result = subscription.read(|payload| {
            if let Some(room) = fixed.or_else(|| room_of(payload)) {
                self.publish(&Broadcast::single(room, payload));
            }
        });
        self.subscription = Some(subscription);
        result
    }

    fn publish(&mut self, broadcast: &Broadcast) {
        let Some(room) = self.rooms.find(&broadcast.room) else {
            return;
        };
        let members = self.rooms.take_members(room);
        let mut lost = Vec::new();
        if broadcast.member_by_member {
            for &fd in &members {
                for send in &broadcast.sends {
                    self.deliver(fd, broadcast, send, &mut lost);
                }
            }
        } else {
            for send in &broadcast.sends {
                for &fd in &members {
                    self.deliver(fd, broadcast, send, &mut lost);
                }
            }
        }
        add(&self.counters.sends, (members.len() * broadcast.sends.len()) as u64);
        add(&self.counters.bytes, (members.len() * broadcast.frames.len()) as u64);
        self.rooms.give_back(room, members);
        for fd in lost {
            self.close(fd);
        }
    }

    fn deliver(&mut self, fd: RawFd, broadcast: &Broadcast, send: &Range<usize>, lost: &mut Vec<RawFd>) {
        if self.send_or_owe(fd, &broadcast.frames, send.clone()).is_err() {
            lost.push(fd);
        }
    }

    fn send_or_owe(&mut self, fd: RawFd, frames: &Arc<Vec<u8>>, range: Range<usize>) -> io::Result<()> {
        // the table is looked at only while somebody is behind: a cache miss for each delivery is no part of the limit
        if self.counters.behind.load(Relaxed) > 0
            && let Some(trouble) = &mut self.connections[fd as usize].trouble
            && !trouble.owed.is_empty()
        {
            trouble.owed.push_back((Arc::clone(frames), range));
            return Ok(());
        }
        let sent = sys::send(fd, &frames[range.clone()])?.unwrap_or(0);
        if sent < range.len() {
            add(&self.counters.would_block, 1);
            add(&self.counters.behind, 1);
            let trouble = self.connections[fd as usize].trouble.get_or_insert_default();
            trouble.owed.push_back((Arc::clone(frames), range.start + sent..range.end));
        }
        Ok(())
    }

    fn flush(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(trouble) = &mut self.connections[fd as usize].trouble else {
            return Ok(());
        };
        while let Some((frames, range)) = trouble.owed.front_mut() {
            let sent = sys::send(fd, &frames[range.clone()])?.unwrap_or(0);
            range.start += sent;
            if range.start < range.end {
                return Ok(());
            }
            trouble.owed.pop_front();
            if trouble.owed.is_empty() {
                self.counters.behind.fetch_sub(1, Relaxed);
            }
        }
        if trouble.unread.is_empty() {
            self.connections[fd as usize].trouble = None;
        }
        Ok(())
    }

    fn close(&mut self, fd: RawFd) {
        let connection = std::mem::take(&mut self.connections[fd as usize]);
        if connection.state == State::Free {
            return;
        }
        for room in &connection.rooms {
            self.rooms.leave(*room, fd);
        }
        if connection.trouble.is_some_and(|trouble| !trouble.owed.is_empty()) {
            self.counters.behind.fetch_sub(1, Relaxed);
        }
        if connection.state == State::Open {
            self.counters.open.fetch_sub(1, Relaxed);
        }
        sys::close(fd);
    }

    fn ping_some(&mut self) {
        let now = sys::now_ns();
        if self.setup.ping_ms == 0 || now < self.pings.next_ns || self.connections.is_empty() {
            return;
        }
        let step = self.connections.len().div_ceil(PING_STEPS as usize);
        for _ in 0..step {
            self.pings.cursor = (self.pings.cursor + 1) % self.connections.len();
            self.ping(self.pings.cursor as RawFd);
        }
        // on a fixed schedule: a step that came late does not make the interval longer
        let next_ns = self.pings.next_ns + self.setup.ping_ms * 1_000_000 / PING_STEPS;
        self.pings.next_ns = next_ns.max(now);
    }

    fn ping(&mut self, fd: RawFd) {
        let connection = &self.connections[fd as usize];
        if connection.state != State::Open || connection.trouble.is_some() {
            return;
        }
        add(&self.counters.pings, 1);
        if sys::send(fd, &PING_FRAME).is_err() {
            self.close(fd);
        }
    }
}

fn listen(address: SocketAddrV4) -> io::Result<RawFd> {
    let fd = sys::tcp_socket()?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    sys::set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    sys::bind(fd, address)?;
    // SAFETY: takes plain numbers; the kernel cuts the backlog to net.core.somaxconn
    sys::check(unsafe { libc::listen(fd, 65_535) })?;
    Ok(fd)
}

/// A client that vanished before its accept, or a full descriptor table, costs that client only.
fn ignore_transient(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ECONNABORTED | libc::EMFILE | libc::ENFILE | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

/// The room that an event names: `"room":"..."` in its JSON, without escapes.
fn room_of(payload: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(payload).ok()?;
    let (_, rest) = text.split_once(r#""room":""#)?;
    rest.split('"').next()
}
