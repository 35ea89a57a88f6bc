//! Messages of one batch for one room, encoded once and shared by every member on every shard.
//!
//! Rule: the bytes never change; a member gets a slice of them, or all but the messages that exclude it.

use std::sync::{Arc, OnceLock};

use crate::{Payload, id::ConnId};

/// Frames in publish order: `ends[i]` is where message `i` ends in `bytes`.
#[derive(Debug)]
pub struct Frames {
    pub bytes: Arc<[u8]>,
    pub ends: Vec<u32>,
}

/// Clients disagree on how large a deflate window they allow (RFC 7692 section 7.1.2): two sizes serve them all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Encoding {
    Plain,
    /// Window of 32 KiB.
    Deflate,
    /// Window of 512 bytes, for a client that asked for less than 15 bits.
    DeflateSmall,
}

#[derive(Debug)]
pub struct Group {
    pub room: Box<str>,
    pub hash: u64,
    /// Per message: who must not get it.
    pub excludes: Vec<Option<ConnId>>,
    plain: Frames,
    payloads: Vec<Payload>,
    deflated: OnceLock<Frames>,
    deflated_small: OnceLock<Frames>,
}
