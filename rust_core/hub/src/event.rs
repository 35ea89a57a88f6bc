//! What a shard tells: events to the application, effects to the socket layer.
//!
//! Rule: plain owned data, so both can cross threads; after `Closed` no event names that connection again, but for `Told`. Every `Admit`
//! that answers an upgrade is followed by exactly one `Closed`, also if it came too late or was refused.

use std::net::IpAddr;

use crate::id::ConnId;

#[derive(Debug)]
pub enum Event {
    /// A well-formed upgrade on a WebSocket path waits for `Admit` or `Refuse`.
    Upgrade {
        conn: ConnId,
        peer: IpAddr,
        /// Path and query as sent.
        target: Box<[u8]>,
        /// One value for each name of `Settings::headers`; a header that came twice is joined with `, ` (RFC 9110 section 5.3).
        headers: Vec<Option<Box<[u8]>>>,
    },
    Message {
        conn: ConnId,
        session: Box<[u8]>,
        payload: Box<[u8]>,
        text: bool,
    },
    /// The peer broke a rule while the application had messages of it: `Close` with this code is awaited once they are answered.
    Failed {
        conn: ConnId,
        code: u16,
        reason: &'static str,
    },
    /// It has had no user for `Settings::auth_ms`; told once.
    Overdue {
        conn: ConnId,
        session: Box<[u8]>,
    },
    /// An admitted connection ended. `code` is what the peer sent, or what we sent, or 1006, as for one that could not be admitted.
    Closed {
        conn: ConnId,
        session: Box<[u8]>,
        code: u16,
    },
    /// What became of a `Send` that had a ticket.
    Told {
        conn: ConnId,
        ticket: u64,
        fate: Fate,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fate {
    /// It is owed to the client now, behind what was before.
    Queued = 0,
    /// The outbox had no room: by the policy it was dropped, or the client is closed as too slow.
    Full = 1,
    /// The connection is not open, or never was.
    Gone = 2,
}

/// RFC 6455 section 7.4.1: no close frame at all.
pub const ABNORMAL: u16 = 1006;

/// What only the socket layer can do.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    /// The connection is over: close its descriptor. `admitted`: the application knew it, and nothing of ours may be under way any more.
    Shut { conn: ConnId, admitted: bool },
    /// It will never be a connection: whoever reads the answer may come again at once, so its place must be free by then.
    Refused { conn: ConnId },
    /// Not a WebSocket request: the bytes read so far and the socket go to the HTTP app. The hub has forgotten the connection.
    HandOver { conn: ConnId, bytes: Vec<u8> },
    /// The PROXY header named the real peer.
    Peer { conn: ConnId, peer: IpAddr },
    /// First member here: the directory must name this shard for rooms of this hash.
    RoomOpened { hash: u64 },
    /// No room of this hash has a member here any more.
    RoomEmptied { hash: u64 },
    /// A join of this hash was carried out or dropped: the directory forgets one pending join.
    Joined { hash: u64 },
}

/// Why somebody was refused, dropped or closed; each is a label of `gateway_refused_total` or `gateway_closed_total`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Refusal {
    /// Malformed HTTP or a broken upgrade: 400, 405, 426, 431, 505.
    BadRequest,
    HeadTooLarge,
    HandshakeTimeout,
    HandshakeRate,
    Connections,
    Address,
    User,
    /// 503 while draining.
    Draining,
    /// The application said no.
    Application,
    /// Frames against RFC 6455: 1002.
    Protocol,
    /// 1007.
    Utf8,
    /// 1009.
    TooBig,
    /// 1008, messages a second.
    MessageRate,
    /// 1008, more rooms than allowed.
    Rooms,
    /// 1013, the outbox bound.
    SlowClose,
    /// The newest message dropped by `OutboxPolicy::Drop`.
    QueueFull,
    /// Nothing heard after a ping.
    PongTimeout,
    /// Bytes owed and none taken for the write time-out.
    WriteTimeout,
    /// A bug was caught and cost this connection only.
    Panic,
    /// The PROXY header was missing or wrong.
    Proxy,
    /// The TLS handshake failed.
    Tls,
}

impl Refusal {
    pub const ALL: [Refusal; 21] = [
        Refusal::BadRequest,
        Refusal::HeadTooLarge,
        Refusal::HandshakeTimeout,
        Refusal::HandshakeRate,
        Refusal::Connections,
        Refusal::Address,
        Refusal::User,
        Refusal::Draining,
        Refusal::Application,
        Refusal::Protocol,
        Refusal::Utf8,
        Refusal::TooBig,
        Refusal::MessageRate,
        Refusal::Rooms,
        Refusal::SlowClose,
        Refusal::QueueFull,
        Refusal::PongTimeout,
        Refusal::WriteTimeout,
        Refusal::Panic,
        Refusal::Proxy,
        Refusal::Tls,
    ];

    /// The metric label and the word in the log.
    pub fn label(self) -> &'static str {
        match self {
            Refusal::BadRequest => "bad_request",
            Refusal::HeadTooLarge => "head_too_large",
            Refusal::HandshakeTimeout => "handshake_timeout",
            Refusal::HandshakeRate => "handshake_rate",
            Refusal::Connections => "max_connections",
            Refusal::Address => "max_connections_per_address",
            Refusal::User => "max_connections_per_user",
            Refusal::Draining => "draining",
            Refusal::Application => "application",
            Refusal::Protocol => "protocol",
            Refusal::Utf8 => "utf8",
            Refusal::TooBig => "too_big",
            Refusal::MessageRate => "message_rate",
            Refusal::Rooms => "max_rooms",
            Refusal::SlowClose => "slow_close",
            Refusal::QueueFull => "queue_full",
            Refusal::PongTimeout => "pong_timeout",
            Refusal::WriteTimeout => "write_timeout",
            Refusal::Panic => "panic",
            Refusal::Proxy => "proxy",
            Refusal::Tls => "tls",
        }
    }
}
