//! One shard's state: connections, rooms, what is owed and when to wake.
//!
//! See the crate's documentation for the one rule of its use. The verbs are here; what they do is in the file of the same subject:
//! `handshake`, `receive`, `membership`, `delivery`, `fanout`, `closing`, `drain`.

use std::{collections::VecDeque, net::IpAddr, sync::Arc};

use memchr::memmem::Finder;

use crate::{
    Command, ConnId, Effect, Event, Keys, Millis, Refusal, Settings, Stats,
    connection::{Connection, State},
    drain::Drain,
    fanout::Fanout,
    pool::Pool,
    rhythm::Rhythm,
    rooms::Rooms,
    slab::Slab,
    timers::{Timer, Timers, is_due, tick_after, tick_before},
    ws::{
        deflate::{Deflater, Inflater},
        frame::{self, Opcode},
    },
};

/// The socket layer, as the hub sees it.
pub trait Wire {
    /// Writes as much of `parts`, in order, as the socket takes without waiting.
    fn write(&mut self, conn: ConnId, parts: &[&[u8]]) -> Sent;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// So many bytes; fewer than offered means the socket is full and `handle_writable` will follow.
    Bytes(usize),
    /// The connection is broken.
    Dead,
}

pub struct Hub {
    pub(crate) settings: Arc<Settings>,
    pub(crate) keys: Keys,
    /// Finds `Settings::rate_mark`.
    pub(crate) mark: Option<Finder<'static>>,
    pub(crate) slab: Slab,
    pub(crate) timers: Timers,
    pub(crate) rhythm: Rhythm,
    pub(crate) rooms: Rooms,
    pub(crate) fanout: Fanout,
    /// Slots that owe bytes and may be written; first come, first served.
    pub(crate) dirty: VecDeque<u32>,
    pub(crate) pool: Pool,
    pub(crate) events: VecDeque<Event>,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) stats: Stats,
    pub(crate) inflater: Inflater,
    pub(crate) deflater: Deflater,
    pub(crate) drain: Option<Drain>,
    pub(crate) owed_elsewhere: u64,
    /// Slots to visit, reused so that a publish allocates nothing.
    pub(crate) scratch: Vec<u32>,
}

impl Hub {
    pub fn new(shard: u16, settings: Arc<Settings>, keys: Keys) -> Self {
        let deflater = Deflater::new(settings.compression_bytes_min);
        let mark = settings.rate_mark.as_ref().map(|mark| Finder::new(mark).into_owned());
        Self {
            slab: Slab::new(shard, settings.slots_max),
            rhythm: Rhythm::new(shard, settings.ping_interval_ms),
            settings,
            keys,
            mark,
            timers: Timers::new(),
            rooms: Rooms::new(),
            fanout: Fanout::default(),
            dirty: VecDeque::new(),
            pool: Pool::default(),
            events: VecDeque::new(),
            effects: VecDeque::new(),
            stats: Stats::default(),
            inflater: Inflater::default(),
            deflater,
            drain: None,
            owed_elsewhere: 0,
            scratch: Vec::new(),
        }
    }

    /// `None` when all slots are taken. The slot number indexes the caller's own table of sockets.
    pub fn handle_accept(&mut self, peer: IpAddr, now: Millis) -> Option<ConnId> {
        let due = tick_after(now + self.handshake_ms());
        let id = self.slab.insert(Connection::accepted(peer, due, &self.settings))?;
        self.stats.handshakes_now += 1;
        self.plan(id.slot());
        Some(id)
    }

    /// What clients of other shards are owed: `Settings::outbox_total_max` is for all of them together.
    pub fn set_owed_elsewhere(&mut self, bytes: u64) {
        self.owed_elsewhere = bytes;
    }

    /// Bytes as they came; masked payloads are unmasked in place.
    pub fn handle_bytes(&mut self, conn: ConnId, bytes: &mut [u8], now: Millis) {
        let Some(slot) = self.slab.find(conn) else {
            return;
        };
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        client.unanswered = 0;
        self.stats.bytes_in += bytes.len() as u64;
        match client.state {
            State::Head => self.receive_head(slot, bytes, now),
            State::Deciding => self.receive_early(slot, bytes),
            State::Open | State::Closing => self.receive_frames(slot, bytes, now),
            State::Refused => {}
        }
    }

    /// The peer will send no more.
    pub fn handle_eof(&mut self, conn: ConnId, _now: Millis) {
        let Some(slot) = self.slab.find(conn) else {
            return;
        };
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        match client.state {
            // what is owed may still reach it
            State::Refused | State::Closing => {
                client.peer_done = true;
                self.settle(slot);
            }
            State::Head | State::Deciding | State::Open => self.end(slot),
        }
    }

    /// The socket is dead, or the caller ends it (`why` counts it): nothing more can be sent.
    pub fn handle_gone(&mut self, conn: ConnId, why: Option<Refusal>, _now: Millis) {
        if let Some(slot) = self.slab.find(conn) {
            why.into_iter().for_each(|why| self.stats.refuse(why));
            self.end(slot);
        }
    }

    pub fn handle_writable(&mut self, conn: ConnId) {
        let Some(slot) = self.slab.find(conn) else {
            return;
        };
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        client.blocked = false;
        self.mark_dirty(slot);
    }

