//! Close frames: which codes may be on the wire, what a peer's close says, and our own.
//!
//! Rule: RFC 6455 sections 5.5.1 and 7.4. A close frame is a control frame, so a reason that does not fit is cut, never sent in parts.

use super::{
    frame::{self, CONTROL_BYTES_MAX, Opcode},
    message::Violation,
};

/// Whether `code` may stand in a close frame: RFC 6455 section 7.4 and the IANA registry, in which 1004 to 1006 and 1015 are
/// reserved, 1012 to 1014 were added later, and 3000 to 4999 are for libraries and applications.
pub fn is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Appends a close frame; a reason that is too long is cut on a character boundary.
pub fn encode(code: u16, reason: &str, out: &mut Vec<u8>) {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = &reason[..end];
    let mut payload = [0; CONTROL_BYTES_MAX];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason.as_bytes());
    frame::encode(Opcode::Close, &payload[..2 + reason.len()], false, out);
}

/// What a peer's close frame says: its code, if it gave one, and its reason.
pub(super) fn parse(payload: &[u8]) -> Result<(Option<u16>, &[u8]), Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return match payload {
            [] => Ok((None, payload)),
            _ => Err(Violation::Protocol("close frame with half a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_valid(code) {
        return Err(Violation::Protocol("close code that must not be sent"));
    }
    match simdutf8::basic::from_utf8(reason) {
        Ok(_) => Ok((Some(code), reason)),
        Err(_) => Err(Violation::Utf8),
    }
}

/// A control frame holds 125 bytes (RFC 6455 section 5.5), two of which are the code.
pub const REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(code: u16, reason: &str) -> Vec<u8> {
        let mut out = Vec::new();
        encode(code, reason, &mut out);
        out
    }

    #[test]
    fn a_close_frame_holds_code_and_reason() {
        assert_eq!(encoded(1000, "bye"), b"\x88\x05\x03\xe8bye");
        assert_eq!(encoded(4401, ""), b"\x88\x02\x11\x31");
    }

    #[test]
    fn a_long_reason_is_cut_on_a_character_boundary() {
        assert_eq!(encoded(1000, &"x".repeat(123)).len(), 2 + 125);
        assert_eq!(encoded(1000, &"x".repeat(1000)).len(), 2 + 125);
        let cut = encoded(1008, &"é".repeat(100));
        assert_eq!(cut.len(), 2 + 2 + 122);
        assert_eq!(std::str::from_utf8(&cut[4..]), Ok("é".repeat(61).as_str()));
    }

    #[test]
    fn only_registered_and_private_codes_are_valid() {
        let valid: Vec<u16> = (0..=u16::MAX).filter(|&code| is_valid(code)).collect();
        let expected: Vec<u16> = [1000, 1001, 1002, 1003].into_iter().chain(1007..=1014).chain(3000..=4999).collect();
        assert_eq!(valid, expected);
    }

    #[test]
    fn a_peers_close_is_read_or_refused() {
        assert_eq!(parse(b""), Ok((None, &b""[..])));
        assert_eq!(parse(b"\x03\xe8ok"), Ok((Some(1000), &b"ok"[..])));
        assert!(matches!(parse(b"\x03"), Err(Violation::Protocol(_))));
        assert!(matches!(parse(b"\x03\xee"), Err(Violation::Protocol(_))), "1006 is never sent");
        assert_eq!(parse(b"\x03\xe8\xff"), Err(Violation::Utf8));
        assert_eq!(parse(b"\x03\xe8\xe2\x82"), Err(Violation::Utf8), "half a character");
    }
}
