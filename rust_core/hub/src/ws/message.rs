//! A client's bytes, cut anywhere, become messages: frames put together, limits kept, text checked as it arrives.
//!
//! Rules: a connection with nothing pending owns no memory; a message that is whole in the bytes at hand is delivered without a
//! copy; what is kept grows with what was received and never with what was announced, so a header alone costs its sender's peer
//! nothing (CVE-2020-27813), nor do a hundred thousand fragments of one byte (GHSA-96hv-2xvq-fx4p).

use std::ops::ControlFlow;

use super::{
    close,
    deflate::Inflater,
    frame::{self, Header, MASKED_HEADER_BYTES_MAX, Opcode},
    utf8::Utf8,
};
use crate::Refusal;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Of a whole message: as sent, and once inflated.
    pub message_bytes_max: usize,
    /// Frames of one message, empty ones included.
    pub fragments_max: usize,
    /// Whether permessage-deflate was negotiated.
    pub deflate: bool,
}

/// What a client sent. A slice lives until the sink returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// Valid UTF-8.
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    /// The last thing delivered: `feed` returns after it. The code is one that may stand on the wire, the reason valid UTF-8.
    Close {
        code: Option<u16>,
        reason: &'a [u8],
    },
}

/// The peer broke the protocol or a limit: the connection must be closed with `close_code`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    Protocol(&'static str),
    Utf8,
    TooBig,
}

/// A frame or message of which more is to come. Exists only while that is so.
#[derive(Debug, Default)]
pub struct Partial {
    head: [u8; MASKED_HEADER_BYTES_MAX],
    head_len: u8,
    /// A frame whose payload has not all come, and how much of it has.
    frame: Option<(Header, usize)>,
    /// What has come of a control frame: it may stand between the fragments of a message.
    control: Vec<u8>,
    message: Option<Message>,
}

/// A message of which not everything has come.
#[derive(Debug)]
struct Message {
    text: bool,
    compressed: bool,
    /// Frames that are whole.
    fragments: usize,
    utf8: Utf8,
    bytes: Vec<u8>,
}

/// Reads `bytes`, which are unmasked in place, and gives every message to `sink` in order.
///
/// Returns how many bytes were consumed: all, unless `sink` broke off or a close frame was delivered.
pub fn feed(
    partial: &mut Option<Box<Partial>>,
    bytes: &mut [u8],
    limits: &Limits,
    inflater: &mut Inflater,
    sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
) -> Result<usize, Violation> {
    let mut at = 0;
    while at < bytes.len() {
        let rest = &mut bytes[at..];
        let Some((header, received, start)) = open_frame(partial, rest, limits)? else {
            return Ok(bytes.len());
        };
        let rest = &mut rest[start..];
        let missing = usize::try_from(header.length).map_err(|_| Violation::TooBig)? - received;
        let taken = missing.min(rest.len());
        let piece = &mut rest[..taken];
        frame::unmask(piece, header.mask, received);
        at += start + taken;
        let whole = taken == missing;
        let flow = if whole && received == 0 && stands_alone(header) {
            deliver_alone(header, piece, limits, inflater, sink)?
        } else {
            let pending = partial.get_or_insert_default();
            pending.take_piece(header, received, piece, limits, inflater, sink)?
        };
        if partial.as_ref().is_some_and(|pending| pending.is_empty()) {
            *partial = None;
        }
        if flow.is_break() {
            break;
        }
    }
    Ok(at)
}

/// The frame to which the next bytes belong, how much of its payload came before, and how many bytes its header took here.
/// `None` when the header is not whole yet.
fn open_frame(
    partial: &mut Option<Box<Partial>>,
    bytes: &[u8],
    limits: &Limits,
) -> Result<Option<(Header, usize, usize)>, Violation> {
    if let Some((header, received)) = partial.as_mut().and_then(|pending| pending.frame.take()) {
        return Ok(Some((header, received, 0)));
    }
    let decoded = match partial {
        Some(pending) if pending.head_len > 0 => pending.complete_head(bytes)?,
        _ => frame::decode(bytes)?,
    };
    let Some((header, size)) = decoded else {
        partial.get_or_insert_default().keep_head(bytes);
        return Ok(None);
    };
    let message = partial.as_ref().and_then(|pending| pending.message.as_ref());
    check(header, message, limits)?;
    if let Some(pending) = partial {
        pending.head_len = 0;
    }
    Ok(Some((header, 0, size)))
}

/// What a frame may be depends on the message it stands in and on the limits; known from its header, before any payload.
fn check(header: Header, message: Option<&Message>, limits: &Limits) -> Result<(), Violation> {
    if header.opcode.is_control() {
        return Ok(());
    }
    let (compressed, received, fragments) = match (header.opcode, message) {
        (Opcode::Continuation, None) => {
            return Err(Violation::Protocol("continuation of no message"));
        }
        (Opcode::Continuation, Some(message)) => (message.compressed, message.bytes.len(), message.fragments),
        (_, Some(_)) => return Err(Violation::Protocol("message inside another")),
        (_, None) => (header.rsv1, 0, 0),
    };
    if header.rsv1 && !limits.deflate {
        return Err(Violation::Protocol("compression was not negotiated"));
    }
    if fragments > 0 && fragments >= limits.fragments_max {
        return Err(Violation::TooBig);
    }
    let mut bound = limits.message_bytes_max;
    if compressed {
        bound = bound.saturating_add(bound / 8 + DEFLATE_OVERHEAD_BYTES);
    }
    if header.length > bound.saturating_sub(received) as u64 {
        return Err(Violation::TooBig);
    }
    Ok(())
}

