//! One thread of clients: its own descriptor table and epoll, one read buffer for all.
//!
//! Rule: opening is bounded by the handshakes under way, every handshake has a deadline, and what a client saw goes into the
//! counters before the next event is looked at.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::client::{self, Client, State};
use crate::deflate::{self, Inflater};
use crate::frame::{self, Frame, Marker, SEQUENCES};
use crate::lost::{self, Lost};
use crate::orders::{Opening, Order, Setup, What};
use crate::stats::Stats;
use crate::sys::{self, Epoll, Mailbox};
use crate::target::Template;

pub struct Worker {
    setup: Arc<Setup>,
    mailbox: Arc<Mailbox<Order>>,
    stats: Arc<Stats>,
    epoll: Epoll,
    clients: Vec<Client>,
    buffer: Vec<u8>,
    opening: Opening,
    lost: Lost,
    sending: Option<(Arc<Template>, u32)>,
    inflater: Inflater,
    deadlines: VecDeque<(u64, RawFd, u32)>,
}

/// Holds the largest frame that is accepted, and a batch of small ones in one call.
const BUFFER_BYTES: usize = 256 * 1024;
const _: () = assert!(BUFFER_BYTES as u64 > frame::PAYLOAD_BYTES_MAX + 14);

/// How late a handshake's deadline may be noticed.
const DEADLINE_STEP_MS: i32 = 100;

impl Worker {
    /// Must be called on the thread that will `run` it: descriptors belong to the thread.
    pub fn open(setup: Arc<Setup>, mailbox: Arc<Mailbox<Order>>, stats: Arc<Stats>) -> io::Result<Self> {
        sys::keep_only(mailbox.wake)?;
        let epoll = Epoll::new()?;
        epoll.add(mailbox.wake, sys::LEVEL_EVENTS)?;
        let mut clock = 0;
        // SAFETY: asks for the calling thread's own clock; `clock` lives through the call
        unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
        stats.cpu_clock.set(clock as u32 as u64);
        Ok(Self {
            setup,
            mailbox,
            stats,
            epoll,
            clients: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
            opening: Opening::default(),
            lost: Lost::default(),
            sending: None,
            inflater: Inflater::default(),
            deadlines: VecDeque::new(),
        })
    }

    pub fn run(mut self) -> io::Result<()> {
        loop {
            let count = self.epoll.wait(self.timeout_ms())?;
            for index in 0..count {
                let (fd, events) = self.epoll.event(index);
                if fd == self.mailbox.wake {
                    self.take_orders();
                } else {
                    self.serve(fd, events);
                }
            }
            self.open_some();
            self.reopen_some();
            self.send_pass();
            self.expire();
        }
    }

    fn timeout_ms(&self) -> i32 {
        if self.sending.is_some() {
            0
        } else if self.opening.left > 0 && self.has_room() {
            i32::from(self.opening.per_second > 0.0)
        } else if self.lost.len() > 0 && self.has_room() {
            lost::PAUSE_MS
        } else if self.deadlines.is_empty() {
            -1
        } else {
            DEADLINE_STEP_MS
        }
    }

    fn has_room(&self) -> bool {
        (self.stats.in_flight.get() as usize) < self.setup.in_flight
    }

    fn take_orders(&mut self) {
        for order in self.mailbox.take() {
            match order.what {
                What::Open { first, stride, count, per_second } => {
                    let since_ns = sys::now_ns();
                    self.opening = Opening { next: first, stride, left: count, begun: 0, per_second, since_ns };
                    self.count_waiting();
                }
                What::Reset => self.reset(),
                What::Send { text, times } => self.sending = Some((text, times)),
                What::Cut { share } => self.cut(share),
                What::Close => self.close_all(),
                What::Pause { first, of } => self.pause(first, of),
                What::Resume => self.resume(),
                What::Reconnect { on } => self.lost.on = on,
            }
            let _ = order.done.send(());
        }
    }

    fn reset(&mut self) {
        self.stats.reset();
        self.clients.iter_mut().for_each(|client| client.last = [0; SEQUENCES]);
    }

