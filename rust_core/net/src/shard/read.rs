//! What clients send, on its way to the hub: in turns, so that who sends much waits for who sends little.

use std::{mem, time::Instant};

use tidegate_hub::{
    ConnId, Refusal,
    ws::proxy::{self, Parsed},
};

use super::{STEP_TIME_MAX, Shard};
use crate::{
    socket::{self, Moved},
    tls::Received,
};

impl Shard {
    /// Remembers a socket that may have bytes: its edge is told once.
    pub(super) fn queue_read(&mut self, conn: ConnId) {
        if let Some(slot) = self.slots.get(conn)
            && !mem::replace(&mut slot.queued, true)
            && !slot.held
        {
            self.readable.push_back(conn);
        }
    }

    /// Held, it is not read; `queued` remembers that there may be something to read.
    pub(super) fn hold(&mut self, conn: ConnId, on: bool) {
        let Some(slot) = self.slots.get(conn) else {
            return;
        };
        let was = mem::replace(&mut slot.held, on);
        if was && !on && mem::take(&mut slot.queued) {
            self.queue_read(conn);
        }
    }

    pub(super) fn read_burst(&mut self) {
        if self.shared.events.is_full() {
            // Python is behind: what clients send waits in their sockets
            return;
        }
        let began = Instant::now();
        let mut bytes = 0;
        for _ in 0..self.readable.len().min(READS_A_PASS) {
            let Some(conn) = self.readable.pop_front() else {
                return;
            };
            self.guarded(conn, |shard| bytes += shard.read_turn(conn));
            self.act();
            if bytes >= BYTES_A_PASS || began.elapsed() >= STEP_TIME_MAX {
                return;
            }
        }
    }

    /// One read. More may be there if the buffer was filled, or if the end has been told and not been read yet.
    fn read_turn(&mut self, conn: ConnId) -> usize {
        let Some(slot) = self.slots.get(conn) else {
            return 0;
        };
        if slot.held {
            return 0;
        }
        slot.queued = false;
        if slot.proxied {
            return self.read_proxy_header(conn);
        }
        let (fd, ended) = (slot.fd(), slot.ended);
        match socket::read(fd, &mut self.scratch) {
            Moved::Bytes(count) => {
                if count == self.scratch.len() || ended {
                    self.queue_read(conn);
                }
                self.take_bytes(conn, count);
                return count;
            }
            Moved::Blocked => {}
            Moved::End => self.hub.handle_eof(conn, self.now),
            Moved::Broken => self.hub.handle_gone(conn, None, self.now),
        }
        0
    }

    fn take_bytes(&mut self, conn: ConnId, count: usize) {
        let Some(slot) = self.slots.get(conn) else {
            return;
        };
        let fd = slot.fd();
        let Some(tls) = &mut slot.tls else {
            return self.hub.handle_bytes(conn, &mut self.scratch[..count], self.now);
        };
        self.plain.clear();
        let received = tls.receive(fd, &self.scratch[..count], &mut self.plain);
        slot.blocked |= tls.is_blocked();
        if !self.plain.is_empty() {
            self.hub.handle_bytes(conn, &mut self.plain, self.now);
        }
        match received {
            Received::Open => {}
            Received::Ended => self.hub.handle_eof(conn, self.now),
            Received::Failed => self.hub.handle_gone(conn, Some(Refusal::Tls), self.now),
        }
    }

    /// The header comes in plain text before TLS begins: exactly its bytes are taken, the rest is TLS's.
    fn read_proxy_header(&mut self, conn: ConnId) -> usize {
        let Some(slot) = self.slots.get(conn) else {
            return 0;
        };
        let seen = match socket::peek(slot.fd(), &mut self.scratch) {
            Moved::Bytes(count) => proxy::parse(&self.scratch[..count]),
            Moved::Blocked => return 0,
            Moved::End | Moved::Broken => Parsed::Bad,
        };
        match seen {
            Parsed::Done { len, .. } => {
                slot.proxied = false;
                socket::read(slot.fd(), &mut self.scratch[..len]);
                self.hub.handle_bytes(conn, &mut self.scratch[..len], self.now);
                self.queue_read(conn);
                return len;
            }
            // told already, and nothing follows
            Parsed::Incomplete if !slot.ended => {}
            Parsed::Incomplete | Parsed::Bad => self.hub.handle_gone(conn, Some(Refusal::Proxy), self.now),
        }
        0
    }
}

/// As many as one wait tells.
const READS_A_PASS: usize = 512;
/// What becomes events before the queue's bound is looked at again.
const BYTES_A_PASS: usize = 1 << 20;
