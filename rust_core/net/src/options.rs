//! What the engine is started with and what it takes afterwards; plain data that the Python binding fills in.
//!
//! Rule: what can be wrong with an option is found before a thread or a socket exists, and the message names the option.

use std::{borrow::Cow, fmt, io};

use tidegate_hub::{Command, ConnId, Payload, Settings, limits::Caps};

/// `Options` of `python/tidegate/engine.py`, typed.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Address or name to listen on; empty = every address, IPv6 and IPv4.
    pub host: String,
    /// 0 = any free port.
    pub port: u16,
    /// 0 = as many as cores and `caps.connections_max` need.
    pub shards: usize,
    /// Abstract UNIX socket (without the NUL) of the HTTP app; empty = such requests get 404.
    pub http_socket: String,
    pub caps: Caps,
    /// Addresses and CIDR networks that may send a PROXY header (`settings.proxy_protocol`).
    pub proxy_trusted: Vec<String>,
    /// `Engine::pressed` once a shard has more than this queued for fan-out.
    pub backlog_bytes_max: usize,
    pub tls: Option<TlsPem>,
    /// `slots_max` is set by the engine: it knows how many descriptors a shard has.
    pub settings: Settings,
}

#[derive(Clone)]
pub struct TlsPem {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
}

/// A key never reaches a log by accident.
impl fmt::Debug for TlsPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsPem")
    }
}

/// One entry of `Engine::submit`.
#[derive(Debug)]
pub enum Order {
    Command(Command),
    Publish {
        room: Box<str>,
        payload: Payload,
        exclude: Exclude,
    },
    /// The same to each of many rooms: encoded once.
    PublishRooms {
        rooms: Vec<Box<str>>,
        payload: Payload,
    },
}

/// One entry of `Engine::publish`: a text for a room.
#[derive(Debug)]
pub struct Publish<'a> {
    pub room: Cow<'a, str>,
    pub payload: &'a [u8],
    /// As in [`Exclude::Uuid`].
    pub exclude: Option<&'a str>,
}

/// Which member does not get a publish.
#[derive(Clone, Debug)]
pub enum Exclude {
    None,
    Conn(ConnId),
    /// As `Engine::uuid` gives it; one that names no connection excludes nobody.
    Uuid(String),
}

#[derive(Debug)]
pub enum StartError {
    /// An option is wrong: `ValueError` in Python.
    Option(String),
    /// The system said no: `OSError` in Python.
    Os { what: String, error: io::Error },
}

impl StartError {
    pub fn os(what: impl Into<String>, error: io::Error) -> Self {
        Self::Os { what: what.into(), error }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Option(what) => f.write_str(what),
            StartError::Os { what, error } => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}
