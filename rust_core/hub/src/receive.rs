//! What an admitted client sends.
//!
//! Pings and close frames are answered here, messages become events. Rule: whatever a client sends costs its own allowance or
//! its own connection, nobody else's time.

use std::{collections::VecDeque, ops::ControlFlow};

use memchr::memmem::Finder;

use crate::{
    ConnId, Event, Hub, Millis, Refusal, Settings, Stats,
    bucket::WHOLE,
    connection::{Connection, State},
    ws::{
        frame::{self, Opcode},
        message::{self, Incoming, Limits},
    },
};

/// What is not marked costs of the rate, where only some messages count in full: acknowledgements and heartbeats must not use up what a user
/// may send, yet a flood of them is bounded too. A chat message is acknowledged by everybody who gets it, so there are many for each.
const UNMARKED: u32 = WHOLE / 100;

/// How reading ended, other than by the end of the bytes.
enum Outcome {
    PeerClosed(Option<u16>),
    TooMany,
}

/// One batch of a client's bytes while it is read.
struct Reading<'a> {
    conn: ConnId,
    client: &'a mut Connection,
    events: &'a mut VecDeque<Event>,
    stats: &'a mut Stats,
    settings: &'a Settings,
    mark: Option<&'a Finder<'static>>,
    now: Millis,
    /// Frames that answer its pings, and where the last of them begins.
    pongs: Vec<u8>,
    last_pong: usize,
    /// Messages beyond the rate that are discarded and answered.
    discarded: u32,
    outcome: Option<Outcome>,
}

impl Hub {
    pub(crate) fn receive_frames(&mut self, slot: u32, bytes: &mut [u8], now: Millis) {
        let (Some(conn), Some(client)) = (self.slab.id_at(slot), self.slab.at_mut(slot)) else {
            return;
        };
        if client.peer_done || client.deaf {
            client.peer_done |= ends_with_close(bytes);
            // one that is open still waits for our close frame
            return match client.state {
                State::Open => {}
                _ => self.settle(slot),
            };
        }
        let limits = Limits {
            message_bytes_max: self.settings.message_bytes_max,
            fragments_max: self.settings.fragments_max,
            deflate: client.is_deflating(),
        };
        let mut partial = client.take_partial();
        let mut reading = Reading {
            conn,
            client,
            events: &mut self.events,
            stats: &mut self.stats,
            settings: &self.settings,
            mark: self.mark.as_ref(),
            now,
            pongs: Vec::new(),
            last_pong: 0,
            discarded: 0,
            outcome: None,
        };
        let result =
            message::feed(&mut partial, bytes, &limits, &mut self.inflater, &mut |incoming| reading.take(incoming));
        let Reading { pongs, last_pong, discarded, outcome, .. } = reading;
        self.pong(slot, &pongs, last_pong, now);
        self.answer_discarded(slot, discarded, now);
        match (result, outcome) {
            (Err(violation), _) => {
                self.fail(slot, violation.close_code(), violation.reason(), violation.refusal(), now);
            }
            (Ok(_), Some(Outcome::PeerClosed(code))) => self.peer_closed(slot, code, now),
            (Ok(_), Some(Outcome::TooMany)) => self.fail(slot, 1008, "too many messages", Refusal::MessageRate, now),
            (Ok(_), None) => {
                if let Some(client) = self.slab.at_mut(slot) {
                    client.set_partial(partial);
                }
            }
        }
    }

    fn answer_discarded(&mut self, slot: u32, count: u32, now: Millis) {
        if count == 0 {
            return;
        }
        let Some(payload) = self.notice(slot, |notices| notices.excess.as_ref(), now) else {
            return;
        };
        let asked = self.slab.at(slot).is_some_and(|client| client.asked);
        for _ in 0..count {
            self.send(slot, &payload, now);
        }
        if let Some(client) = self.slab.at_mut(slot) {
            // what the application was given is still to be answered
            client.asked = asked;
        }
    }

    fn pong(&mut self, slot: u32, pongs: &[u8], last: usize, now: Millis) {
        if pongs.is_empty() {
            return;
        }
        let blocked = self.slab.at(slot).is_some_and(|client| client.blocked);
        self.owe(slot, now, |outbox| match blocked {
            true => outbox.push_pong(pongs[last..].to_vec()),
            false => outbox.push_own(|out| out.extend_from_slice(pongs)),
        });
    }
}

impl Reading<'_> {
    fn take(&mut self, incoming: Incoming<'_>) -> ControlFlow<()> {
        if let Incoming::Close { code, .. } = incoming {
            self.outcome = Some(Outcome::PeerClosed(code));
            return ControlFlow::Continue(());
        }
        let (rate, cost) = (self.settings.message_rate, self.cost(&incoming));
        if rate > 0 && !self.client.allowance.take(self.now, rate, self.burst(cost), cost) {
            return self.beyond_the_rate(&incoming);
        }
        // after our close frame only the peer's counts
        if self.client.state == State::Open {
            match incoming {
                Incoming::Text(payload) => self.message(payload, true),
                Incoming::Binary(payload) => self.message(payload, false),
                Incoming::Ping(payload) => {
                    self.last_pong = self.pongs.len();
                    frame::encode(Opcode::Pong, payload, false, &mut self.pongs);
                }
                Incoming::Pong | Incoming::Close { .. } => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// Who has used up what it may send can still acknowledge what it gets: a tenth of the burst is kept for that.
    fn burst(&self, cost: u32) -> u32 {
        let burst = self.settings.message_burst;
        if cost == WHOLE { burst } else { burst.saturating_add(burst.div_ceil(10)) }
    }

    fn cost(&self, incoming: &Incoming<'_>) -> u32 {
        match (self.mark, incoming) {
            (None, _) => WHOLE,
            (Some(mark), Incoming::Text(payload) | Incoming::Binary(payload)) if mark.find(payload).is_some() => WHOLE,
            (Some(_), _) => UNMARKED,
        }
    }

    fn beyond_the_rate(&mut self, incoming: &Incoming<'_>) -> ControlFlow<()> {
        let notices = self.settings.notices.get(usize::from(self.client.dialect));
        if notices.is_none_or(|notices| notices.excess.is_none()) {
            self.outcome = Some(Outcome::TooMany);
            return ControlFlow::Break(());
        }
        self.stats.refuse(Refusal::MessageRate);
        self.discarded += u32::from(matches!(incoming, Incoming::Text(_) | Incoming::Binary(_)));
        ControlFlow::Continue(())
    }

    fn message(&mut self, payload: &[u8], text: bool) {
        self.stats.messages_in += 1;
        self.client.asked = true;
        let session = self.client.session.clone();
        self.events.push_back(Event::Message { conn: self.conn, session, payload: payload.into(), text });
    }
}

/// Whether these bytes look like the end of a client's stream: a masked close frame comes last. Frames are not followed any more after a
/// violation, but a peer that has said its close waits for us to end the connection.
fn ends_with_close(bytes: &[u8]) -> bool {
    const HEADER_AND_MASK: usize = 6;
    (0..=125usize).any(|len| {
        let start = bytes.len().checked_sub(HEADER_AND_MASK + len);
        start.is_some_and(|start| bytes[start] == 0x88 && bytes[start + 1] == 0x80 | len as u8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_frame_at_the_end_is_recognised_behind_anything() {
        assert!(ends_with_close(b"\x88\x80mask"));
        assert!(ends_with_close(b"garbage\x88\x82maskxy"));
        assert!(!ends_with_close(b"\x88\x82maskx"));
        assert!(!ends_with_close(b"\x88\x02xy"));
        assert!(!ends_with_close(b""));
    }
}
