//! Requests that are no upgrade: relayed to the HTTP app, a bounded number at a time.

use std::{mem, os::fd::OwnedFd};

use tidegate_hub::{ConnId, Millis, Refusal};

use super::Shard;
use crate::{
    answers,
    numbered::Number,
    relay::{Client, Relay, Turn},
    slots::Slot,
    socket::connect_abstract,
    token::Token,
};

impl Shard {
    /// The hub has forgotten the connection; `bytes` are what it has read of the request.
    pub(super) fn hand_over(&mut self, conn: ConnId, bytes: Vec<u8>) {
        let Some(slot) = self.slots.remove(conn) else {
            return;
        };
        // an upgrade that was counted is not handed over, but what is counted is given back, whatever the hub does
        self.shared.limits.give_back(slot.counted, None);
        match self.route(&slot) {
            Ok(app) => self.open_relay(slot, app, bytes),
            Err(answer) => {
                self.shared.limits.give_back(false, slot.debt);
                self.turn_away(Client { socket: slot.socket, tls: slot.tls }, answer, false);
            }
        }
    }

    /// A connection to the app, or the answer that takes its place.
    fn route(&mut self, slot: &Slot) -> Result<OwnedFd, &'static [u8]> {
        if slot.unwelcome {
            self.refused.count(Refusal::Address);
            return Err(answers::ADDRESS);
        }
        if self.shared.http_socket.is_empty() {
            return Err(answers::NOT_FOUND);
        }
        if self.relays.is_full() {
            self.refused.count(Refusal::Connections);
            return Err(answers::CONNECTIONS);
        }
        connect_abstract(&self.shared.http_socket).map_err(|_| answers::HTTP_APP)
    }

    fn open_relay(&mut self, slot: Slot, app: OwnedFd, bytes: Vec<u8>) {
        let client = Client { socket: slot.socket, tls: slot.tls };
        let relay = Relay::new(client, app, bytes, slot.debt, self.now);
        let token = Token::Relay(self.relays.next()).bits();
        let watched = self.epoll.rename(relay.client_fd(), token).and_then(|()| self.epoll.add(relay.app_fd(), token));
        if watched.is_err() {
            let (client, debt) = relay.into_client();
            self.shared.limits.give_back(false, debt);
            return self.turn_away(client, answers::HTTP_APP, false);
        }
        let number = self.relays.insert(relay);
        // what came before the socket had this token was told under the old one
        self.queue_relay(number);
    }

    /// Remembers a relay that may have something to move; it has two sockets, and both may say so.
    pub(super) fn queue_relay(&mut self, number: Number) {
        if let Some(relay) = self.relays.get(number)
            && !mem::replace(&mut relay.queued, true)
        {
            self.busy_relays.push_back(number);
        }
    }

    pub(super) fn serve_http(&mut self) {
        for _ in 0..self.busy_relays.len().min(RELAYS_A_PASS) {
            let Some(number) = self.busy_relays.pop_front() else {
                return;
            };
            let Some(relay) = self.relays.get(number) else {
                continue;
            };
            relay.queued = false;
            match relay.turn(&mut self.scratch, self.now) {
                Turn::Idle => {}
                Turn::More => self.queue_relay(number),
                Turn::Done => self.close_relay(number, true),
                Turn::Broken => self.close_relay(number, false),
            }
        }
    }

    /// Ends relays on which nothing moves any more.
    pub(super) fn sweep_relays(&mut self) {
        self.sweep_at = self.now + SWEEP_EVERY_MS;
        let idle = |relay: &Relay| self.now.saturating_sub(relay.active_at) >= IDLE_MS;
        let idle: Vec<Number> = self.relays.iter().filter(|(_, relay)| idle(relay)).map(|(number, _)| number).collect();
        idle.into_iter().for_each(|number| self.close_relay(number, false));
    }

    fn close_relay(&mut self, number: Number, answered: bool) {
        let Some(relay) = self.relays.remove(number) else {
            return;
        };
        let (client, debt) = relay.into_client();
        self.shared.limits.give_back(false, debt);
        if answered {
            self.see_off(client, false);
        }
    }
}

const RELAYS_A_PASS: usize = 64;
/// What nginx keeps an idle client for (`keepalive_timeout`): the app's own limit is shorter as a rule.
const IDLE_MS: Millis = 75_000;
const SWEEP_EVERY_MS: Millis = 5_000;
