//! A WebSocket client of its own, so that the engine is not tested with itself. It knows what these tests need, no more.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

pub struct Client<S = TcpStream> {
    pub stream: S,
    /// By which the engine calls this connection outside.
    pub uuid: String,
}

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;

pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // or each second small write waits for an acknowledgement
    stream.set_nodelay(true).unwrap();
    // a test that waits for ever says nothing
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

impl Client {
    /// Upgrades, and takes the first message, which is its UUID.
    pub fn open(port: u16, query: &str) -> Self {
        Self::over(connect(port), query).unwrap_or_else(|answer| panic!("refused: {answer}"))
    }

    /// The answer that refused it.
    pub fn refused(port: u16, query: &str) -> String {
        match Self::over(connect(port), query) {
            Ok(_) => panic!("was admitted"),
            Err(answer) => answer,
        }
    }
}

impl<S: Read + Write> Client<S> {
    /// The whole answer if it is not 101.
    pub fn over(mut stream: S, query: &str) -> Result<Self, String> {
        stream.write_all(request(query).as_bytes()).unwrap();
        let head = read_head(&mut stream);
        if !head.starts_with("HTTP/1.1 101 ") {
            let mut body = String::new();
            stream.read_to_string(&mut body).unwrap();
            return Err(head + &body);
        }
        let mut client = Self { stream, uuid: String::new() };
        client.uuid = client.text();
        Ok(client)
    }

    pub fn say(&mut self, message: impl AsRef<[u8]>) {
        self.stream.write_all(&frame(TEXT, message.as_ref())).unwrap();
    }

    /// The next message, which must be a text.
    pub fn text(&mut self) -> String {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, TEXT, "{payload:?}");
        String::from_utf8(payload).unwrap()
    }

    pub fn frame(&mut self) -> (u8, Vec<u8>) {
        self.try_frame().unwrap()
    }

    pub fn try_frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head)?;
        let mut wide = [0; 8];
        let len = match head[1] {
            126 => {
                self.stream.read_exact(&mut wide[6..])?;
                u64::from_be_bytes(wide)
            }
            127 => {
                self.stream.read_exact(&mut wide)?;
                u64::from_be_bytes(wide)
            }
            len => u64::from(len),
        };
        let mut payload = vec![0; len as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((head[0] & 0xf, payload))
    }

    /// The code of the close frame that must come next.
    pub fn close_code(&mut self) -> u16 {
        let (opcode, payload) = self.frame();
        assert_eq!(opcode, CLOSE, "{}", String::from_utf8_lossy(&payload));
        u16::from_be_bytes([payload[0], payload[1]])
    }
}

pub fn request(query: &str) -> String {
    format!(
        "GET /ws?{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
}

/// Masked with zeros, which changes nothing and is a mask all the same.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

pub fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap() == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}
