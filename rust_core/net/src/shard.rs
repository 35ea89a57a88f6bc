//! One shard: a thread that waits, reads, does as it was asked, writes, and tells. It decides nothing; its hub does.
//!
//! Rule: a pass is short. Each step has a bound, what is left is remembered for the next pass, and the shard sleeps only when
//! nothing is left. So a giant room, a burst of connections or a busy client delays the others by one bound, not by all its work.
//!
//! `accept`, `read`, `act` and `http` are the steps; this file is the loop and what goes wrong in it.

mod accept;
mod act;
mod http;
mod read;

use std::{
    any::Any,
    collections::VecDeque,
    io, mem,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use tidegate_hub::{ConnId, Event, Hub, Millis, Refusal, Sent, Wire};

use crate::{
    epoll::{Epoll, Ready},
    fds::own_table,
    linger::Lingers,
    listener,
    mailbox::{Mail, Mailbox},
    numbered::{Number, Numbered},
    relay::Relay,
    shared::Shared,
    slots::Slots,
    socket::{self, Moved},
    stats::{Lag, Refusals, Snapshot},
    token::Token,
};

pub struct Shard {
    number: u16,
    shared: Arc<Shared>,
    hub: Hub,
    now: Millis,
    epoll: Epoll,
    ready: Vec<Ready>,
    listener: OwnedFd,
    /// Somebody may wait to be accepted, from this time on.
    accept_at: Option<Millis>,
    slots: Slots,
    /// Sockets that may have unread bytes; each once.
    readable: VecDeque<ConnId>,
    inbox: VecDeque<Mail>,
    mail_waits: bool,
    /// The hub could write more at once.
    more_writes: bool,
    relays: Numbered<Relay>,
    busy_relays: VecDeque<Number>,
    sweep_at: Millis,
    lingers: Lingers,
    events: Vec<Event>,
    /// What is read from any socket, and what TLS makes of it: one each for all connections, so an idle one owns none.
    scratch: Box<[u8]>,
    plain: Vec<u8>,
    refused: Refusals,
    lag: Lag,
    told_at: Instant,
    /// Bytes owed to our clients, as the other shards know it.
    told_owed: u64,
}

impl Shard {
    /// On the shard's own thread: takes a table of descriptors of its own, then opens all that it needs in it.
    pub fn open(number: u16, shared: Arc<Shared>, address: SocketAddr) -> io::Result<Self> {
        let mailbox = shared.mailboxes[usize::from(number)].wake();
        own_table(&[mailbox.fd(), shared.events.wake().fd()])?;
        let epoll = Epoll::new()?;
        let settings = shared.settings.clone();
        let listener = listener::listen(address, settings.ping_interval_ms + settings.pong_timeout_ms)?;
        epoll.add_source(mailbox.fd(), Token::Mailbox.bits())?;
        epoll.add_source(listener.as_raw_fd(), Token::Listener.bits())?;
        Ok(Self {
            number,
            hub: Hub::new(number, settings, shared.keys.clone()),
            now: shared.now(),
            epoll,
            ready: Vec::new(),
            listener,
            accept_at: None,
            slots: Slots::default(),
            readable: VecDeque::new(),
            inbox: VecDeque::new(),
            mail_waits: false,
            more_writes: false,
            relays: Numbered::new(shared.capacity.relays),
            busy_relays: VecDeque::new(),
            sweep_at: 0,
            lingers: Lingers::new(shared.capacity.lingers),
            events: Vec::new(),
            scratch: vec![0; READ_BYTES].into(),
            plain: Vec::new(),
            refused: Refusals::default(),
            lag: Lag::new(Instant::now()),
            told_at: Instant::now(),
            told_owed: 0,
            shared,
        })
    }

    /// Serves until the engine stops. Whatever goes wrong in a pass costs at most the connection it went wrong with.
    pub fn run(mut self) {
        let mut failures = 0;
        while !self.shared.is_stopping() {
            match catch_unwind(AssertUnwindSafe(|| self.pass())) {
                Ok(Ok(())) => failures = 0,
                Ok(Err(_)) | Err(_) => {
                    self.refused.count(Refusal::Panic);
                    // what fails each time must not take the whole core
                    failures = (failures + 1).min(FAILURES_MAX);
                    thread::sleep(FAILURE_PAUSE * failures);
                }
            }
        }
    }

    fn pass(&mut self) -> io::Result<()> {
        self.wait()?;
        let began = Instant::now();
        self.now = self.shared.now();
        self.accept_burst();
        self.read_burst();
        self.carry_out_mail();
        self.serve_http();
        self.keep_time();
        self.write_burst();
        self.shared.events.push(&mut self.events);
        self.tell(began);
        Ok(())
    }

    /// Sleeps until there is something to do, and notes what.
    fn wait(&mut self) -> io::Result<()> {
        let timeout_ms = self.timeout_ms();
        self.epoll.wait(timeout_ms, &mut self.ready)?;
        self.now = self.shared.now();
        let ready = mem::take(&mut self.ready);
        for ready in &ready {
            self.note(*ready);
        }
        self.ready = ready;
        self.ready.clear();
        Ok(())
    }

    fn note(&mut self, ready: Ready) {
        match Token::of(ready.token) {
            Token::Conn(conn) => self.note_conn(conn, ready),
            Token::Mailbox => self.mail_waits = true,
            // a pause for want of descriptors stands
            Token::Listener => self.accept_at = self.accept_at.or(Some(self.now)),
            Token::Relay(number) => self.queue_relay(number),
            Token::Linger(number) => self.lingers.handle_ready(number, &mut self.scratch),
        }
    }

    fn note_conn(&mut self, conn: ConnId, ready: Ready) {
        let Some(slot) = self.slots.get(conn) else {
            return;
        };
        slot.ended |= ready.ended;
        let writable = ready.writable && slot.blocked;
        if ready.readable || ready.ended {
            self.queue_read(conn);
        }
        if writable {
            self.guarded(conn, |shard| shard.unblock(conn));
        }
    }

    /// The socket takes bytes again: TLS's own first.
    fn unblock(&mut self, conn: ConnId) {
        let Some(slot) = self.slots.get(conn) else {
            return;
        };
        let fd = slot.fd();
        match slot.tls.as_mut().map_or(Moved::Bytes(0), |tls| tls.flush(fd)) {
            Moved::Blocked => {}
            Moved::Broken | Moved::End => self.hub.handle_gone(conn, None, self.now),
            Moved::Bytes(_) => {
                slot.blocked = false;
                self.hub.handle_writable(conn);
                self.more_writes = true;
            }
        }
    }

    fn keep_time(&mut self) {
        if self.hub.poll_timeout().is_some_and(|at| at <= self.now) {
            self.hub.handle_timeout(self.now);
            self.act();
        }
        self.lingers.handle_timeout(self.now);
        if self.now >= self.sweep_at {
            self.sweep_relays();
        }
    }

    fn write_burst(&mut self) {
        let began = Instant::now();
        for _ in 0..WRITES_A_PASS / WRITES_A_CALL {
            self.write_some();
            self.act();
            if !self.more_writes || began.elapsed() >= STEP_TIME_MAX {
                return;
            }
        }
    }

    fn write_some(&mut self) {
        let mut sockets = Sockets { slots: &mut self.slots, last: None };
        let (hub, now) = (&mut self.hub, self.now);
        let wrote = catch_unwind(AssertUnwindSafe(|| hub.drive_writes(WRITES_A_CALL, &mut sockets, now)));
        let last = sockets.last;
        self.more_writes = wrote.unwrap_or_else(|_| {
            match last {
                Some(conn) => self.panicked(conn),
                None => self.refused.count(Refusal::Panic),
            }
            true
        });
    }

    /// Does something for one connection; a panic costs that connection.
    fn guarded(&mut self, conn: ConnId, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.panicked(conn);
        }
    }

    fn panicked(&mut self, conn: ConnId) {
        let (hub, now) = (&mut self.hub, self.now);
        let gone: Result<(), Box<dyn Any + Send>> =
            catch_unwind(AssertUnwindSafe(|| hub.handle_gone(conn, Some(Refusal::Panic), now)));
        if gone.is_err() {
            // the hub cannot let go of it; the socket can
            self.forget(conn);
        }
        self.act();
    }

    /// 0: there is work. -1: only an event can bring some.
    fn timeout_ms(&self) -> i32 {
        let accepting = self.accept_at.is_some_and(|at| at <= self.now);
        let reading = !self.readable.is_empty() && !self.shared.events.is_full();
        if self.more_writes || accepting || reading || self.may_take_mail() || !self.busy_relays.is_empty() {
            return 0;
        }
        let sweep = (self.relays.len() > 0).then_some(self.sweep_at);
        let deadlines = [self.hub.poll_timeout(), self.lingers.poll_timeout(), sweep, self.accept_at];
        match deadlines.into_iter().flatten().min() {
            Some(at) => i32::try_from(at.saturating_sub(self.now)).unwrap_or(i32::MAX),
            None => -1,
        }
    }

    /// What keeps new publishes waiting: bytes not handed on while members could take them. What only slow members owe does
    /// not count: each of those is bounded, and the others must not wait for them.
    fn backlog_bytes(&self) -> usize {
        if self.more_writes { self.hub.backlog_bytes() } else { 0 }
    }

    fn tell(&mut self, began: Instant) {
        let now = Instant::now();
        self.lag.add(now - began, now);
        self.mailbox().set_backlog(self.backlog_bytes());
        self.tell_owed();
        self.shared.tell_relief();
        let drained =
            self.hub.is_drained() && self.inbox.is_empty() && self.events.is_empty() && self.lingers.is_empty();
        self.shared.reports[usize::from(self.number)].set_drained(drained);
        if self.timeout_ms() != 0 || now - self.told_at >= TELL_EVERY {
            self.told_at = now;
            self.shared.reports[usize::from(self.number)].tell(Snapshot {
                hub: self.hub.stats().clone(),
                refused: self.refused.clone(),
                lag_us_max: self.lag.max_us(),
                relays_now: self.relays.len() as u64,
            });
        }
    }

    fn tell_owed(&mut self) {
        let owed = self.hub.stats().outbox_bytes_now;
        let change = owed.wrapping_sub(self.told_owed);
        let all = &self.shared.owed;
        // most passes change nothing, and then no cache line is taken from the others
        let before = if change == 0 { all.load(Relaxed) } else { all.fetch_add(change, Relaxed) };
        self.hub.set_owed_elsewhere(before.wrapping_sub(self.told_owed));
        self.told_owed = owed;
    }

    fn mailbox(&self) -> &Mailbox {
        &self.shared.mailboxes[usize::from(self.number)]
    }
}

