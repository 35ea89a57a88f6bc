//! permessage-deflate, RFC 7692, without context takeover: every message stands for itself.
//!
//! Rule: a connection keeps no compression state, so one message is compressed once for all who get it, and a shard needs one
//! inflater and one deflater. Inflating stops at the message limit, however little was sent (CVE-2018-1000518).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{
    frame::{self, Opcode},
    list,
    message::Violation,
};
use crate::group::Encoding;

/// The parameters agreed for one connection; context takeover is always off in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Negotiated {
    /// As the client asked for it, 9 to 15.
    pub server_max_window_bits: Option<u8>,
}

/// A `Sec-WebSocket-Extensions` value against its grammar (RFC 6455 section 9.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl Negotiated {
    /// Which encoding of shared frames this connection may be sent.
    pub fn encoding(self) -> Encoding {
        match self.server_max_window_bits {
            None | Some(WINDOW_BITS_MAX) => Encoding::Deflate,
            Some(_) => Encoding::DeflateSmall,
        }
    }
}

/// The first offer that we can keep, of those in a `Sec-WebSocket-Extensions` value. All of it must keep to the grammar.
pub fn negotiate(extensions: &[u8]) -> Result<Option<Negotiated>, Malformed> {
    let mut agreed = None;
    for extension in list::split(extensions, b',').filter(|part| !part.is_empty()) {
        let mut parts = list::split(extension, b';');
        let name = parts.next().unwrap_or_default();
        if !list::is_token(name) {
            return Err(Malformed);
        }
        let mut offer = Offer::default();
        for part in parts {
            let (parameter, value) = parameter(part)?;
            offer.add(parameter, value.as_deref());
        }
        if agreed.is_none() && name == b"permessage-deflate" {
            agreed = offer.accept();
        }
    }
    Ok(agreed)
}

/// A parameter's name and value, quotes taken off.
fn parameter(part: &[u8]) -> Result<(&[u8], Option<Vec<u8>>), Malformed> {
    let equals = part.iter().position(|&byte| byte == b'=');
    let (name, value) = match equals {
        None => (part, None),
        Some(at) => (part[..at].trim_ascii_end(), Some(unquoted(part[at + 1..].trim_ascii_start())?)),
    };
    // a quoted value, too, must be a token once its quotes are off
    if !list::is_token(name) || value.as_ref().is_some_and(|value| !list::is_token(value)) {
        return Err(Malformed);
    }
    Ok((name, value))
}

fn unquoted(value: &[u8]) -> Result<Vec<u8>, Malformed> {
    let Some(quoted) = value.strip_prefix(b"\"") else {
        return Ok(value.to_vec());
    };
    let mut plain = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    loop {
        match bytes.next() {
            Some(b'"') if bytes.as_slice().is_empty() => return Ok(plain),
            Some(b'\\') => plain.push(*bytes.next().ok_or(Malformed)?),
            Some(b'"') | None => return Err(Malformed),
            Some(&byte) => plain.push(byte),
        }
    }
}

/// One offer of the client; a parameter unknown, repeated or with a wrong value spoils it (RFC 7692 section 7.1).
#[derive(Default)]
struct Offer {
    server_no_context: bool,
    client_no_context: bool,
    server_bits: Option<u8>,
    client_bits: Option<u8>,
    spoiled: bool,
}

impl Offer {
    fn add(&mut self, name: &[u8], value: Option<&[u8]>) {
        let fits = match name {
            b"server_no_context_takeover" => value.is_none() && !std::mem::replace(&mut self.server_no_context, true),
            b"client_no_context_takeover" => value.is_none() && !std::mem::replace(&mut self.client_no_context, true),
            b"server_max_window_bits" => {
                let bits = value.and_then(window_bits);
                bits.is_some() && std::mem::replace(&mut self.server_bits, bits).is_none()
            }
            b"client_max_window_bits" => {
                // without a value it says that we might ask for a smaller window: we never do
                let bits = value.map_or(Some(WINDOW_BITS_MAX), window_bits);
                bits.is_some() && std::mem::replace(&mut self.client_bits, bits).is_none()
            }
            _ => false,
        };
        self.spoiled |= !fits;
    }

    fn accept(self) -> Option<Negotiated> {
        // zlib has no raw deflate with a window of 256 bytes
        let possible = self.server_bits != Some(WINDOW_BITS_MIN);
        (!self.spoiled && possible).then_some(Negotiated { server_max_window_bits: self.server_bits })
    }
}

fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// One a shard: inflates a message at a time and keeps nothing between two. Costs nothing until first used.
#[derive(Default)]
pub struct Inflater {
    stream: Option<Decompress>,
    inflated: Vec<u8>,
}

impl Inflater {
    /// The message that was compressed to `compressed`, if it is at most `bytes_max` long.
    pub fn inflate(&mut self, compressed: &[u8], bytes_max: usize) -> Result<&[u8], Violation> {
        let stream = self.stream.get_or_insert_with(|| Decompress::new(false));
        self.inflated.clear();
        self.inflated.shrink_to(KEPT_BYTES_MAX);
        // a compressor asked twice for a flush of nothing gives nothing
        if compressed.is_empty() {
            return Ok(&self.inflated);
        }
        stream.reset(false);
        let mut rest = compressed;
        for _ in 0..FINAL_BLOCKS_MAX {
            let (used, ended) = pump(stream, rest, &mut self.inflated, bytes_max)?;
            rest = &rest[used..];
            if !ended {
                let (used, ended) = pump(stream, &END, &mut self.inflated, bytes_max)?;
                return match ended && used == END.len() {
                    true => Ok(&self.inflated),
                    false => Err(BROKEN),
                };
            }
            // a block marked final, as section 7.2.3.4 allows; what follows begins anew
            if rest.is_empty() {
                return Ok(&self.inflated);
            }
            stream.reset(false);
        }
        Err(BROKEN)
    }
}

