//! A connection's reading side for tests, and clients' frames to feed it.

use std::ops::ControlFlow;

use tidegate_hub::ws::{
    deflate::Inflater,
    message::{Incoming, Limits, Partial, Violation, feed},
};

pub(crate) const LIMITS: Limits = Limits { message_bytes_max: 64 * 1024, fragments_max: 1024, deflate: false };
pub(crate) const DEFLATE: Limits = Limits { deflate: true, ..LIMITS };
pub(crate) const FIN: u8 = 0x80;
pub(crate) const RSV1: u8 = 0x40;
pub(crate) const CONTINUATION: u8 = 0;
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const CLOSE: u8 = 8;
pub(crate) const PING: u8 = 9;
pub(crate) const PONG: u8 = 10;

/// What was delivered, owned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Got {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>, Vec<u8>),
}

impl From<Incoming<'_>> for Got {
    fn from(incoming: Incoming<'_>) -> Self {
        match incoming {
            Incoming::Text(bytes) => Got::Text(bytes.to_vec()),
            Incoming::Binary(bytes) => Got::Binary(bytes.to_vec()),
            Incoming::Ping(bytes) => Got::Ping(bytes.to_vec()),
            Incoming::Pong => Got::Pong,
            Incoming::Close { code, reason } => Got::Close(code, reason.to_vec()),
        }
    }
}

pub(crate) fn text(payload: &str) -> Got {
    Got::Text(payload.into())
}

/// A connection's reading side.
#[derive(Default)]
pub(crate) struct Reader {
    pub(crate) partial: Option<Box<Partial>>,
    pub(crate) inflater: Inflater,
    pub(crate) got: Vec<Got>,
    pub(crate) closed: bool,
}

impl Reader {
    /// Feeds a copy of `bytes` in pieces of `step`; after a close frame nothing more is read.
    pub(crate) fn feed(&mut self, bytes: &[u8], step: usize, limits: &Limits) -> Result<(), Violation> {
        for piece in bytes.chunks(step) {
            if self.closed {
                break;
            }
            let got = &mut self.got;
            let closed = &mut self.closed;
            let sink = &mut |incoming: Incoming<'_>| {
                *closed |= matches!(incoming, Incoming::Close { .. });
                got.push(incoming.into());
                ControlFlow::Continue(())
            };
            let used = feed(&mut self.partial, &mut piece.to_vec(), limits, &mut self.inflater, sink)?;
            assert!(self.closed || used == piece.len(), "everything is read until a close frame");
        }
        Ok(())
    }

    pub(crate) fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.held_bytes())
    }
}

/// A header that announces `length` bytes, with a mask.
pub(crate) fn header(first: u8, length: u64) -> Vec<u8> {
    let mut out = vec![first];
    match length {
        0..=125 => out.push(0x80 | length as u8),
        126..=0xffff => {
            out.push(0x80 | 126);
            out.extend((length as u16).to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend([0x37, 0xfa, 0x21, 0x3d]);
    out
}

pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(first, payload.len() as u64);
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    out
}

pub(crate) fn whole(frames: &[Vec<u8>], limits: &Limits) -> Result<Vec<Got>, Violation> {
    let mut reader = Reader::default();
    let bytes = frames.concat();
    reader.feed(&bytes, bytes.len().max(1), limits)?;
    Ok(reader.got)
}

/// The same outcome for pieces of every size; an idle end owns nothing.
pub(crate) fn delivered(frames: &[Vec<u8>], limits: &Limits) -> Vec<Got> {
    let expected = whole(frames, limits).unwrap();
    let bytes = frames.concat();
    for step in 1..bytes.len() {
        let mut reader = Reader::default();
        reader.feed(&bytes, step, limits).unwrap();
        assert_eq!(reader.got, expected, "{step} bytes at a time");
        assert!(reader.partial.is_none(), "memory held while idle");
    }
    expected
}

/// The violation that comes for pieces of every size, and after how many bytes at the earliest.
pub(crate) fn violated(frames: &[Vec<u8>], limits: &Limits) -> (Violation, usize) {
    let bytes = frames.concat();
    let violation = whole(frames, limits).expect_err("a violation");
    let mut reader = Reader::default();
    let at = bytes.iter().position(|&byte| reader.feed(&[byte], 1, limits) == Err(violation)).expect("the same one");
    for step in 2..bytes.len() {
        assert_eq!(Reader::default().feed(&bytes, step, limits), Err(violation), "{step} bytes at a time");
    }
    (violation, at + 1)
}

pub(crate) fn protocol(frames: &[Vec<u8>], limits: &Limits) -> &'static str {
    match violated(frames, limits).0 {
        Violation::Protocol(reason) => reason,
        other => panic!("{other:?}"),
    }
}