/// The sockets, as the hub writes to them.
struct Sockets<'a> {
    slots: &'a mut Slots,
    /// With whom it went wrong, if it does.
    last: Option<ConnId>,
}

impl Wire for Sockets<'_> {
    fn write(&mut self, conn: ConnId, parts: &[&[u8]]) -> Sent {
        self.last = Some(conn);
        let Some(slot) = self.slots.get(conn) else {
            return Sent::Dead;
        };
        let fd = slot.fd();
        let moved = match &mut slot.tls {
            Some(tls) => tls.write(fd, parts),
            None => socket::write(fd, parts),
        };
        let taken = match moved {
            Moved::Bytes(count) => count,
            Moved::Blocked => 0,
            Moved::End | Moved::Broken => return Sent::Dead,
        };
        let offered: usize = parts.iter().map(|part| part.len()).sum();
        slot.blocked = taken < offered || slot.tls.as_ref().is_some_and(|tls| tls.is_blocked());
        Sent::Bytes(taken)
    }
}

/// One read: what a usual client has ready, and the largest message of the default settings at once.
const READ_BYTES: usize = 64 * 1024;
/// What each step of a pass may take before the next has its turn: what a newcomer or a small room waits behind a giant fan-out, a
/// burst of publishes or of TLS handshakes. As long as a message from the bus takes anyway, and a hundred times what a pass itself costs.
const STEP_TIME_MAX: Duration = Duration::from_millis(1);
/// The clock is looked at after so many short writes, or their worth in bytes: a tenth of a millisecond.
const WRITES_A_CALL: usize = 32;
const WRITES_A_PASS: usize = 1024;
/// The scrape of a busy shard is at most this old.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// After a failed pass, times the failures in a row.
const FAILURE_PAUSE: Duration = Duration::from_millis(10);
const FAILURES_MAX: u32 = 100;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use tidegate_hub::{Settings, limits::Caps};

    use super::*;
    use crate::{EngineOptions, capacity::Capacity, listener::Port, networks::Networks};

    /// The rest of what `newcomer` began to send.
    const UPGRADE_WITHOUT_GET: &[u8] = b"ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

    /// A shard that the test drives pass by pass, and its port. It takes the test's thread a table of descriptors of its own.
    fn shard() -> (Shard, SocketAddr) {
        let options = EngineOptions {
            host: String::new(),
            port: 0,
            shards: 1,
            http_socket: String::new(),
            caps: Caps { connections_max: 10, per_address_max: 10, per_user_max: 0, handshakes_per_s: 0 },
            proxy_trusted: Vec::new(),
            backlog_bytes_max: 1 << 20,
            tls: None,
            settings: Settings::default(),
        };
        let address = Port::claim("127.0.0.1", 0).unwrap().address;
        let shared = Shared::new(options, Networks::default(), None, Capacity::of(1024).unwrap(), 1).unwrap();
        (Shard::open(0, Arc::new(shared), address).unwrap(), address)
    }

    /// Sends the head of a request that is never finished, and gives the connection's id.
    fn newcomer(shard: &mut Shard, address: SocketAddr) -> (TcpStream, ConnId) {
        let mut stream = TcpStream::connect(address).unwrap();
        let before = shard.hub.stats().bytes_in;
        stream.write_all(b"GET /").unwrap();
        while shard.hub.stats().bytes_in == before {
            shard.pass().unwrap();
        }
        let slot = shard.hub.stats().handshakes_now as u32 - 1;
        let of_slot = |generation| ConnId::new(0, slot, generation);
        let conn = (0..10).map(of_slot).find(|conn| shard.slots.get(*conn).is_some()).unwrap();
        (stream, conn)
    }

    #[test]
    fn a_panic_costs_the_connection_it_happened_with_and_no_other() {
        let (mut shard, address) = shard();
        let (mut unlucky, conn) = newcomer(&mut shard, address);
        let (mut other, _) = newcomer(&mut shard, address);
        shard.guarded(conn, |_| panic!("a bug"));
        assert_eq!(shard.hub.stats().refused(Refusal::Panic), 1);
        assert!(shard.slots.get(conn).is_none());
        assert_eq!(unlucky.read(&mut [0]).unwrap(), 0);
        other.write_all(b"nothing HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        while shard.hub.stats().handshakes_now > 0 {
            shard.pass().unwrap();
        }
        other.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
    }

    #[test]
    fn a_refused_client_has_given_its_place_back_before_it_can_read_so() {
        let (mut shard, address) = shard();
        let (mut stream, conn) = newcomer(&mut shard, address);
        stream.write_all(UPGRADE_WITHOUT_GET).unwrap();
        while !shard.hub.awaits_decision(conn) {
            shard.pass().unwrap();
        }
        assert!(shard.slots.get(conn).is_some_and(|slot| slot.counted));
        shard.hub.refuse(conn, Refusal::Application, 429, b"", None, shard.now);
        shard.act();
        assert!(
            shard.slots.get(conn).is_some_and(|slot| !slot.counted),
            "and its socket is still there, for the answer"
        );
    }

    #[test]
    fn an_idle_shard_sleeps_until_its_next_deadline() {
        let (mut shard, address) = shard();
        let _newcomer = newcomer(&mut shard, address);
        let timeout_ms = shard.timeout_ms();
        assert!(timeout_ms > 0 && timeout_ms <= 11_000, "{timeout_ms}");
    }

    #[test]
    fn a_connection_that_breaks_gives_back_what_it_took() {
        let (mut shard, address) = shard();
        let (stream, conn) = newcomer(&mut shard, address);
        let debt = shard.slots.get(conn).unwrap().debt.as_ref().unwrap();
        assert!(debt.address.is_some());
        drop(stream);
        while shard.hub.stats().handshakes_now > 0 {
            shard.pass().unwrap();
        }
        assert!(shard.slots.get(conn).is_none());
    }
}
