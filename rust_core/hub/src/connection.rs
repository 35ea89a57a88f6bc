//! One client: what it is doing, what it may do next, and when it must be looked at again.
//!
//! Rule: what an idle client does not need is not here. Handshake, unfinished message and outbox are boxes that come and go; what is
//! left fits into 72 bytes.

use std::net::IpAddr;

use crate::{
    Millis, Settings,
    bucket::Bucket,
    group::Encoding,
    outbox::Outbox,
    rhythm::Rhythm,
    short::Short,
    timers::{Tick, Timer, is_due, tick_after},
    ws::{message::Partial, upgrade::Upgrade},
};

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum State {
    /// The PROXY header or the request's head is not complete.
    #[default]
    Head,
    /// The application has the upgrade and will say Admit or Refuse.
    Deciding,
    Open,
    /// Our close frame is owed or sent. It ends when nothing is owed and the peer is done.
    Closing,
    /// An HTTP answer is owed or sent; what still comes is not read.
    Refused,
}

impl State {
    /// Whether the application has admitted it.
    pub fn is_admitted(self) -> bool {
        matches!(self, State::Open | State::Closing)
    }
}

/// What one that is open is looked at for when its time has come.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Awaits {
    #[default]
    Ping,
    /// Whether any of the pings that it left unanswered was heard.
    Verdict,
    /// It has no user yet. A peer that is dead by then is closed anyway, so it is not pinged before.
    User,
}

#[derive(Debug)]
pub(crate) struct Handshake {
    pub peer: IpAddr,
    /// A PROXY header must come first and has not come yet.
    pub proxy_due: bool,
    /// The head so far; after it, what came before the decision.
    pub buf: Vec<u8>,
    /// How far `buf` holds no end of the head.
    pub scanned: usize,
    /// What the 101 needs to know.
    pub upgrade: Option<Upgrade>,
}

/// What a connection is in the middle of; nothing most of the time.
#[derive(Debug)]
pub(crate) enum Unfinished {
    /// Until the application has decided.
    Handshake(Handshake),
    /// A message of which not all has come.
    Message(Box<Partial>),
}

#[derive(Debug)]
pub(crate) struct Connection {
    pub session: Box<[u8]>,
    /// Room numbers.
    pub rooms: Short,
    pub unfinished: Option<Box<Unfinished>>,
    pub outbox: Option<Box<Outbox>>,
    /// Client messages and control frames.
    pub allowance: Bucket,
    /// When the handshake must be done, the next ping sent, or the closing over: what `state` waits for.
    pub due: Tick,
    /// What `Closed` will say; 0 = nothing was agreed.
    pub code: u16,
    pub state: State,
    pub awaits: Awaits,
    /// Which of `Settings::notices` it understands.
    pub dialect: u8,
    pub encoding: Encoding,
    /// Pings sent since the peer was last heard.
    pub unanswered: u8,
    /// Queued for a write.
    pub dirty: bool,
    /// The socket took less than offered; no write before it says it is writable.
    pub blocked: bool,
    /// What comes is not read any more: the peer broke a rule.
    pub deaf: bool,
    /// Its close frame or its end of stream has come.
    pub peer_done: bool,
    /// The application was given a message of it and has sent it nothing since.
    pub asked: bool,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            session: Box::default(),
            rooms: Short::EMPTY,
            unfinished: None,
            outbox: None,
            allowance: Bucket::default(),
            due: 0,
            code: 0,
            state: State::Head,
            awaits: Awaits::Ping,
            dialect: 0,
            encoding: Encoding::Plain,
            unanswered: 0,
            dirty: false,
            blocked: false,
            deaf: false,
            peer_done: false,
            asked: false,
        }
    }
}

impl Connection {
    pub fn accepted(peer: IpAddr, due: Tick, settings: &Settings) -> Self {
        let proxy_due = settings.proxy_protocol;
        let handshake = Handshake { peer, proxy_due, buf: Vec::new(), scanned: 0, upgrade: None };
        Self { unfinished: Some(Box::new(Unfinished::Handshake(handshake))), due, ..Self::default() }
    }

