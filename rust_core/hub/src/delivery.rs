//! Getting what is owed to its socket, within bounds.
//!
//! Rule: the bound is for readers that are slow. While a socket takes what it is given, a burst may exceed it until the
//! next write; once it is full, who owes more than `outbox_bytes_max` pays (`OutboxPolicy`), never the others.

use std::sync::Arc;

use crate::{
    ConnId, Event, Fate, Group, Hub, Millis, Payload, Refusal, Sent, Wire,
    connection::{Connection, State},
    outbox::Outbox,
    settings::OutboxPolicy,
    timers::tick_before,
};

/// Writes to members of a fan-out before others get their turn: about a millisecond of sends.
const SLICE: usize = 256;
/// So many bytes cost the kernel as much time as the write they go out with.
const BYTES_A_WRITE: usize = 4096;

/// What a write of `bytes` takes of a budget: without it a slice of long bursts would last ten times as long as one of single messages.
pub(crate) fn weight(bytes: usize) -> usize {
    1 + bytes / BYTES_A_WRITE
}

impl Hub {
    /// Writes what is owed, at most about `budget` short writes or their worth; `true` when more could be written at once.
    /// Connections with few members' worth of work go first; a giant fan-out gets slices in between.
    pub fn drive_writes(&mut self, budget: usize, wire: &mut impl Wire, now: Millis) -> bool {
        let mut left = budget;
        while left > 0 {
            // half for the small ones, so that they can't keep a fan-out from ever going on
            let share = if self.fanout.is_idle() { left } else { left.div_ceil(2) };
            let written = self.write_dirty(share, wire, now);
            left = left.saturating_sub(written);
            let fanned = self.fan_out(SLICE.min(left), wire, now);
            left = left.saturating_sub(fanned);
            if written + fanned == 0 {
                break;
            }
        }
        !self.dirty.is_empty() || !self.fanout.is_idle()
    }

    /// Carries out `Command::Send`: to one that is open, and with a ticket it tells what came of it.
    pub(crate) fn send_to(&mut self, conn: ConnId, payload: &Payload, ticket: u64, now: Millis) {
        let fate = self.find_open(conn).map_or(Fate::Gone, |slot| self.send(slot, payload, now));
        if ticket > 0 {
            self.events.push_back(Event::Told { conn, ticket, fate });
        }
    }

    /// An application message to one connection.
    pub(crate) fn send(&mut self, slot: u32, payload: &Payload, now: Millis) -> Fate {
        let Some(client) = self.slab.at_mut(slot) else {
            return Fate::Gone;
        };
        client.asked = false;
        let (before, encoding) = (client.owed(), client.encoding);
        let mut deflater = std::mem::take(&mut self.deflater);
        self.owe(slot, now, |outbox| {
            outbox.push_own(|out| deflater.encode(payload.text, &payload.bytes, encoding, out))
        });
        self.deflater = deflater;
        let dropped = self.keep_bounds(slot, before, 1, now);
        self.stats.deliveries += 1 - dropped.min(1) as u64;
        let too_slow = self.slab.at(slot).is_none_or(|client| client.state != State::Open);
        if dropped > 0 || too_slow { Fate::Full } else { Fate::Queued }
    }

    /// Room messages to one member, by way of its outbox.
    pub(crate) fn deliver(&mut self, slot: u32, groups: &[Arc<Group>], now: Millis) {
        let Some(conn) = self.slab.id_at(slot) else {
            return;
        };
        let messages = groups.iter().map(|group| group.messages_for(conn)).sum();
        let before = self.slab.at(slot).map_or(0, Connection::owed);
        self.owe_groups(slot, groups, now);
        let dropped = self.keep_bounds(slot, before, messages, now);
        self.count_broadcasts(messages - dropped.min(messages));
    }

    pub(crate) fn count_broadcasts(&mut self, messages: usize) {
        self.stats.deliveries += messages as u64;
        self.stats.broadcasts += messages as u64;
    }

    /// The socket took only the first `written` bytes of a pass that went to it directly: the rest is owed.
    pub(crate) fn owe_rest(&mut self, slot: u32, groups: &[Arc<Group>], written: usize, now: Millis) {
        self.owe_groups(slot, groups, now);
        self.owe(slot, now, |outbox| outbox.advance(written));
        self.socket_full(slot, now);
    }

    fn owe_groups(&mut self, slot: u32, groups: &[Arc<Group>], now: Millis) {
        let (Some(conn), Some(client)) = (self.slab.id_at(slot), self.slab.at(slot)) else {
            return;
        };
        let (encoding, waits) = (client.encoding, client.blocked);
        let mut deflater = std::mem::take(&mut self.deflater);
        self.owe(slot, now, |outbox| {
            for group in groups {
                let frames = group.frames(encoding, &mut deflater);
                for range in group.ranges(frames, conn) {
                    outbox.push_shared(&frames.bytes, range, waits);
                }
            }
        });
        self.deflater = deflater;
    }

