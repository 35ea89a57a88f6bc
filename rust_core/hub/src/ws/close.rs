/// Whether `code` may stand in a close frame: RFC 6455 section 7.4 and the IANA registry.
pub fn is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// Appends a close frame; a reason longer than 123 bytes is cut on a character boundary.
pub fn encode(code: u16, reason: &str, out: &mut Vec<u8>) {
    let _ = (code, reason, out);
}
