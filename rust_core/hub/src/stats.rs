//! What a shard counts while it works, read at scrape time; nothing is computed before somebody asks.

use crate::event::Refusal;

/// Totals since the start, except where a name ends in `_now`.
#[derive(Clone, Default, Debug)]
pub struct Stats {
    pub connections_now: u64,
    /// Sockets that are not admitted yet.
    pub handshakes_now: u64,
    pub connections: u64,
    pub rooms_now: u64,
    pub memberships_now: u64,
    /// Application messages from clients.
    pub messages_in: u64,
    pub bytes_in: u64,
    /// Messages put into outboxes or written: one a recipient.
    pub deliveries: u64,
    /// Of those, recipients of room broadcasts.
    pub broadcasts: u64,
    pub bytes_out: u64,
    pub writes: u64,
    /// Bytes owed by outboxes, shared frames counted for each who owes them.
    pub outbox_bytes_now: u64,
    /// Bytes of groups that wait for their turn in a fan-out, counted once.
    pub backlog_bytes_now: u64,
    pub pings: u64,
    pub deflate_now: u64,
    pub refused: [u64; Refusal::ALL.len()],
}

impl Stats {
    pub fn refuse(&mut self, why: Refusal) {
        self.refused[why as usize] += 1;
    }

    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize]
    }
}
