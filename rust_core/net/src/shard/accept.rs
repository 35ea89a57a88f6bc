//! Newcomers: accepted in bursts, and turned away where no decision is needed.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use tidegate_hub::{ConnId, Millis, Refusal};

use super::Shard;
use crate::{
    answers,
    limit::Debt,
    listener::{Accepted, accept},
    relay::Client,
    slots::Slot,
    tls::Tls,
    token::Token,
};

impl Shard {
    pub(super) fn accept_burst(&mut self) {
        if self.accept_at.is_none_or(|at| at > self.now) {
            return;
        }
        for _ in 0..ACCEPTS_A_PASS {
            match accept(&self.listener) {
                Accepted::Socket(socket, peer) => self.welcome(socket, peer),
                Accepted::Aborted => {}
                Accepted::Nobody => {
                    self.accept_at = None;
                    return;
                }
                Accepted::Exhausted => {
                    self.accept_at = Some(self.now + EXHAUSTED_PAUSE_MS);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, socket: OwnedFd, peer: IpAddr) {
        let proxied = self.shared.settings.proxy_protocol;
        if proxied && !self.shared.trusted.contain(peer) {
            self.refused.count(Refusal::Proxy);
            return;
        }
        // behind a proxy the address that counts comes with its header
        let debt = if proxied { Ok(None) } else { self.shared.limits.connect(&self.shared.keys, peer) };
        match debt {
            Ok(debt) => self.admit(socket, peer, debt),
            Err(why) => self.refuse_newcomer(socket, why, answers::ADDRESS),
        }
    }

    fn admit(&mut self, socket: OwnedFd, peer: IpAddr, debt: Option<Box<Debt>>) {
        let Some(conn) = self.hub.handle_accept(peer, self.now) else {
            self.shared.limits.give_back(false, debt);
            self.refuse_newcomer(socket, Refusal::Connections, answers::CONNECTIONS);
            return;
        };
        let mut slot = Slot::new(conn, socket);
        slot.debt = debt;
        let opened = self.begin_tls(&mut slot) && self.epoll.add(slot.fd(), Token::Conn(conn).bits()).is_ok();
        self.slots.insert(conn, slot);
        if !opened {
            self.end(conn, None);
        }
    }

    /// False when there is no memory for a session.
    fn begin_tls(&self, slot: &mut Slot) -> bool {
        let Some(config) = self.shared.tls() else {
            return true;
        };
        slot.proxied = self.shared.settings.proxy_protocol;
        slot.tls = Tls::new(config).ok().map(Box::new);
        slot.tls.is_some()
    }

    pub(super) fn end(&mut self, conn: ConnId, why: Option<Refusal>) {
        self.hub.handle_gone(conn, why, self.now);
        self.act();
    }

    fn refuse_newcomer(&mut self, socket: OwnedFd, why: Refusal, answer: &[u8]) {
        self.refused.count(why);
        // an answer in plain text means nothing to a TLS client
        if self.shared.tls().is_none() {
            self.turn_away(Client { socket, tls: None }, answer, true);
        }
    }

    /// Answers without having read, and sees the socket off. `new`: epoll does not know it yet.
    pub(super) fn turn_away(&mut self, mut client: Client, answer: &[u8], new: bool) {
        // a socket that takes no hundred bytes is left to its fate
        let _ = client.write(answer);
        self.see_off(client, new);
    }

    pub(super) fn see_off(&mut self, client: Client, new: bool) {
        let (epoll, fd) = (&self.epoll, client.socket.as_raw_fd());
        self.lingers.see_off(client, &mut self.scratch, self.now, |number| {
            let token = Token::Linger(number).bits();
            if new { epoll.add(fd, token).is_ok() } else { epoll.rename(fd, token).is_ok() }
        });
    }
}

/// A few milliseconds' worth, so that connections that are there already are served in between.
const ACCEPTS_A_PASS: usize = 128;
/// Out of descriptors or memory: soon enough for those who wait, seldom enough not to spin.
const EXHAUSTED_PAUSE_MS: Millis = 50;
