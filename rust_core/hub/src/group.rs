//! Messages of one batch for one room, encoded once and shared by every member on every shard.
//!
//! Rule: the bytes never change; a member gets all of them, or all but the messages that exclude it. A compressed variant is made
//! when the first member that wants it comes along, once for all (RFC 7692 without context takeover allows that).

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use crate::{
    Payload,
    id::ConnId,
    ws::{
        deflate::Deflater,
        frame::{self, Opcode},
    },
};

/// Frames in publish order: `ends[i]` is where message `i` ends in `bytes`.
#[derive(Debug)]
pub struct Frames {
    pub bytes: Arc<[u8]>,
    pub ends: Vec<usize>,
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
    /// Per message: who must not get it. Empty when no message excludes anybody.
    excludes: Vec<Option<ConnId>>,
    plain: Frames,
    deflated: OnceLock<Frames>,
    deflated_small: OnceLock<Frames>,
}

impl Group {
    /// Encodes messages, each with the connection that must not get it.
    pub fn encode(room: Box<str>, hash: u64, messages: Vec<(Payload, Option<ConnId>)>) -> Self {
        let size = messages
            .iter()
            .map(|(payload, _)| payload.bytes.len() + frame::HEADER_BYTES_MAX)
            .sum();
        let mut bytes = Vec::with_capacity(size);
        let mut ends = Vec::with_capacity(messages.len());
        for (payload, _) in &messages {
            let opcode = if payload.text {
                Opcode::Text
            } else {
                Opcode::Binary
            };
            frame::encode(opcode, &payload.bytes, false, &mut bytes);
            ends.push(bytes.len());
        }
        let excluding = messages.iter().any(|(_, exclude)| exclude.is_some());
        let excludes = if excluding {
            messages.iter().map(|(_, exclude)| *exclude).collect()
        } else {
            Vec::new()
        };
        Self {
            room,
            hash,
            excludes,
            plain: Frames {
                bytes: bytes.into(),
                ends,
            },
            deflated: OnceLock::new(),
            deflated_small: OnceLock::new(),
        }
    }

    pub fn frames(&self, encoding: Encoding, deflater: &mut Deflater) -> &Frames {
        match encoding {
            Encoding::Plain => &self.plain,
            Encoding::Deflate => self
                .deflated
                .get_or_init(|| self.deflate(encoding, deflater)),
            Encoding::DeflateSmall => self
                .deflated_small
                .get_or_init(|| self.deflate(encoding, deflater)),
        }
    }

    /// Which parts of `frames.bytes` are for `conn`, in order; the whole in one part when nothing excludes it.
    pub fn ranges<'a>(
        &'a self,
        frames: &'a Frames,
        conn: ConnId,
    ) -> impl Iterator<Item = Range<usize>> + 'a {
        let mut next = 0;
        std::iter::from_fn(move || self.range_from(frames, conn, &mut next))
    }

    /// The same as slices.
    pub fn slices<'a>(
        &'a self,
        frames: &'a Frames,
        conn: ConnId,
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.ranges(frames, conn).map(|range| &frames.bytes[range])
    }

    /// Whether some message excludes somebody: if not, every member gets `frames.bytes` whole.
    pub fn excludes_any(&self) -> bool {
        !self.excludes.is_empty()
    }

    /// How many messages `conn` gets.
    pub fn messages_for(&self, conn: ConnId) -> usize {
        self.messages()
            - self
                .excludes
                .iter()
                .filter(|exclude| **exclude == Some(conn))
                .count()
    }

    pub fn messages(&self) -> usize {
        self.plain.ends.len()
    }

    /// Size of the plain frames.
    pub fn len_bytes(&self) -> usize {
        self.plain.bytes.len()
    }

    /// The next run of messages from `next` on that `conn` gets.
    fn range_from(&self, frames: &Frames, conn: ConnId, next: &mut usize) -> Option<Range<usize>> {
        let count = frames.ends.len();
        let excluded = |message: usize| self.excludes.get(message) == Some(&Some(conn));
        let (first, end) = if self.excludes.is_empty() {
            (*next, count)
        } else {
            let first = (*next..count).find(|&message| !excluded(message))?;
            (
                first,
                (first..count)
                    .find(|&message| excluded(message))
                    .unwrap_or(count),
            )
        };
        *next = end;
        let start = if first == 0 {
            0
        } else {
            frames.ends[first - 1]
        };
        (first < end).then(|| start..frames.ends[end - 1])
    }

    fn deflate(&self, encoding: Encoding, deflater: &mut Deflater) -> Frames {
        let mut bytes = Vec::with_capacity(self.plain.bytes.len() / 2);
        let mut ends = Vec::with_capacity(self.plain.ends.len());
        let mut start = 0;
        for &end in &self.plain.ends {
            let (text, payload) = frame::open(&self.plain.bytes[start..end]);
            deflater.encode(text, payload, encoding, &mut bytes);
            ends.push(bytes.len());
            start = end;
        }
        Frames {
            bytes: bytes.into(),
            ends,
        }
    }
}