    pub fn handshake(&self) -> Option<&Handshake> {
        match self.unfinished.as_deref() {
            Some(Unfinished::Handshake(handshake)) => Some(handshake),
            _ => None,
        }
    }

    pub fn handshake_mut(&mut self) -> Option<&mut Handshake> {
        match self.unfinished.as_deref_mut() {
            Some(Unfinished::Handshake(handshake)) => Some(handshake),
            _ => None,
        }
    }

    /// Ends the handshake.
    pub fn take_handshake(&mut self) -> Option<Handshake> {
        match *self.unfinished.take()? {
            Unfinished::Handshake(handshake) => Some(handshake),
            Unfinished::Message(_) => None,
        }
    }

    pub fn take_partial(&mut self) -> Option<Box<Partial>> {
        match *self.unfinished.take()? {
            Unfinished::Message(partial) => Some(partial),
            Unfinished::Handshake(_) => None,
        }
    }

    pub fn set_partial(&mut self, partial: Option<Box<Partial>>) {
        self.unfinished = partial.map(|partial| Box::new(Unfinished::Message(partial)));
    }

    pub fn is_deflating(&self) -> bool {
        self.encoding != Encoding::Plain
    }

    pub fn owed(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.bytes())
    }

    /// The earliest of all it waits for, and what it means.
    pub fn deadline(&self, settings: &Settings) -> (Tick, Timer) {
        let meaning = match self.state {
            State::Head | State::Deciding => Timer::Handshake,
            State::Open => match self.awaits {
                Awaits::User => Timer::Overdue,
                Awaits::Verdict => Timer::Pong,
                Awaits::Ping => Timer::Ping,
            },
            State::Closing | State::Refused => Timer::Close,
        };
        match &self.outbox {
            Some(outbox) if self.blocked => {
                let stalled = outbox.progress.wrapping_add(tick_after(settings.write_timeout_ms));
                if is_due(stalled, self.due) { (stalled, Timer::Write) } else { (self.due, meaning) }
            }
            _ => (self.due, meaning),
        }
    }

    /// A ping goes out now: plans what comes after it. The peer is dead a time-out after the last of the pings that it may leave unanswered.
    pub fn pinged(&mut self, now: Millis, rhythm: &Rhythm, settings: &Settings) {
        self.unanswered = self.unanswered.saturating_add(1);
        (self.awaits, self.due) = if self.unanswered >= settings.unanswered_pings {
            (Awaits::Verdict, tick_after(now + settings.pong_timeout_ms))
        } else {
            (Awaits::Ping, rhythm.next(now))
        };
    }

    /// The peer was heard in time: the next ping comes when it would have come anyway.
    pub fn answered(&mut self, now: Millis, rhythm: &Rhythm, settings: &Settings) {
        self.awaits = Awaits::Ping;
        let wait = settings.ping_interval_ms.saturating_sub(settings.pong_timeout_ms);
        self.due = rhythm.within(wait, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_fits_into_72_bytes() {
        assert!(size_of::<Connection>() <= 72, "{}", size_of::<Connection>());
        assert_eq!(size_of::<Option<Connection>>(), size_of::<Connection>());
    }

    #[test]
    fn a_stalled_write_comes_before_a_later_ping_only_while_the_socket_is_full() {
        let settings = Settings { write_timeout_ms: 1600, ..Settings::default() };
        let mut outbox = Box::<Outbox>::default();
        outbox.progress = 50;
        let mut conn = Connection { state: State::Open, due: 200, outbox: Some(outbox), ..Connection::default() };
        assert_eq!(conn.deadline(&settings), (200, Timer::Ping));
        conn.blocked = true;
        assert_eq!(conn.deadline(&settings), (150, Timer::Write));
    }
}