/// A frame that is everything there is to its message.
fn stands_alone(header: Header) -> bool {
    header.opcode.is_control() || (header.fin && header.opcode != Opcode::Continuation)
}

fn deliver_alone(
    header: Header,
    payload: &[u8],
    limits: &Limits,
    inflater: &mut Inflater,
    sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Violation> {
    match header.opcode {
        Opcode::Text | Opcode::Binary | Opcode::Continuation => {
            let text = header.opcode == Opcode::Text;
            if header.rsv1 {
                return deliver_inflated(text, payload, limits, inflater, sink);
            }
            if text && simdutf8::basic::from_utf8(payload).is_err() {
                return Err(Violation::Utf8);
            }
            Ok(deliver(text, payload, sink))
        }
        Opcode::Ping => Ok(sink(Incoming::Ping(payload))),
        Opcode::Pong => Ok(sink(Incoming::Pong)),
        Opcode::Close => {
            let (code, reason) = close::parse(payload)?;
            let _ = sink(Incoming::Close { code, reason });
            // RFC 6455 section 5.5.1: whatever follows a close frame is not ours to read
            Ok(ControlFlow::Break(()))
        }
    }
}

fn deliver_inflated(
    text: bool,
    payload: &[u8],
    limits: &Limits,
    inflater: &mut Inflater,
    sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, Violation> {
    let inflated = inflater.inflate(payload, limits.message_bytes_max)?;
    if text && simdutf8::basic::from_utf8(inflated).is_err() {
        return Err(Violation::Utf8);
    }
    Ok(deliver(text, inflated, sink))
}

fn deliver(text: bool, bytes: &[u8], sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
    sink(if text { Incoming::Text(bytes) } else { Incoming::Binary(bytes) })
}

impl Partial {
    /// Memory this connection holds because of what it has not finished sending.
    pub fn held_bytes(&self) -> usize {
        let message = self.message.as_ref().map_or(0, |message| message.bytes.capacity());
        size_of::<Self>() + self.control.capacity() + message
    }

    fn is_empty(&self) -> bool {
        self.head_len == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// Decodes a header that began in earlier bytes; says how many of `bytes` it took.
    fn complete_head(&mut self, bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
        let kept = usize::from(self.head_len);
        let mut head = self.head;
        let fresh = bytes.len().min(head.len() - kept);
        head[kept..kept + fresh].copy_from_slice(&bytes[..fresh]);
        let decoded = frame::decode(&head[..kept + fresh])?;
        Ok(decoded.map(|(header, size)| (header, size - kept)))
    }

    /// Keeps the beginning of a header: `bytes` end before it does, so they fit.
    fn keep_head(&mut self, bytes: &[u8]) {
        let kept = usize::from(self.head_len);
        self.head[kept..kept + bytes.len()].copy_from_slice(bytes);
        self.head_len += bytes.len() as u8;
    }

    /// Takes the next piece of a frame that needs memory: it is not whole, or a fragment.
    fn take_piece(
        &mut self,
        header: Header,
        received: usize,
        piece: &[u8],
        limits: &Limits,
        inflater: &mut Inflater,
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Violation> {
        let whole = (received + piece.len()) as u64 == header.length;
        self.frame = (!whole).then_some((header, received + piece.len()));
        // so that a frame of which nothing was received has left nothing here, and may still be delivered alone
        if piece.is_empty() && !whole {
            return Ok(ControlFlow::Continue(()));
        }
        if header.opcode.is_control() {
            self.control.extend_from_slice(piece);
            if !whole {
                return Ok(ControlFlow::Continue(()));
            }
            let payload = std::mem::take(&mut self.control);
            return deliver_alone(header, &payload, limits, inflater, sink);
        }
        let message = self.message.get_or_insert_with(|| Message::begin(header));
        message.fragments += usize::from(whole);
        message.push(piece)?;
        if !whole || !header.fin {
            return Ok(ControlFlow::Continue(()));
        }
        match self.message.take() {
            Some(message) => message.deliver(limits, inflater, sink),
            None => Ok(ControlFlow::Continue(())),
        }
    }
}

impl Message {
    fn begin(header: Header) -> Self {
        Self {
            text: header.opcode == Opcode::Text,
            compressed: header.rsv1,
            fragments: 0,
            utf8: Utf8::default(),
            bytes: Vec::new(),
        }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), Violation> {
        if self.text && !self.compressed && !self.utf8.push(piece) {
            return Err(Violation::Utf8);
        }
        // grows to at most twice what it holds
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn deliver(
        self,
        limits: &Limits,
        inflater: &mut Inflater,
        sink: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Violation> {
        if self.compressed {
            return deliver_inflated(self.text, &self.bytes, limits, inflater, sink);
        }
        if !self.utf8.is_complete() {
            return Err(Violation::Utf8);
        }
        Ok(deliver(self.text, &self.bytes, sink))
    }
}

impl Violation {
    pub fn close_code(&self) -> u16 {
        match self {
            Violation::Protocol(_) => 1002,
            Violation::Utf8 => 1007,
            Violation::TooBig => 1009,
        }
    }

    /// The close frame's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Violation::Protocol(reason) => reason,
            Violation::Utf8 => "text is not valid UTF-8",
            Violation::TooBig => "message too big",
        }
    }

    pub fn refusal(&self) -> Refusal {
        match self {
            Violation::Protocol(_) => Refusal::Protocol,
            Violation::Utf8 => Refusal::Utf8,
            Violation::TooBig => Refusal::TooBig,
        }
    }
}

/// What compression may add to a message that does not compress: fixed Huffman codes take nine bits for a byte (the eighth added
/// where this is used), and a block of its own ends the message.
const DEFLATE_OVERHEAD_BYTES: usize = 64;
