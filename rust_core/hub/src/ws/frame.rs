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

/// Appends one final, unmasked frame, as servers send them.
pub fn encode(opcode: Opcode, payload: &[u8], rsv1: bool, out: &mut Vec<u8>) {
    let _ = (opcode, payload, rsv1, out);
}

/// The header at the start of `bytes` and its size; `None` when bytes are missing.
pub fn decode(bytes: &[u8]) -> Result<Option<(Header, usize)>, Violation> {
    let _ = bytes;
    Ok(None)
}

/// Takes the mask off in place; `offset` is where in the frame's payload the slice begins.
pub fn unmask(payload: &mut [u8], mask: [u8; 4], offset: usize) {
    let _ = (payload, mask, offset);
}

/// Whether a frame made by [`encode`] holds text, and its payload.
pub(crate) fn open(frame: &[u8]) -> (bool, &[u8]) {
    let size = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    (frame[0] & 0x0f == Opcode::Text as u8, &frame[size..])
}

/// Of a server's frame, which has no mask.
pub(crate) const HEADER_BYTES_MAX: usize = 10;