    /// Lets `change` change what the connection owes, and keeps the sums right.
    pub(crate) fn owe(&mut self, slot: u32, now: Millis, change: impl FnOnce(&mut Outbox)) {
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        let mut outbox = client.outbox.take().unwrap_or_else(|| self.pool.take());
        let before = outbox.bytes();
        if before == 0 {
            outbox.progress = tick_before(now);
        }
        change(&mut outbox);
        self.stats.outbox_bytes_now = self.stats.outbox_bytes_now + outbox.bytes() as u64 - before as u64;
        if outbox.bytes() == 0 {
            self.pool.give(outbox);
        } else {
            client.outbox = Some(outbox);
            self.mark_dirty(slot);
        }
    }

    pub(crate) fn mark_dirty(&mut self, slot: u32) {
        let Some(client) = self.slab.at_mut(slot) else {
            return;
        };
        if client.outbox.is_some() && !client.blocked && !client.dirty {
            client.dirty = true;
            self.dirty.push_back(slot);
        }
    }

    /// Returns the weight of its writes: `limit` at most, but for the last of them.
    fn write_dirty(&mut self, limit: usize, wire: &mut impl Wire, now: Millis) -> usize {
        let mut used = 0;
        while used < limit
            && let Some(slot) = self.dirty.pop_front()
        {
            let before = self.stats.bytes_out;
            // a slot that was let again since it was queued is not dirty
            if self.slab.at_mut(slot).is_some_and(|client| std::mem::take(&mut client.dirty)) {
                self.write(slot, wire, now);
            }
            used += weight((self.stats.bytes_out - before) as usize);
        }
        used
    }

    fn write(&mut self, slot: u32, wire: &mut impl Wire, now: Millis) {
        let (Some(conn), Some(client)) = (self.slab.id_at(slot), self.slab.at(slot)) else {
            return;
        };
        let Some(outbox) = client.outbox.as_ref().filter(|_| !client.blocked) else {
            return;
        };
        let parts = outbox.parts();
        let offered: usize = parts.iter().map(|part| part.len()).sum();
        self.stats.writes += 1;
        let sent = wire.write(conn, &parts);
        drop(parts);
        match sent {
            Sent::Dead => self.end(slot),
            Sent::Bytes(written) => self.written(slot, written.min(offered), written < offered, now),
        }
    }

    fn written(&mut self, slot: u32, written: usize, full: bool, now: Millis) {
        self.stats.bytes_out += written as u64;
        if let Some(client) = self.slab.at_mut(slot) {
            client.blocked = full;
        }
        self.owe(slot, now, |outbox| {
            outbox.advance(written);
            if written > 0 {
                outbox.progress = tick_before(now);
            }
        });
        if full {
            self.socket_full(slot, now);
        } else if self.slab.at(slot).is_some_and(|client| client.outbox.is_none()) {
            self.flushed(slot, now);
        }
    }

    /// From here on the outbox is bounded, and the socket has `write_timeout` to take more.
    fn socket_full(&mut self, slot: u32, now: Millis) {
        self.owe(slot, now, Outbox::unpin);
        let owed = self.slab.at(slot).map_or(0, Connection::owed);
        self.keep_bounds(slot, owed, 0, now);
        self.plan(slot);
    }

    /// Applies the policy after `added` messages came on top of `before` bytes. Returns how many messages it dropped.
    fn keep_bounds(&mut self, slot: u32, before: usize, added: usize, now: Millis) -> usize {
        let Some(client) = self.slab.at(slot).filter(|client| client.state == State::Open) else {
            return 0;
        };
        let over = client.owed() > self.settings.outbox_bytes_max;
        let all_over = self.stats.outbox_bytes_now + self.owed_elsewhere > self.settings.outbox_total_max as u64;
        let too_much = if client.blocked { over || all_over } else { over && all_over };
        match self.settings.outbox_policy {
            OutboxPolicy::Close if too_much => self.close_slow(slot, Refusal::SlowClose, now),
            OutboxPolicy::Close => {}
            OutboxPolicy::Drop { messages_max } => {
                return self.drop_newest(slot, before, added, messages_max, too_much, now);
            }
        }
        0
    }

    fn drop_newest(
        &mut self,
        slot: u32,
        before: usize,
        added: usize,
        messages_max: u32,
        too_much: bool,
        now: Millis,
    ) -> usize {
        let mut dropped = 0;
        self.owe(slot, now, |outbox| {
            if too_much && added > 0 {
                outbox.cut_to(before);
                dropped = added;
            } else {
                dropped = outbox.cut_messages(messages_max.max(1) as usize);
            }
        });
        self.stats.refused[Refusal::QueueFull as usize] += dropped as u64;
        dropped
    }
}
