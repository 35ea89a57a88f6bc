//! What the application tells a shard to do.
//!
//! Rule: a command names its connection; one that is gone by then is ignored, never an error, because the application cannot know.
//! Two are answered all the same: `Admit` by `Event::Closed`, a `Send` with a ticket by `Event::Told`.

use crate::id::ConnId;

/// An application message to one connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Payload {
    pub bytes: Box<[u8]>,
    pub text: bool,
}

#[derive(Debug)]
pub enum Command {
    /// Answers an upgrade with 101; joins, then sends, then (if asked) closes.
    Admit {
        conn: ConnId,
        /// Opaque to the engine: what the profile wants handed back with each event of this connection.
        session: Box<[u8]>,
        /// Hash of the user, for the per-user limit that the socket layer keeps.
        user: Option<u64>,
        rooms: Vec<Box<str>>,
        payloads: Vec<Payload>,
        /// The chosen `Sec-WebSocket-Protocol`, one of those offered.
        protocol: Option<Box<str>>,
        close: Option<(u16, Box<str>)>,
        /// In which of `Settings::notices` it is spoken to.
        dialect: u8,
    },
    /// Answers an upgrade with an HTTP status and ends the connection.
    Refuse {
        conn: ConnId,
        status: u16,
        body: Box<[u8]>,
        retry_after_s: Option<u32>,
    },
    Send {
        conn: ConnId,
        payload: Payload,
        /// `Event::Told` says what became of it; 0 = nobody asks.
        ticket: u64,
    },
    Join {
        conn: ConnId,
        room: Box<str>,
    },
    Leave {
        conn: ConnId,
        room: Box<str>,
    },
    Session {
        conn: ConnId,
        session: Box<[u8]>,
    },
    /// Who is on it became known (or is somebody else now): counted by the socket layer, as in `Admit`.
    User {
        conn: ConnId,
        user: u64,
    },
    /// The socket layer's: whether it leaves what the client sends where it is.
    Hold {
        conn: ConnId,
        on: bool,
    },
    /// Sends what is owed, then a close frame; the TCP end follows the peer's answer.
    Close {
        conn: ConnId,
        code: u16,
        reason: Box<str>,
    },
    /// Refuses new upgrades with 503, delivers what is owed, closes everybody with 1001 spread evenly over `within_ms`.
    Drain {
        within_ms: u64,
    },
}
