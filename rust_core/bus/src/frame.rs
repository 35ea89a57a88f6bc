//! Frames of the NATS client protocol, as far as they carry messages: MSG and HMSG. Any other line is only measured.
//!
//! Rule: a frame is told when it is whole. What can't be read is told as such, and nothing behind it is looked at: its length,
//! and so the place of the next frame, is unknown.
//!
//! Specification: the NATS client protocol; `MSG subject sid [reply] bytes`, `HMSG subject sid [reply] header-bytes bytes`.

use std::ops::Range;

#[derive(PartialEq, Eq, Debug)]
pub enum Frame {
    Message(Delivery),
    /// A line of this length that is no message.
    Line(usize),
    /// The rest is still to come.
    Partial,
    Unreadable,
}

/// Where the parts of a message are in the bytes that were given.
#[derive(PartialEq, Eq, Debug)]
pub struct Delivery {
    pub sid: u64,
    pub subject: Range<usize>,
    /// Empty when there is none.
    pub reply: Range<usize>,
    pub payload: Range<usize>,
    pub end: usize,
}

/// The first frame of `bytes`.
pub fn first(bytes: &[u8]) -> Frame {
    let Some(newline) = memchr::memchr(b'\n', &bytes[..bytes.len().min(LINE_BYTES_MAX)]) else {
        return if bytes.len() < LINE_BYTES_MAX { Frame::Partial } else { Frame::Unreadable };
    };
    let line = &bytes[..newline];
    let headed = match line {
        [b'M' | b'm', b'S' | b's', b'G' | b'g', b' ' | b'\t', ..] => false,
        [b'H' | b'h', b'M' | b'm', b'S' | b's', b'G' | b'g', b' ' | b'\t', ..] => true,
        _ => return Frame::Line(newline + 1),
    };
    match delivery(line, newline + 1, headed) {
        Some(delivery) if delivery.end > bytes.len() => Frame::Partial,
        Some(delivery) if bytes[delivery.payload.end..delivery.end] == *b"\r\n" => Frame::Message(delivery),
        _ => Frame::Unreadable,
    }
}

fn delivery(line: &[u8], payload_at: usize, headed: bool) -> Option<Delivery> {
    let mut words = Words { line, at: 0 };
    words.next()?;
    let (subject, sid) = (words.next()?, number(&line[words.next()?])?);
    let mut rest = [const { 0..0 }; 3];
    let mut count = 0;
    for word in words {
        *rest.get_mut(count)? = word;
        count += 1;
    }
    let sizes = 1 + usize::from(headed);
    let replies = count.checked_sub(sizes).filter(|replies| *replies <= 1)?;
    let reply = if replies == 1 { rest[0].clone() } else { 0..0 };
    let size = |index: usize| number(&line[rest[replies + index].clone()]).and_then(|size| usize::try_from(size).ok());
    let (headers, total) = if headed { (size(0)?, size(1)?) } else { (0, size(0)?) };
    if headers > total || total > PAYLOAD_BYTES_MAX {
        return None;
    }
    let payload = payload_at + headers..payload_at + total;
    Some(Delivery { sid, subject, reply, end: payload.end + 2, payload })
}

/// Words between blanks, as ranges of the line.
struct Words<'a> {
    line: &'a [u8],
    at: usize,
}

impl Iterator for Words<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r');
        let begin = self.at + self.line[self.at..].iter().position(|byte| !is_blank(byte))?;
        let end = self.line[begin..].iter().position(is_blank).map_or(self.line.len(), |length| begin + length);
        self.at = end;
        Some(begin..end)
    }
}

/// A decimal number of up to 19 digits, all that fits.
pub fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// The longest line: INFO of a large cluster; messages' own lines are bounded to 4 KiB by the server.
const LINE_BYTES_MAX: usize = 1024 * 1024;
/// What a server can be set to allow at most (64 MiB) and headers: a number beyond it is no size.
const PAYLOAD_BYTES_MAX: usize = 128 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: &[u8]) -> (u64, &[u8], &[u8], &[u8], usize) {
        match first(bytes) {
            Frame::Message(at) => (at.sid, &bytes[at.subject], &bytes[at.reply], &bytes[at.payload], at.end),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn messages_with_and_without_reply_and_headers_are_read() {
        assert_eq!(message(b"MSG a.b 9 5\r\nhello\r\n"), (9, &b"a.b"[..], &b""[..], &b"hello"[..], 20));
        assert_eq!(message(b"MSG a.b 9 r 0\r\n\r\nPING"), (9, &b"a.b"[..], &b"r"[..], &b""[..], 17));
        let headed = b"HMSG s 1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        assert_eq!(message(headed), (1, &b"s"[..], &b"r"[..], &b"hi"[..], headed.len()));
        let status = b"HMSG s 1 12 12\r\nNATS/1.0\r\n\r\n\r\n";
        assert_eq!(message(status), (1, &b"s"[..], &b""[..], &b""[..], status.len()));
    }

    #[test]
    fn a_frame_is_told_only_when_whole() {
        let whole = b"HMSG s 1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n";
        (0..whole.len()).for_each(|cut| assert_eq!(first(&whole[..cut]), Frame::Partial, "cut at {cut}"));
    }

    #[test]
    fn other_lines_are_measured() {
        assert_eq!(first(b"PING\r\nMSG"), Frame::Line(6));
        assert_eq!(first(b"-ERR 'x'\r\n"), Frame::Line(10));
        assert_eq!(first(b"MSGX\r\n"), Frame::Line(6));
    }

    #[test]
    fn what_has_no_readable_size_ends_the_reading() {
        for bytes in [
            &b"MSG a 1 r x\r\n"[..],
            b"MSG a 1\r\n",
            b"MSG a b c d 1\r\n",
            b"MSG a -1 1\r\n\r\n",
            b"HMSG a 1 3 2\r\n\r\n\r\n",
            b"MSG a 1 99999999999999999999\r\n",
            b"MSG a 1 2\r\nhiXX",
        ] {
            assert_eq!(first(bytes), Frame::Unreadable, "{}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(first(&vec![b'x'; LINE_BYTES_MAX]), Frame::Unreadable);
    }
}