    pub fn handle_command(&mut self, command: Command, now: Millis) {
        match command {
            Command::Admit { .. } => self.admit(command, now),
            Command::Refuse { conn, status, body, retry_after_s } => {
                self.refuse(conn, Refusal::Application, status, &body, retry_after_s, now);
            }
            Command::Send { conn, payload, ticket } => self.send_to(conn, &payload, ticket, now),
            Command::Join { conn, room } => self.join(conn, &room, now),
            Command::Leave { conn, room } => self.with_open(conn, |hub, slot| hub.leave(slot, &room, now)),
            Command::Session { conn, session } => self.set_session(conn, session),
            Command::User { conn, .. } => self.with_open(conn, |hub, slot| {
                hub.end_anonymity(slot, now);
            }),
            Command::Hold { .. } => {}
            Command::Close { conn, code, reason } => {
                self.with_open(conn, |hub, slot| hub.begin_close(slot, code, &reason, None, now));
            }
            Command::Drain { within_ms } => self.begin_drain(within_ms, now),
        }
    }

    /// Whether the application's decision about `conn` is still awaited: `Admit` will be carried out, unless the hub drains.
    pub fn awaits_decision(&self, conn: ConnId) -> bool {
        self.slab.find(conn).and_then(|slot| self.slab.at(slot)).is_some_and(|client| client.state == State::Deciding)
    }

    pub fn handle_timeout(&mut self, now: Millis) {
        let mut due = std::mem::take(&mut self.scratch);
        self.timers.expire(now, &mut due);
        for slot in due.drain(..) {
            self.look_at(slot, now);
        }
        self.scratch = due;
        self.drive_drain(now);
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When `handle_timeout` wants to be called next.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let drain = self.drain.as_ref().and_then(Drain::next);
        self.timers.next().into_iter().chain(drain).min()
    }

    /// Bytes of messages accepted for fan-out and not yet handed to every member, plus what outboxes owe.
    pub fn backlog_bytes(&self) -> usize {
        (self.stats.backlog_bytes_now + self.stats.outbox_bytes_now) as usize
    }

    /// Draining, and nobody is left.
    pub fn is_drained(&self) -> bool {
        self.drain.is_some() && self.slab.live() == 0
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Does what is due for one connection and plans its next deadline.
    fn look_at(&mut self, slot: u32, now: Millis) {
        let Some(client) = self.slab.at(slot) else {
            return;
        };
        let (tick, timer) = client.deadline(&self.settings);
        if is_due(tick, tick_before(now)) {
            match timer {
                Timer::Handshake => self.handshake_timed_out(slot, now),
                // the application had its time to answer what came before the violation
                Timer::Overdue => self.overdue(slot, now),
                Timer::Ping if client.deaf => self.begin_close(slot, client.code, "", None, now),
                Timer::Ping => self.ping(slot, now),
                Timer::Pong => self.judge(slot, now),
                // what closes it is counted already
                Timer::Write if client.state != State::Open => self.end(slot),
                Timer::Write => self.close_slow(slot, Refusal::WriteTimeout, now),
                Timer::Close => self.end(slot),
            }
        }
        self.plan(slot);
    }

    /// Arms the wheel if the connection's deadline is earlier than what is armed; a later one waits until that fires.
    pub(crate) fn plan(&mut self, slot: u32) {
        let Some(client) = self.slab.at(slot) else {
            return;
        };
        let (tick, _) = client.deadline(&self.settings);
        if self.timers.deadline(slot).is_none_or(|armed| tick != armed && is_due(tick, armed)) {
            self.timers.arm(slot, tick);
        }
    }

    /// Arms the wheel for a deadline that may be later than the one armed: the connection has changed its state.
    pub(crate) fn replan(&mut self, slot: u32) {
        self.timers.cancel(slot);
        self.plan(slot);
    }

    fn overdue(&mut self, slot: u32, now: Millis) {
        if self.end_anonymity(slot, now)
            && let (Some(conn), Some(client)) = (self.slab.id_at(slot), self.slab.at(slot))
        {
            self.events.push_back(Event::Overdue { conn, session: client.session.clone() });
        }
    }

    fn ping(&mut self, slot: u32, now: Millis) {
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        if client.blocked {
            // it would not see the ping before it reads the rest; the write time-out watches it meanwhile
            client.due = self.rhythm.next(now);
            return;
        }
        client.pinged(now, &self.rhythm, &self.settings);
        self.stats.pings += 1;
        self.owe(slot, now, |outbox| outbox.push_own(|out| frame::encode(Opcode::Ping, b"", false, out)));
    }

    fn judge(&mut self, slot: u32, now: Millis) {
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        let code = self.settings.silence_code;
        if client.unanswered == 0 {
            client.answered(now, &self.rhythm, &self.settings);
        } else if code == 0 {
            self.stats.refuse(Refusal::PongTimeout);
            self.end(slot);
        } else {
            self.say_last(slot, |notices| notices.silence.as_ref(), now);
            self.close_caught_up(slot, code, "heartbeat timeout", Some(Refusal::PongTimeout), now);
        }
    }

    pub(crate) fn handshake_ms(&self) -> u64 {
        match self.drain {
            Some(_) => self.settings.handshake_ms.min(Drain::HANDSHAKE_MS),
            None => self.settings.handshake_ms,
        }
    }

    fn set_session(&mut self, conn: ConnId, session: Box<[u8]>) {
        if let Some(client) = self.slab.find(conn).and_then(|slot| self.slab.at_mut(slot))
            && client.state.is_admitted()
        {
            client.session = session;
        }
    }

    fn with_open(&mut self, conn: ConnId, act: impl FnOnce(&mut Self, u32)) {
        if let Some(slot) = self.find_open(conn) {
            act(self, slot);
        }
    }

    pub(crate) fn find_open(&self, conn: ConnId) -> Option<u32> {
        let open = |slot: &u32| self.slab.at(*slot).is_some_and(|client| client.state == State::Open);
        self.slab.find(conn).filter(open)
    }
}
