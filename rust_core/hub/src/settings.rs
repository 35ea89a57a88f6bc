//! What a shard must know before it opens: every bound of a connection, each set by Python's `config.py`, which gives the reasons.
//!
//! Rule: plain data, shared by all shards, never changed after the start. Durations are milliseconds, sizes are bytes.

use crate::{Millis, Notices};

#[derive(Clone, Debug)]
pub struct Settings {
    /// Exact paths on which a WebSocket upgrade is expected; every other request is the HTTP app's.
    pub ws_paths: Vec<String>,
    /// Lower-case names of the request headers that `Event::Upgrade` carries, in this order.
    pub headers: Vec<String>,
    /// HTTP status for a request to one of `ws_paths` that is no upgrade, or to another version.
    pub upgrade_required_status: u16,
    pub head_bytes_max: usize,
    pub headers_max: usize,
    /// From accept to the decision of the application, TLS and PROXY header included.
    pub handshake_ms: u64,
    /// A PROXY protocol header (v1 or v2) must come first on every connection.
    pub proxy_protocol: bool,
    pub message_bytes_max: usize,
    pub fragments_max: usize,
    /// Client messages a second, and how many may come at once; 0 = no limit.
    pub message_rate: u32,
    pub message_burst: u32,
    /// Only messages with these bytes in them count in full; `None` = everything does.
    pub rate_mark: Option<Box<[u8]>>,
    /// How long a connection may have no user before `Event::Overdue` tells; 0 = for ever.
    pub auth_ms: u64,
    pub rooms_max: usize,
    pub ping_interval_ms: u64,
    pub pong_timeout_ms: u64,
    /// In a row, until `pong_timeout_ms` runs.
    pub unanswered_pings: u8,
    /// Close code for who is not heard in that time; 0 = it is dropped without a word.
    pub silence_code: u16,
    /// What is said without asking the application, by dialect.
    pub notices: Vec<Notices>,
    /// When the time of the hub began, since the epoch: notices tell it.
    pub began_unix_ms: Millis,
    pub write_timeout_ms: u64,
    /// How long the peer may take to answer a close frame.
    pub close_timeout_ms: u64,
    pub outbox_bytes_max: usize,
    /// Owed by all connections of this shard together.
    pub outbox_total_max: usize,
    pub outbox_policy: OutboxPolicy,
    pub compression: bool,
    /// Messages below this are sent plain to a client that negotiated compression; 0 = compress every message.
    pub compression_bytes_min: usize,
    /// Connections this shard may hold: bounded by the descriptors of its table.
    pub slots_max: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutboxPolicy {
    /// Who owes more than the bound is closed with 1013: never a silent gap.
    Close,
    /// The newest message is dropped once this many are owed: the original attchat-gateway's behaviour.
    Drop { messages_max: u32 },
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ws_paths: vec!["/ws".into()],
            headers: vec!["authorization".into(), "origin".into()],
            upgrade_required_status: 426,
            head_bytes_max: 16 * 1024,
            headers_max: 100,
            handshake_ms: 10_000,
            proxy_protocol: false,
            message_bytes_max: 64 * 1024,
            fragments_max: 1024,
            message_rate: 100,
            message_burst: 200,
            rate_mark: None,
            auth_ms: 0,
            rooms_max: 1000,
            ping_interval_ms: 30_000,
            pong_timeout_ms: 10_000,
            unanswered_pings: 2,
            silence_code: 0,
            notices: Vec::new(),
            began_unix_ms: 0,
            write_timeout_ms: 10_000,
            close_timeout_ms: 5_000,
            outbox_bytes_max: 1 << 20,
            outbox_total_max: 256 << 20,
            outbox_policy: OutboxPolicy::Close,
            compression: false,
            compression_bytes_min: 64,
            slots_max: 16_384,
        }
    }
}