/// Inflates until `input` is used up or a final block ended; says how much was used, and whether it ended.
fn pump(
    stream: &mut Decompress,
    input: &[u8],
    out: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<(usize, bool), Violation> {
    let mut used = 0;
    loop {
        if out.len() == out.capacity() {
            // one byte above the limit shows that it is passed
            out.reserve_exact(out.len().max(GROWTH_BYTES_MIN).min(bytes_max.saturating_add(1) - out.len()));
        }
        let before = (stream.total_in(), out.len());
        let status = stream.decompress_vec(&input[used..], out, FlushDecompress::Sync).map_err(|_| BROKEN)?;
        used += (stream.total_in() - before.0) as usize;
        if out.len() > bytes_max {
            return Err(Violation::TooBig);
        }
        if status == Status::StreamEnd {
            return Ok((used, true));
        }
        if out.len() < out.capacity() {
            return match used == input.len() {
                true => Ok((used, false)),
                false if before == (stream.total_in(), out.len()) => Err(BROKEN),
                false => continue,
            };
        }
    }
}

/// One a shard: deflates a message at a time and keeps nothing between two. Costs nothing until first used.
pub struct Deflater {
    wide: Option<Compress>,
    narrow: Option<Compress>,
    deflated: Vec<u8>,
    bytes_min: usize,
}

impl Default for Deflater {
    fn default() -> Self {
        Self::new(WORTHWHILE_BYTES_MIN)
    }
}

impl Deflater {
    /// Messages below `bytes_min` stay plain; with 0 every message is compressed, even one that grows by it.
    pub fn new(bytes_min: usize) -> Self {
        Self { wide: None, narrow: None, deflated: Vec::new(), bytes_min }
    }

    /// Appends one frame to `out`, compressed where `encoding` asks for it and it makes the message smaller.
    pub fn encode(&mut self, text: bool, payload: &[u8], encoding: Encoding, out: &mut Vec<u8>) {
        let opcode = if text { Opcode::Text } else { Opcode::Binary };
        match self.deflate(payload, encoding) {
            Some(deflated) => frame::encode(opcode, deflated, true, out),
            None => frame::encode(opcode, payload, false, out),
        }
    }

    /// The message compressed, as section 7.2.1 says; `None` when that would not make it smaller.
    fn deflate(&mut self, payload: &[u8], encoding: Encoding) -> Option<&[u8]> {
        if payload.len() < self.bytes_min {
            return None;
        }
        let stream = match encoding {
            Encoding::Plain => return None,
            Encoding::Deflate => self.wide.get_or_insert_with(|| compressor(WINDOW_BITS_MAX)),
            Encoding::DeflateSmall => self.narrow.get_or_insert_with(|| compressor(SMALL_WINDOW_BITS)),
        };
        stream.reset();
        self.deflated.clear();
        self.deflated.shrink_to(KEPT_BYTES_MAX);
        let growth = if self.bytes_min == 0 { GROWN_BYTES_MAX + payload.len() / 1024 } else { 0 };
        self.deflated.reserve(payload.len() + growth);
        let room = self.deflated.capacity();
        stream.compress_vec(payload, &mut self.deflated, FlushCompress::Sync).ok()?;
        // a full buffer means that zlib had more to say
        if self.deflated.len() == room || stream.total_in() != payload.len() as u64 {
            return None;
        }
        let deflated = self.deflated.strip_suffix(&FLUSHED)?;
        (self.bytes_min == 0 || deflated.len() < payload.len()).then_some(deflated)
    }
}

fn compressor(window_bits: u8) -> Compress {
    Compress::new_with_window_bits(Compression::new(LEVEL), false, window_bits)
}

const BROKEN: Violation = Violation::Protocol("compressed message that cannot be inflated");
/// How a flush ends; a sender takes it off a message (section 7.2.1).
const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];
/// The end of a flush, put back, and a final empty block: only a message that was whole ends exactly here.
const END: [u8; 6] = [0, 0, 0xff, 0xff, 3, 0];
/// A message needs no final block, and one at most in the wild; each costs a reset of the stream.
const FINAL_BLOCKS_MAX: usize = 8;
const WINDOW_BITS_MIN: u8 = 8;
const WINDOW_BITS_MAX: u8 = 15;
/// The smallest that zlib has: who can keep more is served by it as well, and two encodings are enough for everybody.
const SMALL_WINDOW_BITS: u8 = 9;
/// zlib's own default.
const LEVEL: u32 = 6;
/// What incompressible data may grow by: stored blocks cost five bytes in each 16 KiB or more, a flush the rest.
const GROWN_BYTES_MAX: usize = 64;
/// Below this, headers of a deflate block eat what it saves.
const WORTHWHILE_BYTES_MIN: usize = 64;
/// First step of the output buffer, which then doubles: most messages of a chat fit.
const GROWTH_BYTES_MIN: usize = 4096;
/// What a buffer keeps for the next message; a giant one does not stay.
const KEPT_BYTES_MAX: usize = 64 * 1024;
