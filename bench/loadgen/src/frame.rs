//! A server's frames as a strict client reads them (RFC 6455, 5.2), and the few frames that a client sends.
//!
//! Rule: pure. Text is not checked for UTF-8: the payload's marker and length are, which is what a gateway could get wrong here.

#[derive(Debug, PartialEq)]
pub enum Frame<'a> {
    Message(&'a [u8]),
    Compressed(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
    Close(u16),
}

/// The next whole frame and its length; `Ok(None)` while bytes are missing, `Err` for what no server may send here. `deflate`: whether
/// messages may come compressed.
pub fn next(bytes: &[u8], deflate: bool) -> Result<Option<(Frame<'_>, usize)>, &'static str> {
    let [first, second, ..] = bytes else {
        return Ok(None);
    };
    if second & 0x80 != 0 {
        return Err("masked");
    }
    let compressed = first & RESERVED == COMPRESSED && matches!(first & OPCODE, 1 | 2);
    if first & RESERVED != 0 && !(deflate && compressed) {
        return Err("reserved_bits");
    }
    if first & 0x80 == 0 {
        return Err("fragmented");
    }
    let Some((header, length)) = lengths(bytes)? else {
        return Ok(None);
    };
    let end = header + length;
    let Some(payload) = bytes.get(header..end) else {
        return Ok(None);
    };
    Ok(Some((if compressed { Frame::Compressed(payload) } else { frame(first & OPCODE, payload)? }, end)))
}

const OPCODE: u8 = 0x0f;
const RESERVED: u8 = 0x70;
/// The first of the reserved bits (RFC 7692, 6).
const COMPRESSED: u8 = 0x40;

fn lengths(bytes: &[u8]) -> Result<Option<(usize, usize)>, &'static str> {
    let lengths = match bytes[1] {
        126 => bytes.get(2..4).map(|length| (4, u64::from(u16::from_be_bytes([length[0], length[1]])))),
        127 => bytes.get(2..10).map(|length| (10, u64::from_be_bytes(length.try_into().unwrap_or([0; 8])))),
        short => Some((2, u64::from(short))),
    };
    match lengths {
        Some((_, length)) if length > PAYLOAD_BYTES_MAX => Err("too_long"),
        other => Ok(other.map(|(header, length)| (header, length as usize))),
    }
}

/// Larger than any message of a benchmark, smaller than the read buffer.
pub const PAYLOAD_BYTES_MAX: u64 = 128 * 1024;

fn frame(opcode: u8, payload: &[u8]) -> Result<Frame<'_>, &'static str> {
    match opcode {
        1 | 2 => Ok(Frame::Message(payload)),
        8 => Ok(Frame::Close(payload.get(..2).map_or(1005, |code| u16::from_be_bytes([code[0], code[1]])))),
        9 if payload.len() <= 125 => Ok(Frame::Ping(payload)),
        10 => Ok(Frame::Pong),
        _ => Err("opcode"),
    }
}

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;
pub const PONG: u8 = 10;

/// A client's frame. The mask is fixed: it guards proxies against scripts, and here is neither.
pub fn client(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        length @ 0..=125 => frame.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What a driver put into a message.
#[derive(Debug, PartialEq, Clone, Copy)]
pub struct Marker {
    pub sequence: usize,
    pub number: u32,
    pub stamp: u64,
}

/// A client is in several rooms, whose messages are numbered each by itself: those of its user's room are one sequence, all others
/// the other. No benchmark sends numbered messages to more than one of a client's other rooms.
pub const SEQUENCES: usize = 2;

/// The number and time stamp: `"n":123,"t":456` anywhere in the first bytes; its quotes escaped where a protocol puts the event into
/// a string.
pub fn marker(payload: &[u8]) -> Option<Marker> {
    marker_by(payload, br#""n":"#, br#","t":"#).or_else(|| marker_by(payload, br#"\"n\":"#, br#",\"t\":"#))
}

fn marker_by(payload: &[u8], before_number: &[u8], before_stamp: &[u8]) -> Option<Marker> {
    let head = &payload[..payload.len().min(MARKER_WITHIN)];
    let length = before_number.len();
    let start = head.windows(length).position(|window| window == before_number)? + length;
    let (number, rest) = leading_number(&payload[start..])?;
    let (stamp, _) = leading_number(rest.strip_prefix(before_stamp)?)?;
    let users = head[..start].windows(USER_ROOM.len()).any(|window| window == USER_ROOM);
    Some(Marker { sequence: usize::from(users), number: u32::try_from(number).ok()?, stamp })
}

const USER_ROOM: &[u8] = br#""room":"user:"#;

/// Room names and keys come before the marker; 300 bytes hold the longest allowed.
const MARKER_WITHIN: usize = 300;

/// The ack of a message of im-gateway, which has its id before anything that a user wrote; `None` for any other frame.
pub fn ack(payload: &[u8]) -> Option<Vec<u8>> {
    let rest = payload.strip_prefix(br#"{"type":"message","msg_id":""#)?;
    let id = &rest[..rest.iter().position(|byte| *byte == b'"')?];
    Some([br#"{"type":"ack","msg_id":""#, id, br#""}"#].concat())
}

fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().position(|byte| !byte.is_ascii_digit())?;
    if digits == 0 || digits > 19 {
        return None;
    }
    let value =
        bytes[..digits].iter().fold(0u64, |value, byte| value.wrapping_mul(10).wrapping_add(u64::from(byte - b'0')));
    Some((value, &bytes[digits..]))
}

#[cfg(test)]
mod tests {
    use super::{Frame, Marker, PONG, ack, client, marker};

    fn next(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, &'static str> {
        super::next(bytes, false)
    }

    #[test]
    fn a_compressed_message_is_one_where_compression_was_agreed() {
        assert_eq!(super::next(b"\xc1\x02hi", true), Ok(Some((Frame::Compressed(b"hi"), 4))));
        assert_eq!(super::next(b"\x81\x02hi", true), Ok(Some((Frame::Message(b"hi"), 4))));
    }

    #[test]
    fn frames_follow_each_other_and_a_cut_one_waits() {
        let bytes = b"\x81\x02hi\x89\x00\x88\x02\x03\xf8\x81\x05he";
        assert_eq!(next(bytes), Ok(Some((Frame::Message(b"hi"), 4))));
        assert_eq!(next(&bytes[4..]), Ok(Some((Frame::Ping(b""), 2))));
        assert_eq!(next(&bytes[6..]), Ok(Some((Frame::Close(1016), 4))));
        assert_eq!(next(&bytes[10..]), Ok(None));
    }

    #[test]
    fn what_a_server_may_not_send_is_named() {
        assert_eq!(next(b"\x81\x80\0\0\0\0"), Err("masked"));
        assert_eq!(next(b"\xc1\x00"), Err("reserved_bits"));
        for bytes in [b"\xe1\x00", b"\xa1\x00", b"\xc9\x00"] {
            assert_eq!(super::next(bytes, true), Err("reserved_bits"));
        }
        assert_eq!(next(b"\x01\x00"), Err("fragmented"));
        assert_eq!(next(b"\x83\x00"), Err("opcode"));
        assert_eq!(next(b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), Err("too_long"));
    }

    #[test]
    fn the_marker_is_found_inside_an_event() {
        let payload = br#"{"type":"message","room":"chat:1","payload":{"n":12,"t":3456,"x":"n"}}"#;
        assert_eq!(marker(payload), Some(Marker { sequence: 0, number: 12, stamp: 3456 }));
        let payload = br#"{"type":"message","room":"user:u1","payload":{"n":1,"t":2,"x":"n"}}"#;
        assert_eq!(marker(payload), Some(Marker { sequence: 1, number: 1, stamp: 2 }));
        let payload = br#"{"channel":"chat","data":"{\"payload\":{\"n\":7,\"t\":8,\"x\":1}}"}"#;
        assert_eq!(marker(payload), Some(Marker { sequence: 0, number: 7, stamp: 8 }));
        assert_eq!(marker(br#"{"type":"connected"}"#), None);
        assert_eq!(marker(br#"{"n":1}"#), None);
    }

    #[test]
    fn only_a_message_is_acked_by_its_id() {
        let message = br#"{"type":"message","msg_id":"m-1","sender":"u","content":"\"msg_id\":\"x\""}"#;
        assert_eq!(ack(message).as_deref(), Some(br#"{"type":"ack","msg_id":"m-1"}"#.as_slice()));
        assert_eq!(ack(br#"{"type":"ack","msg_id":"m-1"}"#), None);
        assert_eq!(ack(br#"{"type":"message","msg_id":"m-1"#), None);
    }

    #[test]
    fn a_client_frame_is_masked_and_comes_back_unmasked() {
        let frame = client(PONG, b"hello");
        let plain: Vec<u8> =
            frame[6..].iter().zip(frame[2..6].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        assert_eq!((frame[0], frame[1], plain.as_slice()), (0x8a, 0x85, b"hello".as_slice()));
    }
}
