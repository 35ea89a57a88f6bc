//! One shard's state: connections, rooms, what is owed and when to wake.
//!
//! See the crate's documentation for the one rule of its use.

use std::{net::IpAddr, sync::Arc};

use crate::{Command, ConnId, Effect, Event, Group, Keys, Millis, Refusal, Settings, Stats};

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
    _private: (),
}

#[allow(unused_variables)]
impl Hub {
    pub fn new(shard: u16, settings: Arc<Settings>, keys: Keys) -> Self {
        Self { _private: () }
    }

    /// `None` when all slots are taken. The slot number indexes the caller's own table of sockets.
    pub fn handle_accept(&mut self, peer: IpAddr, now: Millis) -> Option<ConnId> {
        None
    }

    /// Bytes as they came; masked payloads are unmasked in place.
    pub fn handle_bytes(&mut self, conn: ConnId, bytes: &mut [u8], now: Millis) {}

    /// The peer will send no more.
    pub fn handle_eof(&mut self, conn: ConnId, now: Millis) {}

    /// The socket is dead, or the caller ends it (`why` counts it): nothing more can be sent.
    pub fn handle_gone(&mut self, conn: ConnId, why: Option<Refusal>, now: Millis) {}

    pub fn handle_writable(&mut self, conn: ConnId) {}

    pub fn handle_command(&mut self, command: Command, now: Millis) {}

    pub fn handle_publish(&mut self, group: &Arc<Group>, now: Millis) {}

    pub fn handle_timeout(&mut self, now: Millis) {}

    /// Writes what is owed, at most about `budget` writes; `true` when more could be written at once.
    /// Connections with few members' worth of work go first; a giant fan-out gets slices in between.
    pub fn drive_writes(&mut self, budget: usize, wire: &mut impl Wire, now: Millis) -> bool {
        false
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    pub fn poll_effect(&mut self) -> Option<Effect> {
        None
    }

    /// When `handle_timeout` wants to be called next.
    pub fn poll_timeout(&self) -> Option<Millis> {
        None
    }

    /// Bytes of messages accepted for fan-out and not yet handed to every member, plus what outboxes owe.
    pub fn backlog_bytes(&self) -> usize {
        0
    }

    /// Draining, and nobody is left.
    pub fn is_drained(&self) -> bool {
        false
    }

    pub fn stats(&self) -> &Stats {
        unimplemented!()
    }
}
