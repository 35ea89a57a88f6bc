//! What a worker is told at its start and while it runs, and what it counts.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::Sender;

use crate::broadcast::Broadcast;

pub struct Setup {
    pub address: SocketAddrV4,
    /// Time between two pings to one client; 0 = none.
    pub ping_ms: u64,
    /// The frame that answers each text message; none = no answer.
    pub answer: Option<Arc<Vec<u8>>>,
    pub feed: Option<Feed>,
}

/// Messages from a NATS server, each to `room`, or to the room that its payload names.
pub struct Feed {
    pub server: String,
    pub subject: String,
    pub room: Option<String>,
}

pub struct Order {
    pub broadcast: Arc<Broadcast>,
    pub done: Sender<()>,
}

/// Written by one worker, read by the control port.
#[derive(Default)]
pub struct Counters {
    pub open: AtomicU64,
    pub handshakes: AtomicU64,
    pub refused: AtomicU64,
    pub sends: AtomicU64,
    pub bytes: AtomicU64,
    pub would_block: AtomicU64,
    pub behind: AtomicU64,
    pub texts: AtomicU64,
    pub pings: AtomicU64,
}

pub fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Relaxed);
}
