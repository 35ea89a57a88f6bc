//! From the accepted socket to the application's decision.
//!
//! PROXY header (if asked for), then one HTTP request head. Not a WebSocket path: socket and bytes go to the HTTP app. A good
//! upgrade: the application decides. Everything else gets one short answer and no second chance. Rule: the whole of it has one deadline.

use crate::{
    Command, ConnId, Effect, Event, Hub, Millis, Refusal,
    connection::{Awaits, Handshake, State},
    event::ABNORMAL,
    timers::tick_after,
    ws::{
        proxy,
        upgrade::{self, Rejection, Request, Upgrade},
    },
};

/// What a client that was turned away only for now is told to wait: reconnects of a drained node go to others.
const RETRY_AFTER_S: u32 = 1;

impl Hub {
    pub(crate) fn receive_head(&mut self, slot: u32, bytes: &[u8], now: Millis) {
        let Some(handshake) = self.handshake(slot) else {
            return;
        };
        handshake.buf.extend_from_slice(bytes);
        if !handshake.proxy_due || self.read_proxy_header(slot) {
            self.read_request(slot, now);
        }
    }

    /// What comes before the decision is kept: a client may send its first message without waiting for the 101.
    pub(crate) fn receive_early(&mut self, slot: u32, bytes: &[u8]) {
        let bytes_max = self.settings.head_bytes_max;
        let Some(handshake) = self.handshake(slot) else {
            return;
        };
        if handshake.buf.len() + bytes.len() > bytes_max {
            self.stats.refuse(Refusal::HeadTooLarge);
            return self.end(slot);
        }
        handshake.buf.extend_from_slice(bytes);
    }

    /// Carries out `Admit`. Of one that comes too late, only the end is told.
    pub(crate) fn admit(&mut self, command: Command, now: Millis) {
        let Command::Admit { conn, session, user, rooms, payloads, protocol, close, dialect } = command else {
            return;
        };
        if self.drain.is_some() && self.awaits_decision(conn) {
            self.turn_away(conn.slot(), Refusal::Draining, now);
        }
        let Some(slot) = self.slab.find(conn).filter(|_| self.awaits_decision(conn)) else {
            self.drop_joins(&rooms);
            return self.tell_missed(conn, session);
        };
        let Some(mut early) = self.open(slot, session, protocol.as_deref(), dialect, now) else {
            return;
        };
        if user.is_none() {
            self.expect_user(slot, now);
        }
        let within_limit = self.join_all(slot, &rooms);
        for payload in &payloads {
            self.send(slot, payload, now);
        }
        if !within_limit {
            self.begin_close(slot, 1008, "too many rooms", Some(Refusal::Rooms), now);
        } else if let Some((code, reason)) = close {
            self.begin_close(slot, code, &reason, None, now);
        }
        if !early.is_empty() {
            self.receive_frames(slot, &mut early, now);
        }
    }

    /// The application may have told others of a connection that it could not have.
    fn tell_missed(&mut self, conn: ConnId, session: Box<[u8]>) {
        let state = self.slab.find(conn).and_then(|slot| self.slab.at(slot)).map(|client| client.state);
        // any other state means that this `Admit` answers nothing: no upgrade was told yet, or it was answered
        if matches!(state, None | Some(State::Refused)) {
            self.events.push_back(Event::Closed { conn, session, code: ABNORMAL });
        }
    }

    fn expect_user(&mut self, slot: u32, now: Millis) {
        let auth_ms = self.settings.auth_ms;
        if let Some(client) = self.slab.at_mut(slot).filter(|_| auth_ms > 0) {
            (client.awaits, client.due) = (Awaits::User, tick_after(now + auth_ms));
            self.replan(slot);
        }
    }

    /// It has a user, or has had its time: from now on it is pinged.
    pub(crate) fn end_anonymity(&mut self, slot: u32, now: Millis) -> bool {
        let due = self.rhythm.next(now);
        let Some(client) = self.slab.at_mut(slot).filter(|client| client.awaits == Awaits::User) else {
            return false;
        };
        (client.awaits, client.due) = (Awaits::Ping, due);
        self.replan(slot);
        true
    }

    /// Answers an undecided upgrade with an HTTP status, counts `why` and ends the connection.
    pub fn refuse(
        &mut self,
        conn: ConnId,
        why: Refusal,
        status: u16,
        body: &[u8],
        retry_after_s: Option<u32>,
        now: Millis,
    ) {
        if self.awaits_decision(conn) {
            self.answer(conn.slot(), why, upgrade::response(status, body, retry_after_s), now);
        }
    }

    pub(crate) fn handshake_timed_out(&mut self, slot: u32, now: Millis) {
        let Some(client) = self.slab.at(slot) else {
            return;
        };
        let begun = client.handshake().is_some_and(|handshake| !handshake.proxy_due && !handshake.buf.is_empty());
        match client.state {
            State::Deciding => self.turn_away(slot, Refusal::HandshakeTimeout, now),
            _ if begun => self.answer(slot, Refusal::HandshakeTimeout, upgrade::response(408, b"", None), now),
            _ => {
                self.stats.refuse(Refusal::HandshakeTimeout);
                self.end(slot);
            }
        }
    }

