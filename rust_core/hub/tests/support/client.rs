//! The other end of a connection: frames as a client makes them (masked) and reads them (not masked). RFC 6455 section 5.2.
//!
//! Written apart from the hub's own code, so that one mistake can't hide in both.

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("text is UTF-8")
    }

    pub fn close_code(&self) -> u16 {
        u16::from_be_bytes([self.payload[0], self.payload[1]])
    }
}

pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..126 => out.push(0x80 | len as u8),
        len @ 126..65536 => {
            out.push(0x80 | 126);
            out.extend((len as u16).to_be_bytes());
        }
        len => {
            out.push(0x80 | 127);
            out.extend((len as u64).to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

pub fn close(code: u16) -> Vec<u8> {
    frame(CLOSE, &code.to_be_bytes())
}

pub fn request(target: &str, extra: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: chat.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    )
    .into_bytes()
}

/// Bytes from the server, taken apart as they come.
#[derive(Default)]
pub struct Reader {
    pub buf: Vec<u8>,
    /// The HTTP answer, once it was whole.
    pub answer: Option<String>,
}

impl Reader {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next frame; panics if the stream is not one of well-formed, unmasked frames.
    pub fn next(&mut self) -> Option<Frame> {
        if self.answer.is_none() {
            let end = self.buf.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
            let head: Vec<u8> = self.buf.drain(..end).collect();
            self.answer = Some(String::from_utf8(head).expect("an HTTP head"));
        }
        let (size, header) = match *self.buf.get(1)? {
            126 => (usize::from(u16::from_be_bytes(self.buf.get(2..4)?.try_into().unwrap())), 4),
            127 => (u64::from_be_bytes(self.buf.get(2..10)?.try_into().unwrap()) as usize, 10),
            len => (usize::from(len), 2),
        };
        assert!(
            self.buf[0] & 0x80 != 0 && self.buf[1] & 0x80 == 0,
            "a final frame without mask: {:x?}",
            &self.buf[..2]
        );
        assert!(matches!(self.buf[0] & 0x0f, TEXT | BINARY | CLOSE | PING | PONG), "opcode of {:x}", self.buf[0]);
        let payload = self.buf.get(header..header + size)?.to_vec();
        let opcode = self.buf[0] & 0x0f;
        self.buf.drain(..header + size);
        Some(Frame { opcode, payload })
    }

    pub fn frames(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
