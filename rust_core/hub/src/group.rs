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
#[derive(Clone, Debug)]
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

/// A group that is being gathered.
#[derive(Debug)]
pub struct GroupBuilder {
    room: Box<str>,
    hash: u64,
    /// Shorter than `ends` while no later message excludes anybody.
    excludes: Vec<Option<ConnId>>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl GroupBuilder {
    pub fn new(room: Box<str>, hash: u64) -> Self {
        Self { room, hash, excludes: Vec::new(), bytes: Vec::new(), ends: Vec::new() }
    }

    pub fn room(&self) -> &str {
        &self.room
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// Size of the frames so far.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn push(&mut self, text: bool, payload: &[u8], exclude: Option<ConnId>) {
        if exclude.is_some() {
            self.excludes.resize(self.ends.len(), None);
            self.excludes.push(exclude);
        }
        self.bytes.reserve(payload.len() + frame::HEADER_BYTES_MAX);
        let opcode = if text { Opcode::Text } else { Opcode::Binary };
        frame::encode(opcode, payload, false, &mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// The frames so far, to be shared by the groups of many rooms.
    pub fn frames(self) -> Frames {
        Frames { bytes: self.bytes.into(), ends: self.ends }
    }

    pub fn finish(mut self) -> Group {
        if !self.excludes.is_empty() {
            self.excludes.resize(self.ends.len(), None);
        }
        Group {
            room: self.room,
            hash: self.hash,
            excludes: self.excludes,
            plain: Frames { bytes: self.bytes.into(), ends: self.ends },
            deflated: OnceLock::new(),
            deflated_small: OnceLock::new(),
        }
    }
}

impl Group {
    /// Encodes messages, each with the connection that must not get it.
    pub fn encode(room: Box<str>, hash: u64, messages: Vec<(Payload, Option<ConnId>)>) -> Self {
        let mut builder = GroupBuilder::new(room, hash);
        for (payload, exclude) in &messages {
            builder.push(payload.text, &payload.bytes, *exclude);
        }
        builder.finish()
    }

    /// What was encoded before, for one room more; nobody is excluded.
    pub fn of_frames(room: Box<str>, hash: u64, frames: &Frames) -> Self {
        Self {
            room,
            hash,
            excludes: Vec::new(),
            plain: frames.clone(),
            deflated: OnceLock::new(),
            deflated_small: OnceLock::new(),
        }
    }

    pub fn frames(&self, encoding: Encoding, deflater: &mut Deflater) -> &Frames {
        match encoding {
            Encoding::Plain => &self.plain,
            Encoding::Deflate => self.deflated.get_or_init(|| self.deflate(encoding, deflater)),
            Encoding::DeflateSmall => self.deflated_small.get_or_init(|| self.deflate(encoding, deflater)),
        }
    }

    /// Which parts of `frames.bytes` are for `conn`, in order; the whole in one part when nothing excludes it.
    pub fn ranges<'a>(&'a self, frames: &'a Frames, conn: ConnId) -> impl Iterator<Item = Range<usize>> + 'a {
        let mut next = 0;
        std::iter::from_fn(move || self.range_from(frames, conn, &mut next))
    }

    /// The same as slices.
    pub fn slices<'a>(&'a self, frames: &'a Frames, conn: ConnId) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.ranges(frames, conn).map(|range| &frames.bytes[range])
    }

    /// Whether some message excludes somebody: if not, every member gets `frames.bytes` whole.
    pub fn excludes_any(&self) -> bool {
        !self.excludes.is_empty()
    }

    /// How many messages `conn` gets.
    pub fn messages_for(&self, conn: ConnId) -> usize {
        self.messages() - self.excludes.iter().filter(|exclude| **exclude == Some(conn)).count()
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
            (first, (first..count).find(|&message| excluded(message)).unwrap_or(count))
        };
        *next = end;
        let start = if first == 0 { 0 } else { frames.ends[first - 1] };
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
        Frames { bytes: bytes.into(), ends }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::deflate::Inflater;

    const ALICE: ConnId = ConnId(1);
    const BOB: ConnId = ConnId(2);

    fn payload(text: &str) -> Payload {
        Payload { bytes: text.as_bytes().into(), text: true }
    }

    fn group(messages: &[(&str, Option<ConnId>)]) -> Group {
        let messages = messages.iter().map(|(text, exclude)| (payload(text), *exclude));
        Group::encode("room".into(), 7, messages.collect())
    }

    fn plain_for(group: &Group, conn: ConnId) -> Vec<&[u8]> {
        group.slices(group.frames(Encoding::Plain, &mut Deflater::default()), conn).collect()
    }

    #[test]
    fn messages_are_contiguous_frames_in_publish_order() {
        let group = group(&[("a", None), ("bc", None)]);
        assert_eq!(plain_for(&group, ALICE), [b"\x81\x01a\x81\x02bc"]);
        assert_eq!((group.messages(), group.len_bytes(), group.excludes_any()), (2, 7, false));
        assert_eq!(group.messages_for(ALICE), 2);
    }

    #[test]
    fn a_binary_message_stays_binary_in_every_encoding() {
        let bytes = vec![0; 200].into_boxed_slice();
        let group = Group::encode("room".into(), 7, vec![(Payload { bytes, text: false }, None)]);
        let mut deflater = Deflater::default();
        assert_eq!(group.frames(Encoding::Plain, &mut deflater).bytes[0], 0x82);
        assert_eq!(group.frames(Encoding::Deflate, &mut deflater).bytes[0], 0xc2);
        assert_eq!(group.frames(Encoding::DeflateSmall, &mut deflater).bytes[0], 0xc2);
    }

    #[test]
    fn who_is_excluded_gets_the_runs_between() {
        let group = group(&[
            ("a", Some(ALICE)),
            ("b", None),
            ("c", Some(BOB)),
            ("d", Some(ALICE)),
            ("e", Some(ALICE)),
            ("f", None),
        ]);
        assert_eq!(plain_for(&group, ALICE), [&b"\x81\x01b\x81\x01c"[..], b"\x81\x01f"]);
        assert_eq!(plain_for(&group, BOB), [&b"\x81\x01a\x81\x01b"[..], b"\x81\x01d\x81\x01e\x81\x01f"]);
        assert_eq!(plain_for(&group, ConnId(3)).len(), 1);
        assert_eq!((group.messages_for(ALICE), group.messages_for(BOB), group.messages_for(ConnId(3))), (3, 5, 6));
        assert!(group.excludes_any());
    }

    #[test]
    fn who_is_excluded_from_all_or_from_nothing_at_all_gets_nothing() {
        assert!(plain_for(&group(&[("a", Some(ALICE)), ("b", Some(ALICE))]), ALICE).is_empty());
        assert!(plain_for(&group(&[]), ALICE).is_empty());
    }

    #[test]
    fn a_compressed_variant_is_made_once_and_says_the_same() {
        let long = "the same words and the same words ".repeat(20);
        let group = group(&[(&long, None), ("short", Some(ALICE)), (&long, None)]);
        let (mut deflater, mut inflater) = (Deflater::default(), Inflater::default());
        for encoding in [Encoding::Deflate, Encoding::DeflateSmall] {
            let frames = group.frames(encoding, &mut deflater);
            assert!(std::ptr::eq(frames, group.frames(encoding, &mut Deflater::default())), "made twice");
            assert!(frames.bytes.len() < group.len_bytes() / 3);
            assert_eq!(&frames.bytes[frames.ends[0]..frames.ends[1]], b"\x81\x05short", "not worth compressing");
            let parts: Vec<_> = group.slices(frames, ALICE).collect();
            assert_eq!(parts.len(), 2);
            for part in parts {
                let (is_text, deflated) = frame::open(part);
                assert!(is_text && part[0] & 0x40 != 0);
                assert_eq!(inflater.inflate(deflated, 10_000), Ok(long.as_bytes()));
            }
        }
    }
}
