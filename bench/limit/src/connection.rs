//! What the limit program keeps of a client, and where its frames end.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// 32 bytes in a table by descriptor; what only a connection in trouble needs is elsewhere.
#[derive(Default)]
pub struct Connection {
    pub state: State,
    pub rooms: Box<[u32]>,
    pub trouble: Option<Box<Trouble>>,
}

#[derive(Default, PartialEq, Clone, Copy)]
pub enum State {
    #[default]
    Free,
    Handshake,
    Open,
}

/// Bytes that wait: the beginning of a request or frame, and what the socket did not take.
#[derive(Default)]
pub struct Trouble {
    pub unread: Vec<u8>,
    pub owed: VecDeque<(Arc<Vec<u8>>, Range<usize>)>,
}

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;

/// Opcode and whole length of a client's (masked) frame; `None` while bytes are missing. Its content is not looked at.
pub fn client_frame(bytes: &[u8]) -> Option<(u8, usize)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (header, payload) = match second & 0x7f {
        126 => (8, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        127 => (14, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        short => (6, usize::from(short)),
    };
    let length = payload.checked_add(header)?;
    (bytes.len() >= length).then_some((first & 0x0f, length))
}

#[cfg(test)]
mod tests {
    use super::client_frame;

    #[test]
    fn a_masked_frame_is_whole_with_its_last_byte() {
        let mut frame = vec![0x81, 0x80 | 126, 0, 200, 1, 2, 3, 4];
        frame.resize(8 + 200, b'x');
        assert_eq!(client_frame(&frame), Some((1, 208)));
        assert_eq!(client_frame(&frame[..207]), None);
    }

    #[test]
    fn a_length_beyond_memory_never_overflows() {
        let mut frame = vec![0x81, 0xff];
        frame.resize(32, 0xff);
        assert_eq!(client_frame(&frame), None);
    }
}
