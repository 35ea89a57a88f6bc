//! How connections end.
//!
//! Rule: whichever way it ends, an admitted connection is followed by exactly one `Closed` and every connection by exactly one
//! `Shut` (or `HandOver`), and it leaves its rooms at the first sign of the end.

use crate::{
    Effect, Event, Hub, Millis, Notice, Notices, Payload, Refusal,
    connection::{Awaits, Connection, State},
    event::ABNORMAL,
    timers::{is_due, tick_after, tick_before},
    ws::{
        close,
        frame::{self, Opcode},
    },
};

/// RFC 6455 section 7.4.1: a close frame without a code.
const NO_CODE: u16 = 1005;
/// What an application's impossible close code becomes: the fault is ours.
const INTERNAL_ERROR: u16 = 1011;

impl Hub {
    /// Delivers what was published to it, then sends a close frame and waits for the peer's.
    pub(crate) fn begin_close(&mut self, slot: u32, code: u16, reason: &str, why: Option<Refusal>, now: Millis) {
        self.catch_up_all(slot, now);
        self.close_caught_up(slot, code, reason, why, now);
    }

    /// The same for one to which nothing is under way.
    pub(crate) fn close_caught_up(&mut self, slot: u32, code: u16, reason: &str, why: Option<Refusal>, now: Millis) {
        if !self.slab.at(slot).is_some_and(|client| client.state == State::Open) {
            return;
        }
        why.into_iter().for_each(|why| self.stats.refuse(why));
        let code = if close::is_valid(code) { code } else { INTERNAL_ERROR };
        self.owe(slot, now, |outbox| outbox.push_own(|out| close::encode(code, reason, out)));
        self.start_closing(slot, code, now);
    }

    /// The last message of one that is about to be closed, after everything that was published to it.
    pub(crate) fn say_last(&mut self, slot: u32, which: fn(&Notices) -> Option<&Notice>, now: Millis) {
        self.catch_up_all(slot, now);
        if let Some(payload) = self.notice(slot, which, now)
            && self.slab.at(slot).is_some_and(|client| client.state == State::Open)
        {
            self.send(slot, &payload, now);
        }
    }

    /// In the client's dialect, if there is something to say in it.
    pub(crate) fn notice(&self, slot: u32, which: fn(&Notices) -> Option<&Notice>, now: Millis) -> Option<Payload> {
        let notices = self.settings.notices.get(usize::from(self.slab.at(slot)?.dialect))?;
        which(notices).map(|notice| notice.at(self.settings.began_unix_ms + now))
    }

    /// The peer broke a rule: what it sends from now on is not read. What it sent before is answered first, if the application
    /// still has something of it.
    pub(crate) fn fail(&mut self, slot: u32, code: u16, reason: &'static str, why: Refusal, now: Millis) {
        self.stats.refuse(why);
        let due = tick_after(now + self.settings.close_timeout_ms);
        let (Some(conn), Some(client)) = (self.slab.id_at(slot), self.slab.at_mut(slot)) else {
            return;
        };
        client.deaf = true;
        client.awaits = Awaits::Ping;
        if client.state != State::Open {
            return;
        }
        if client.asked {
            (client.code, client.due) = (code, due);
            self.events.push_back(Event::Failed { conn, code, reason });
            return self.replan(slot);
        }
        self.begin_close(slot, code, reason, None, now);
    }

    /// The peer's close frame has come: RFC 6455 section 5.5.1 wants the same code back, if ours was not first.
    pub(crate) fn peer_closed(&mut self, slot: u32, code: Option<u16>, now: Millis) {
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        client.peer_done = true;
        if client.state == State::Open {
            self.owe(slot, now, |outbox| outbox.push_own(|out| echo(code, out)));
            self.start_closing(slot, code.unwrap_or(NO_CODE), now);
        }
        self.settle(slot);
    }

    /// It takes too little of what it is owed: keeps the frame it is in the middle of, drops the rest, and closes. A reader that
    /// goes on within another time-out learns why.
    pub(crate) fn close_slow(&mut self, slot: u32, why: Refusal, now: Millis) {
        self.stats.refuse(why);
        self.owe(slot, now, |outbox| {
            outbox.cut_unbegun();
            outbox.progress = tick_before(now);
            outbox.push_own(|out| close::encode(1013, "too slow", out));
        });
        self.start_closing(slot, 1013, now);
        let due = tick_after(now + self.settings.write_timeout_ms);
        if let Some(client) = self.slab.at_mut(slot) {
            client.due = due;
        }
        self.replan(slot);
    }

    /// Ends a closing connection for which nothing is left to do.
    pub(crate) fn settle(&mut self, slot: u32) {
        if let Some(client) = self.slab.at(slot)
            && client.peer_done
            && client.outbox.is_none()
        {
            self.end(slot);
        }
    }

    /// Everything owed is written: from now on the peer has `close_timeout` to end it.
    pub(crate) fn flushed(&mut self, slot: u32, now: Millis) {
        let due = tick_after(now + self.settings.close_timeout_ms);
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        if client.state == State::Refused {
            // the socket layer lets the answer arrive before it closes (RFC 9112 section 9.6)
            return self.end(slot);
        }
        if client.state == State::Closing {
            if is_due(due, client.due) {
                client.due = due;
            }
            self.settle(slot);
            self.plan(slot);
        }
    }

    /// The end: no later call knows this connection.
    pub(crate) fn end(&mut self, slot: u32) {
        let Some(conn) = self.slab.id_at(slot) else {
            return;
        };
        self.leave_all(slot);
        let Some(client) = self.forget(slot) else {
            return;
        };
        let admitted = client.state.is_admitted();
        if admitted {
            let code = if client.code == 0 { ABNORMAL } else { client.code };
            self.events.push_back(Event::Closed { conn, session: client.session, code });
        }
        self.effects.push_back(Effect::Shut { conn, admitted });
    }

    /// Frees the slot and takes the connection out of all sums.
    pub(crate) fn forget(&mut self, slot: u32) -> Option<Connection> {
        let mut client = self.slab.remove(slot)?;
        self.timers.cancel(slot);
        if let Some(outbox) = client.outbox.take() {
            self.stats.outbox_bytes_now -= outbox.bytes() as u64;
            self.pool.give(outbox);
        }
        if client.state.is_admitted() {
            self.stats.connections_now -= 1;
            self.stats.deflate_now -= u64::from(client.is_deflating());
        } else {
            self.stats.handshakes_now -= 1;
        }
        Some(client)
    }

    fn start_closing(&mut self, slot: u32, code: u16, now: Millis) {
        self.leave_all(slot);
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        // a full socket gets time to empty first; without a bound a reader of one byte now and then would stay for ever
        let flushing_ms = if client.blocked { self.settings.write_timeout_ms } else { 0 };
        client.due = tick_after(now + self.settings.close_timeout_ms + flushing_ms);
        client.state = State::Closing;
        client.code = code;
        client.unfinished = None;
        self.plan(slot);
    }
}

fn echo(code: Option<u16>, out: &mut Vec<u8>) {
    match code {
        Some(code) => close::encode(code, "", out),
        None => frame::encode(Opcode::Close, b"", false, out),
    }
}