    fn handshake(&mut self, slot: u32) -> Option<&mut Handshake> {
        self.slab.at_mut(slot)?.handshake_mut()
    }

    /// `true` once the header was there and good.
    fn read_proxy_header(&mut self, slot: u32) -> bool {
        let Some(conn) = self.slab.id_at(slot) else {
            return false;
        };
        let bytes_max = self.settings.head_bytes_max;
        let Some(handshake) = self.handshake(slot) else {
            return false;
        };
        match proxy::parse(&handshake.buf) {
            proxy::Parsed::Incomplete if handshake.buf.len() <= bytes_max => false,
            proxy::Parsed::Incomplete | proxy::Parsed::Bad => {
                self.stats.refuse(Refusal::Proxy);
                self.end(slot);
                false
            }
            proxy::Parsed::Done { len, peer } => {
                handshake.buf.drain(..len);
                handshake.proxy_due = false;
                if let Some(peer) = peer {
                    handshake.peer = peer;
                    self.effects.push_back(Effect::Peer { conn, peer });
                }
                true
            }
        }
    }

    fn read_request(&mut self, slot: u32, now: Millis) {
        let bytes_max = self.settings.head_bytes_max;
        let Some(handshake) = self.handshake(slot) else {
            return;
        };
        let end = upgrade::find_head_end(&handshake.buf, &mut handshake.scanned);
        if end.unwrap_or(handshake.buf.len()) > bytes_max {
            return self.reject(slot, Rejection::HEAD_TOO_LARGE, now);
        }
        let Some(end) = end else { return };
        let Some(handshake) = self.slab.at(slot).and_then(|client| client.handshake()) else {
            return;
        };
        match upgrade::parse(&handshake.buf[..end], &self.settings) {
            Ok(Request::Http) => self.hand_over(slot),
            Ok(Request::WebSocket(_)) if self.drain.is_some() => self.turn_away(slot, Refusal::Draining, now),
            Ok(Request::WebSocket(upgrade)) => self.ask(slot, end, upgrade),
            Err(rejection) => self.reject(slot, rejection, now),
        }
    }

    fn hand_over(&mut self, slot: u32) {
        let Some(conn) = self.slab.id_at(slot) else {
            return;
        };
        let bytes = self.forget(slot).and_then(|mut client| client.take_handshake()).map(|handshake| handshake.buf);
        self.effects.push_back(Effect::HandOver { conn, bytes: bytes.unwrap_or_default() });
    }

    /// The application decides about this upgrade.
    fn ask(&mut self, slot: u32, head_end: usize, mut upgrade: Upgrade) {
        let Some(conn) = self.slab.id_at(slot) else {
            return;
        };
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        client.state = State::Deciding;
        let Some(handshake) = client.handshake_mut() else {
            return;
        };
        handshake.buf = handshake.buf.split_off(head_end);
        let target = std::mem::take(&mut upgrade.target);
        let headers = std::mem::take(&mut upgrade.headers);
        handshake.upgrade = Some(upgrade);
        self.events.push_back(Event::Upgrade { conn, peer: handshake.peer, target, headers });
    }

    /// Sends the 101. Returns what the client sent ahead of it.
    fn open(
        &mut self,
        slot: u32,
        session: Box<[u8]>,
        protocol: Option<&str>,
        dialect: u8,
        now: Millis,
    ) -> Option<Vec<u8>> {
        let due = self.rhythm.first(slot, now);
        let client = self.slab.at_mut(slot)?;
        let handshake = client.take_handshake()?;
        let upgrade = handshake.upgrade?;
        client.session = session;
        client.dialect = dialect;
        client.state = State::Open;
        client.due = due;
        if let Some(deflate) = upgrade.deflate {
            client.encoding = deflate.encoding();
            self.stats.deflate_now += 1;
        }
        self.stats.handshakes_now -= 1;
        self.stats.connections_now += 1;
        self.stats.connections += 1;
        let protocol = protocol.filter(|protocol| upgrade::offers(&upgrade.protocols, protocol));
        let answer = upgrade::response_101(&upgrade.accept, protocol, upgrade.deflate);
        self.owe(slot, now, |outbox| outbox.push_whole(answer));
        self.replan(slot);
        Some(handshake.buf)
    }

    fn reject(&mut self, slot: u32, rejection: Rejection, now: Millis) {
        self.answer(slot, rejection.why, rejection.response(), now);
    }

    fn turn_away(&mut self, slot: u32, why: Refusal, now: Millis) {
        self.answer(slot, why, upgrade::response(503, b"", Some(RETRY_AFTER_S)), now);
    }

    /// One answer, then the peer's turn to end: closing at once could destroy the answer on its way (RFC 9112 section 9.6).
    fn answer(&mut self, slot: u32, why: Refusal, bytes: Vec<u8>, now: Millis) {
        self.stats.refuse(why);
        let due = tick_after(now + self.settings.close_timeout_ms);
        let (Some(conn), Some(client)) = (self.slab.id_at(slot), self.slab.at_mut(slot)) else {
            return;
        };
        self.effects.push_back(Effect::Refused { conn });
        client.unfinished = None;
        client.state = State::Refused;
        client.due = due;
        self.owe(slot, now, |outbox| outbox.push_whole(bytes));
        self.replan(slot);
    }
}