    fn open_some(&mut self) {
        let due = if self.opening.left == 0 { 0 } else { self.opening.due(sys::now_ns()) };
        for _ in 0..due {
            if !self.has_room() {
                return;
            }
            let index = self.opening.next;
            self.opening.next += self.opening.stride;
            self.opening.left -= 1;
            self.opening.begun += 1;
            self.begin_or_lose(index);
        }
    }

    fn reopen_some(&mut self) {
        while self.lost.len() > 0
            && self.has_room()
            && let Some(index) = self.lost.next(sys::now_ns())
        {
            self.begin_or_lose(index);
        }
    }

    fn begin_or_lose(&mut self, index: u32) {
        if let Err(error) = self.begin(index) {
            self.stats.fail(format!("connect_{}", name(&error)));
            self.lose(index, State::Connecting);
        }
        self.count_waiting();
    }

    /// A client has no connection any more; `state` is how far it was.
    fn lose(&mut self, index: u32, state: State) {
        if state == State::Connecting {
            self.lost.pause(sys::now_ns());
        }
        self.lost.add(index);
        self.count_waiting();
    }

    fn count_waiting(&self) {
        self.stats.waiting.set(u64::from(self.opening.left) + self.lost.len() as u64);
    }

    fn begin(&mut self, index: u32) -> io::Result<()> {
        let fd = client::connect(self.setup.target.address, index, self.setup.sources)?;
        let slot = fd as usize;
        if slot >= self.clients.len() {
            self.clients.resize_with(slot + 1, Client::default);
        }
        let since_ns = sys::now_ns();
        self.clients[slot] = Client { index, since_ns, state: State::Connecting, ..Client::default() };
        self.deadlines.push_back((since_ns + self.setup.timeout_ns, fd, index));
        self.stats.in_flight.add(1);
        self.epoll.add(fd, sys::CONNECTION_EVENTS)?;
        Ok(())
    }

    fn serve(&mut self, fd: RawFd, events: i32) {
        if self.clients[fd as usize].paused {
            return;
        }
        if self.clients[fd as usize].state == State::Connecting && events & libc::EPOLLOUT != 0 {
            let index = self.clients[fd as usize].index;
            let extensions = if self.setup.deflates(index) { deflate::OFFER } else { "" };
            let request = self.setup.target.request(index, extensions);
            match sys::send(fd, &request) {
                Ok(Some(count)) if count == request.len() => self.clients[fd as usize].state = State::Upgrading,
                Ok(_) => return self.fail(fd, "request_cut".to_owned()),
                Err(error) => return self.fail(fd, format!("connect_{}", name(&error))),
            }
        }
        if events & !libc::EPOLLOUT != 0
            && let Err(reason) = self.read(fd)
        {
            self.fail(fd, reason);
        }
    }

