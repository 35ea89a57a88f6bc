//! What was asked, and what the hub wants done about it: mail in, effects and events out.

use std::{mem, os::fd::AsRawFd, time::Instant};

use tidegate_hub::{Command, ConnId, Effect, Event, Refusal};

use super::{STEP_TIME_MAX, Shard};
use crate::{
    answers::{self, Refused},
    mailbox::Mail,
    relay::Client,
    submit::conn_of,
};

impl Shard {
    pub(super) fn carry_out_mail(&mut self) {
        let began = Instant::now();
        for _ in 0..MAIL_A_PASS {
            if !self.may_take_mail() || began.elapsed() >= STEP_TIME_MAX {
                return;
            }
            if self.inbox.is_empty() {
                self.mail_waits = false;
                let mailbox = &self.shared.mailboxes[usize::from(self.number)];
                mailbox.take(&mut self.inbox);
            }
            let Some(mail) = self.inbox.pop_front() else {
                return;
            };
            self.mailbox().begun(mail.bytes());
            match mail {
                Mail::Command(command) => self.carry_out(command),
                Mail::Publish(group) => self.hub.handle_publish(&group, self.now),
            }
            // mail makes bytes to write, as a rule
            self.more_writes = true;
            self.act();
        }
    }

    /// Mail is taken in order, so a publish that must wait keeps all that is behind it waiting.
    pub(super) fn may_take_mail(&self) -> bool {
        match self.inbox.front() {
            Some(Mail::Publish(_)) => self.backlog_bytes() <= self.shared.backlog_bytes_max,
            Some(Mail::Command(_)) => true,
            None => self.mail_waits,
        }
    }

    fn carry_out(&mut self, command: Command) {
        let Some(conn) = conn_of(&command) else {
            return self.hub.handle_command(command, self.now);
        };
        self.guarded(conn, |shard| match command {
            Command::Admit { conn, user: Some(user), .. } if !shard.admits_user(conn, user) => {
                shard.refuse(conn, Refusal::User, &answers::UPGRADE_USER);
                // for the hub it comes too late now: the joins are taken back, and the application is told
                shard.hub.handle_command(command, shard.now);
            }
            Command::Hold { conn, on } => shard.hold(conn, on),
            Command::User { conn, user } => {
                let debt = shard.slots.get(conn).map(|slot| &mut slot.debt);
                shard.shared.limits.take_over(user, debt);
                shard.hub.handle_command(command, shard.now);
            }
            command => shard.hub.handle_command(command, shard.now),
        });
    }

    fn admits_user(&mut self, conn: ConnId, user: u64) -> bool {
        // one that is gone, or was admitted already, is the hub's to ignore
        let awaited = self.hub.awaits_decision(conn);
        let Some(slot) = self.slots.get(conn).filter(|_| awaited) else {
            return true;
        };
        self.shared.limits.admit_user(user, &mut slot.debt).is_ok()
    }

    /// Does what only the socket layer can, until the hub wants nothing more.
    pub(super) fn act(&mut self) {
        loop {
            while let Some(effect) = self.hub.poll_effect() {
                self.carry_out_effect(effect);
            }
            let Some(event) = self.hub.poll_event() else {
                return;
            };
            if let Event::Upgrade { conn, .. } = event
                && !self.may_upgrade(conn)
            {
                continue;
            }
            self.events.push(event);
        }
    }

    fn carry_out_effect(&mut self, effect: Effect) {
        let directory = &self.shared.directory;
        match effect {
            Effect::RoomOpened { hash } => directory.opened(hash, self.number),
            Effect::RoomEmptied { hash } => directory.emptied(hash, self.number),
            Effect::Joined { hash } => directory.joined(hash, self.number),
            Effect::Shut { conn, admitted } => self.shut(conn, admitted),
            Effect::Refused { conn } => self.give_place_back(conn),
            Effect::HandOver { conn, bytes } => self.hand_over(conn, bytes),
            Effect::Peer { conn, peer } => {
                let Some(slot) = self.slots.get(conn) else {
                    return;
                };
                match self.shared.limits.connect(&self.shared.keys, peer) {
                    Ok(debt) => slot.debt = debt,
                    Err(_) => slot.unwelcome = true,
                }
            }
        }
    }

    /// The limits that all shards share are asked before Python is: an upgrade that cannot be must not cost a token check.
    fn may_upgrade(&mut self, conn: ConnId) -> bool {
        let Some(slot) = self.slots.get(conn) else {
            return false;
        };
        let answer = if slot.unwelcome { Err(Refusal::Address) } else { self.shared.limits.admit(self.now) };
        match answer {
            Ok(()) => slot.counted = true,
            Err(why @ Refusal::Address) => self.refuse(conn, why, &answers::UPGRADE_ADDRESS),
            Err(why @ Refusal::HandshakeRate) => self.refuse(conn, why, &answers::UPGRADE_RATE),
            Err(why) => self.refuse(conn, why, &answers::UPGRADE_CONNECTIONS),
        }
        answer.is_ok()
    }

    fn refuse(&mut self, conn: ConnId, why: Refusal, answer: &Refused) {
        let (body, retry_after_s) = (answer.body.as_bytes(), Some(answer.retry_after_s));
        self.hub.refuse(conn, why, answer.status, body, retry_after_s, self.now);
    }

    fn give_place_back(&mut self, conn: ConnId) {
        if let Some(slot) = self.slots.get(conn) {
            self.shared.limits.give_back(mem::take(&mut slot.counted), None);
        }
    }

    fn shut(&mut self, conn: ConnId, admitted: bool) {
        let Some(slot) = self.slots.remove(conn) else {
            return;
        };
        self.shared.limits.give_back(slot.counted, slot.debt);
        let client = Client { socket: slot.socket, tls: slot.tls };
        // after a close handshake nothing is under way; an HTTP answer may still be
        if !admitted || client.is_blocked() {
            self.see_off(client, false);
        } else if let Some(mut tls) = client.tls {
            tls.end(client.socket.as_raw_fd());
        }
    }

    /// Closes a socket that the hub cannot account for any more.
    pub(super) fn forget(&mut self, conn: ConnId) {
        if let Some(slot) = self.slots.remove(conn) {
            self.shared.limits.give_back(slot.counted, slot.debt);
        }
    }
}

/// Then it is time to write, before more is taken on.
const MAIL_A_PASS: usize = 1024;
