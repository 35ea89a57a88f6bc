//! One frame of RFC 6455 section 5.2: our own encoded, a client's header decoded and checked, its mask taken off.
//!
//! Rule: what can be refused from the bytes at hand is refused now, without waiting for the rest of the header. What depends on
//! other frames or on limits is `message`'s business.

use super::message::Violation;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// What a client's frame says about itself, once it has passed every check that needs no context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub fin: bool,
    pub rsv1: bool,
    pub opcode: Opcode,
    pub length: u64,
    pub mask: [u8; 4],
}

impl Opcode {
    pub fn is_control(self) -> bool {
        self as u8 >= Opcode::Close as u8
    }

    fn decode(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }
}

/// Appends one final, unmasked frame, as servers send them.
pub fn encode(opcode: Opcode, payload: &[u8], rsv1: bool, out: &mut Vec<u8>) {
    out.push(FIN | if rsv1 { RSV1 } else { 0 } | opcode as u8);
    match payload.len() {
        length @ 0..=CONTROL_BYTES_MAX => out.push(length as u8),
        length @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Whether a frame made by [`encode`] holds text, and its payload.
pub(crate) fn open(frame: &[u8]) -> (bool, &[u8]) {
    let size = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    (frame[0] & OPCODE == Opcode::Text as u8, &frame[size..])
}

/// The header at the start of `bytes` and its size; `None` when bytes are missing.
pub fn decode(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
    let Some(&first) = bytes.first() else {
        return Ok(None);
    };
    let opcode = check_first(first)?;
    let Some(&second) = bytes.get(1) else {
        return Ok(None);
    };
    check_second(opcode, second)?;
    let Some((length, at)) = decode_length(&bytes[1..])? else {
        return Ok(None);
    };
    let Some(mask) = bytes[1 + at..].first_chunk::<4>() else {
        return Ok(None);
    };
    let header = Header { fin: first & FIN != 0, rsv1: first & RSV1 != 0, opcode, length, mask: *mask };
    Ok(Some((header, 1 + at + mask.len())))
}

fn check_first(first: u8) -> Result<Opcode, Violation> {
    if first & (RSV2 | RSV3) != 0 {
        return Err(Violation::Protocol("reserved bit set"));
    }
    let opcode = Opcode::decode(first & OPCODE).ok_or(Violation::Protocol("unknown opcode"))?;
    if opcode.is_control() && first & FIN == 0 {
        return Err(Violation::Protocol("fragmented control frame"));
    }
    // RFC 7692 section 6.1: the bit belongs to the first frame of a message
    if first & RSV1 != 0 && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(Violation::Protocol("compression bit on a control or continuation frame"));
    }
    Ok(opcode)
}

fn check_second(opcode: Opcode, second: u8) -> Result<(), Violation> {
    if second & MASKED == 0 {
        return Err(Violation::Protocol("frame without a mask"));
    }
    if opcode.is_control() && usize::from(second & LENGTH) > CONTROL_BYTES_MAX {
        return Err(Violation::Protocol("control frame of more than 125 bytes"));
    }
    Ok(())
}

/// The payload length that starts at `bytes`, and how many bytes it takes.
fn decode_length(bytes: &[u8]) -> Result<Option<(u64, usize)>, Violation> {
    let (length, size, least) = match bytes[0] & LENGTH {
        126 => match bytes[1..].first_chunk::<2>() {
            Some(long) => (u64::from(u16::from_be_bytes(*long)), 3, 126),
            None => return Ok(None),
        },
        127 => match bytes[1..].first_chunk::<8>() {
            Some(long) => (u64::from_be_bytes(*long), 9, 0x1_0000),
            None => return Ok(None),
        },
        short => (u64::from(short), 1, 0),
    };
    if length < least {
        return Err(Violation::Protocol("length not encoded in the fewest bytes"));
    }
    if length >> 63 != 0 {
        return Err(Violation::Protocol("length of more than 63 bits"));
    }
    Ok(Some((length, size)))
}

/// Takes the mask off in place; `offset` is where in the frame's payload the slice begins.
pub fn unmask(payload: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut mask = mask;
    mask.rotate_left(offset % 4);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2: u8 = 0x20;
const RSV3: u8 = 0x10;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// RFC 6455 section 5.5, and the longest payload whose length fits in the second byte.
pub const CONTROL_BYTES_MAX: usize = 125;
/// Of a server's frame: two bytes and a 64-bit length.
pub const HEADER_BYTES_MAX: usize = 10;
/// Of a client's frame, which adds the mask.
pub(super) const MASKED_HEADER_BYTES_MAX: usize = HEADER_BYTES_MAX + 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(opcode, payload, false, &mut out);
        out
    }

    /// The header of a client's frame with a payload of `length` bytes and the mask 1, 2, 3, 4.
    fn header(first: u8, length: u64) -> Vec<u8> {
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
        out.extend([1, 2, 3, 4]);
        out
    }

    fn refused(bytes: &[u8]) -> &'static str {
        match decode(bytes) {
            Err(Violation::Protocol(reason)) => reason,
            other => panic!("{bytes:02x?} gave {other:?}"),
        }
    }

    #[test]
    fn the_unmasked_examples_of_rfc_6455_section_5_7_are_what_we_send() {
        assert_eq!(encoded(Opcode::Text, b"Hello"), b"\x81\x05Hello");
        assert_eq!(encoded(Opcode::Ping, b"Hello"), b"\x89\x05Hello");
        assert_eq!(encoded(Opcode::Binary, &[0; 256])[..4], *b"\x82\x7e\x01\x00");
        assert_eq!(encoded(Opcode::Binary, &[0; 65536])[..10], *b"\x82\x7f\0\0\0\0\0\x01\0\0");
    }

    #[test]
    fn the_masked_examples_of_rfc_6455_section_5_7_are_read() {
        let mut frame = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        let (header, size) = decode(&frame).unwrap().unwrap();
        assert_eq!((header.fin, header.rsv1, header.opcode, header.length, size), (true, false, Opcode::Text, 5, 6));
        unmask(&mut frame[6..], header.mask, 0);
        assert_eq!(&frame[6..], b"Hello");
        assert_eq!(decode(b"\x8a\x85\x37\xfa\x21\x3d").unwrap().unwrap().0.opcode, Opcode::Pong);
    }

    #[test]
    fn a_payload_length_takes_the_fewest_bytes() {
        for length in [0, 1, 125, 126, 127, 0xffff, 0x1_0000] {
            let frame = encoded(Opcode::Binary, &vec![7; length]);
            let size = if length < 126 {
                2
            } else if length < 0x1_0000 {
                4
            } else {
                10
            };
            assert_eq!(frame.len(), size + length);
            assert_eq!(open(&frame), (false, &vec![7; length][..]));
        }
        assert!(open(&encoded(Opcode::Text, b"x")).0);
    }

    #[test]
    fn a_header_is_decoded_only_when_whole_at_every_length() {
        for length in [0, 125, 126, 0xffff, 0x1_0000, (1 << 63) - 1] {
            let bytes = header(0x82, length);
            for end in 0..bytes.len() {
                assert_eq!(decode(&bytes[..end]), Ok(None), "{end} bytes of {bytes:02x?}");
            }
            let (decoded, size) = decode(&bytes).unwrap().unwrap();
            assert_eq!((decoded.length, decoded.mask, size), (length, [1, 2, 3, 4], bytes.len()));
        }
    }

    #[test]
    fn every_first_byte_is_accepted_or_refused_by_the_letter() {
        for first in 0..=u8::MAX {
            let opcode = first & 0x0f;
            let control = matches!(opcode, 8..=10);
            let good = first & 0x30 == 0
                && matches!(opcode, 0..=2 | 8..=10)
                && !(control && first & 0x80 == 0)
                && (first & 0x40 == 0 || matches!(opcode, 1 | 2));
            assert_eq!(decode(&[first]).is_ok(), good, "{first:02x}");
            assert_eq!(decode(&header(first, 5)).is_ok(), good, "{first:02x}");
        }
    }

    #[test]
    fn a_bad_header_is_refused_at_the_byte_that_makes_it_bad() {
        assert_eq!(refused(b"\x81\x05"), "frame without a mask");
        assert_eq!(refused(b"\x89\xfe"), "control frame of more than 125 bytes");
        assert_eq!(refused(b"\x88\xff"), "control frame of more than 125 bytes");
        assert_eq!(refused(b"\x81\xfe\x00\x7d"), "length not encoded in the fewest bytes");
        assert_eq!(refused(b"\x81\xff\0\0\0\0\0\0\xff\xff"), "length not encoded in the fewest bytes");
        assert_eq!(refused(b"\x82\xff\x80\0\0\0\0\0\0\0"), "length of more than 63 bits");
        assert_eq!(refused(&header(0x82, u64::MAX)), "length of more than 63 bits");
    }

    proptest! {
        #[test]
        fn unmasking_in_any_two_parts_equals_the_naive_loop(
            payload in prop::collection::vec(any::<u8>(), 0..200), mask: [u8; 4], at in 0..200usize, start in 0..4usize,
        ) {
            let naive: Vec<u8> = payload.iter().enumerate().map(|(i, byte)| byte ^ mask[(start + i) % 4]).collect();
            let at = at.min(payload.len());
            let mut parts = payload;
            unmask(&mut parts[..at], mask, start);
            unmask(&mut parts[at..], mask, start + at);
            prop_assert_eq!(parts, naive);
        }
    }
}