    /// Reads until the socket is empty: a read shorter than the room left says so without a further call.
    fn read(&mut self, fd: RawFd) -> Result<(), String> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = self.read_into(fd, &mut buffer);
        self.buffer = buffer;
        result
    }

    fn read_into(&mut self, fd: RawFd, buffer: &mut [u8]) -> Result<(), String> {
        loop {
            let kept = self.clients[fd as usize].rest.take().map_or(0, |rest| {
                buffer[..rest.len()].copy_from_slice(&rest);
                rest.len()
            });
            let count = match sys::receive(fd, &mut buffer[kept..]) {
                Ok(Some(0)) => return Err(self.ended(fd, "end_of_stream")),
                Ok(count) => count,
                Err(error) => return Err(self.ended(fd, name(&error))),
            };
            let filled = kept + count.unwrap_or(0);
            let used = self.take_whole(fd, &buffer[..filled])?;
            if used < filled {
                self.clients[fd as usize].rest = Some(buffer[used..filled].into());
            }
            if filled < buffer.len() {
                return Ok(());
            }
        }
    }

    fn ended(&self, fd: RawFd, how: &str) -> String {
        match self.clients[fd as usize].state {
            State::Connecting => format!("connect_{how}"),
            State::Upgrading => format!("handshake_{how}"),
            State::Free | State::Greeted | State::Open => format!("lost_{how}"),
        }
    }

    /// Takes the answer or the whole frames at the start of `bytes`, and says how many bytes those were.
    fn take_whole(&mut self, fd: RawFd, bytes: &[u8]) -> Result<usize, String> {
        let mut used = 0;
        let deflate = self.setup.deflates(self.clients[fd as usize].index);
        if self.clients[fd as usize].state == State::Upgrading {
            match client::upgraded(bytes, deflate)? {
                Some(length) => used = length,
                None => return Ok(0),
            }
            self.clients[fd as usize].state = State::Greeted;
            if self.setup.welcomes == 0 {
                self.opened(fd);
            }
        }
        let now = sys::now_ns();
        self.stats.bytes.add((bytes.len() - used) as u64);
        while let Some((frame, length)) =
            frame::next(&bytes[used..], deflate).map_err(|what| format!("frame_{what}"))?
        {
            used += length;
            self.take_frame(fd, &frame, now)?;
        }
        // what stays will be counted with the read that completes it
        self.stats.bytes.subtract((bytes.len() - used) as u64);
        Ok(used)
    }

    fn take_frame(&mut self, fd: RawFd, frame: &Frame<'_>, now: u64) -> Result<(), String> {
        match frame {
            Frame::Message(payload) => {
                self.take_message(fd, frame::marker(payload), now)?;
                if self.setup.acks {
                    self.ack(fd, payload);
                }
            }
            Frame::Compressed(payload) => {
                let marker = self.inflater.marker(payload).map_err(|what| format!("frame_{what}"))?;
                self.stats.compressed.add(1);
                self.take_message(fd, marker, now)?;
            }
            Frame::Ping(payload) => {
                self.stats.pings.add(1);
                if !matches!(sys::send(fd, &frame::client(frame::PONG, payload)), Ok(Some(_))) {
                    self.stats.sends_blocked.add(1);
                }
            }
            Frame::Pong => {}
            Frame::Close(code) => return Err(format!("closed_{code}")),
        }
        Ok(())
    }

    fn take_message(&mut self, fd: RawFd, marker: Option<Marker>, now: u64) -> Result<(), String> {
        if self.clients[fd as usize].state == State::Greeted {
            self.welcome(fd)?;
        }
        match marker {
            Some(marker) => self.numbered(fd, &marker, now),
            None => self.stats.other.add(1),
        }
        Ok(())
    }

    fn ack(&self, fd: RawFd, payload: &[u8]) {
        if let Some(text) = frame::ack(payload) {
            match sys::send(fd, &frame::client(frame::TEXT, &text)) {
                Ok(Some(_)) => self.stats.texts_sent.add(1),
                _ => self.stats.sends_blocked.add(1),
            }
        }
    }

    fn welcome(&mut self, fd: RawFd) -> Result<(), String> {
        let client = &mut self.clients[fd as usize];
        client.welcomes += 1;
        let (index, come) = (client.index, client.welcomes);
        if come == self.setup.welcomes {
            self.opened(fd);
        }
        if come == 1 && !self.setup.hello.is_empty() {
            let texts = self
                .setup
                .hello
                .iter()
                .map(|text| frame::client(frame::TEXT, self.setup.target.fill(text, index).as_bytes()));
            let hello: Vec<u8> = texts.flatten().collect();
            if !matches!(sys::send(fd, &hello), Ok(Some(count)) if count == hello.len()) {
                return Err("hello_cut".to_owned());
            }
        }
        Ok(())
    }

    fn numbered(&mut self, fd: RawFd, marker: &Marker, now: u64) {
        let last = &mut self.clients[fd as usize].last[marker.sequence];
        if marker.number <= *last {
            self.stats.out_of_order.add(1);
        } else {
            if *last > 0 {
                self.stats.missing.add(u64::from(marker.number - *last - 1));
            }
            *last = marker.number;
        }
        self.stats.message(marker.stamp, now);
    }

    fn opened(&mut self, fd: RawFd) {
        let client = &mut self.clients[fd as usize];
        client.state = State::Open;
        let now = sys::now_ns();
        self.stats.in_flight.subtract(1);
        self.stats.open.add(1);
        self.stats.opened.add(1);
        self.stats.last_opened_ns.set(now);
        self.stats.handshake.record(now - client.since_ns);
    }

    fn expire(&mut self) {
        // a handshake that ended is only taken off here, so the queue is as long as what one timeout can begin
        while let Some(&(deadline, fd, index)) = self.deadlines.front() {
            let client = &self.clients[fd as usize];
            let under_way = client.index == index && is_under_way(client.state);
            if under_way && deadline > sys::now_ns() {
                return;
            }
            self.deadlines.pop_front();
            if under_way {
                self.fail(fd, "handshake_timeout".to_owned());
            }
        }
    }

    fn fail(&mut self, fd: RawFd, reason: String) {
        if let Some(client) = self.forget(fd) {
            sys::close(fd);
            self.stats.fail(reason);
            self.lose(client.index, client.state);
        }
    }

    /// Takes a client out of the table, if it is there.
    fn forget(&mut self, fd: RawFd) -> Option<Client> {
        let client = std::mem::take(&mut self.clients[fd as usize]);
        match client.state {
            State::Free => return None,
            State::Open => self.stats.open.subtract(1),
            State::Connecting | State::Upgrading | State::Greeted => self.stats.in_flight.subtract(1),
        }
        Some(client)
    }

    fn send_pass(&mut self) {
        let Some((text, left)) = self.sending.take() else {
            return;
        };
        for fd in self.open_clients() {
            let payload = self.setup.target.fill(&text, self.clients[fd as usize].index);
            match sys::send(fd, &frame::client(frame::TEXT, payload.as_bytes())) {
                Ok(Some(_)) => self.stats.texts_sent.add(1),
                _ => self.stats.sends_blocked.add(1),
            }
        }
        if left > 1 {
            self.sending = Some((text, left - 1));
        }
    }

    fn open_clients(&self) -> Vec<RawFd> {
        (0..self.clients.len())
            .filter(|slot| self.clients[*slot].state == State::Open)
            .map(|slot| slot as RawFd)
            .collect()
    }

    fn cut(&mut self, share: f64) {
        let mut due = 0.0;
        for fd in self.open_clients() {
            due += share;
            if due >= 1.0 {
                due -= 1.0;
                client::cut(fd);
                if let Some(client) = self.forget(fd) {
                    self.lose(client.index, client.state);
                }
            }
        }
    }

    fn pause(&mut self, first: u32, of: u32) {
        for fd in self.open_clients() {
            let client = &mut self.clients[fd as usize];
            client.paused = client.index % of < first;
        }
    }

    /// What came meanwhile is told by no event any more, so each is read once.
    fn resume(&mut self) {
        for fd in self.open_clients() {
            if std::mem::take(&mut self.clients[fd as usize].paused)
                && let Err(reason) = self.read(fd)
            {
                self.fail(fd, reason);
            }
        }
    }

    fn close_all(&mut self) {
        self.lost.give_up();
        self.count_waiting();
        let goodbye = frame::client(frame::CLOSE, &1000u16.to_be_bytes());
        for fd in self.open_clients() {
            let _ = sys::send(fd, &goodbye);
            self.forget(fd);
            sys::close(fd);
        }
    }
}

fn is_under_way(state: State) -> bool {
    matches!(state, State::Connecting | State::Upgrading | State::Greeted)
}

/// The error's symbolic name where a driver is likely to meet it.
fn name(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => "refused",
        Some(libc::ECONNRESET) => "reset",
        Some(libc::EPIPE) => "broken_pipe",
        Some(libc::EMFILE) => "descriptors_of_the_thread",
        Some(libc::ENFILE) => "descriptors_of_the_system",
        Some(libc::EADDRNOTAVAIL) => "no_port_left",
        Some(libc::ETIMEDOUT) => "timeout",
        Some(libc::ENOBUFS | libc::ENOMEM) => "no_memory",
        _ => "other",
    }
}
