//! The NATS client protocol, as much of it as a subscriber needs: INFO, CONNECT, SUB, MSG, PING, PONG.
//!
//! Each worker subscribes for itself, so that a message goes from the bus's socket to the members' without a hop between threads.
//! Core NATS sees what is published into a JetStream stream too, which makes this the bare subscriber that latency is held against.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

pub struct Subscription {
    stream: TcpStream,
    /// Grows with the largest message; only its first `filled` bytes are ours.
    buffer: Vec<u8>,
    filled: usize,
}

/// A larger payload ends the program; four times what nats-server allows by default.
const PAYLOAD_BYTES_MAX: usize = 4 << 20;

const READ_BYTES: usize = 64 * 1024;

impl Subscription {
    pub fn open(server: &str, subject: &str) -> io::Result<Self> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        write!(
            stream,
            "CONNECT {{\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"0\"}}\r\nSUB {subject} 1\r\n"
        )?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, buffer: vec![0; READ_BYTES], filled: 0 })
    }

    pub fn descriptor(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Reads once and hands each whole payload to `deliver`. The end of the stream is an error: without a bus there is no figure.
    pub fn read(&mut self, mut deliver: impl FnMut(&[u8])) -> io::Result<()> {
        if self.filled == self.buffer.len() {
            self.buffer.resize(self.filled * 2, 0);
        }
        match self.stream.read(&mut self.buffer[self.filled..]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
            Ok(0) => return Err(io::Error::other("the NATS server ended the connection")),
            Ok(count) => self.filled += count,
        }
        let mut used = 0;
        while let Some((length, item)) = next_item(&self.buffer[used..self.filled])? {
            used += length;
            match item {
                Item::Message(payload) => deliver(payload),
                Item::Ping => self.stream.write_all(b"PONG\r\n")?,
                Item::Other => {}
            }
        }
        self.buffer.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }
}

#[derive(Debug, PartialEq)]
enum Item<'a> {
    Message(&'a [u8]),
    Ping,
    Other,
}

/// The next whole item and its length on the wire; `None` while bytes are missing.
fn next_item(bytes: &[u8]) -> io::Result<Option<(usize, Item<'_>)>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let line = &bytes[..end];
    let after = end + 2;
    if line.starts_with(b"MSG ") {
        let size = payload_size(line).ok_or_else(|| io::Error::other("a MSG line without a size"))?;
        let whole = bytes.len() >= after + size + 2;
        return Ok(whole.then(|| (after + size + 2, Item::Message(&bytes[after..after + size]))));
    }
    if line.starts_with(b"-ERR") {
        return Err(io::Error::other(String::from_utf8_lossy(line).into_owned()));
    }
    Ok(Some((after, if line == b"PING" { Item::Ping } else { Item::Other })))
}

fn payload_size(line: &[u8]) -> Option<usize> {
    let last = line.rsplit(|byte| *byte == b' ').next()?;
    let size = std::str::from_utf8(last).ok()?.parse().ok()?;
    (size <= PAYLOAD_BYTES_MAX).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::{Item, next_item};

    #[test]
    fn a_message_is_given_only_when_whole_whatever_its_reply_subject() {
        let bytes = b"MSG chat.events 1 reply.to 5\r\nhello\r\nPING\r\n";
        assert_eq!(next_item(&bytes[..33]).expect("valid"), None);
        let (length, item) = next_item(bytes).expect("valid").expect("whole");
        assert_eq!(item, Item::Message(b"hello"));
        assert_eq!(next_item(&bytes[length..]).expect("valid"), Some((6, Item::Ping)));
    }

    #[test]
    fn an_error_of_the_server_ends_the_subscription() {
        assert!(next_item(b"-ERR 'Authorization Violation'\r\n").is_err());
    }
}
