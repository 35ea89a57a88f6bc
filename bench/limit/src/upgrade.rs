//! The answer to a request to upgrade: as little of RFC 6455 section 4 as a valid 101 takes.
//!
//! Rule: pure, bytes in and bytes out. Rooms come from the query, `?rooms=a,b`, undecoded.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

pub struct Upgrade<'a> {
    pub rooms: Vec<&'a str>,
    pub answer: Vec<u8>,
    /// Bytes of the request head; frames may follow.
    pub length: usize,
}

pub const REFUSAL: &[u8] = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_HEADER: &str = "sec-websocket-key:";

/// `Ok(None)` while the head is incomplete, `Err` when it asks for no WebSocket.
pub fn answer(bytes: &[u8]) -> Result<Option<Upgrade<'_>>, &'static str> {
    let Some(length) = head_length(bytes) else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..length]).map_err(|_| "not text")?;
    let mut lines = head.split("\r\n");
    let target = lines.next().and_then(|line| line.strip_prefix("GET ")).ok_or("not a GET")?;
    let key = lines.find_map(key_of).ok_or("no key")?;
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    Ok(Some(Upgrade { rooms: rooms_of(target), answer: answer.into_bytes(), length }))
}

fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|position| position + 4)
}

fn key_of(line: &str) -> Option<&str> {
    let name = line.get(..KEY_HEADER.len())?;
    name.eq_ignore_ascii_case(KEY_HEADER).then(|| line[KEY_HEADER.len()..].trim())
}

fn rooms_of(target: &str) -> Vec<&str> {
    let target = target.split(' ').next().unwrap_or_default();
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let rooms = query.split('&').find_map(|pair| pair.strip_prefix("rooms="));
    rooms.map_or_else(Vec::new, |names| names.split(',').filter(|name| !name.is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::answer;

    const REQUEST: &[u8] =
        b"GET /ws?token=t&rooms=a,b HTTP/1.1\r\nHost: x\r\nSec-WebSocket-KEY: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\nrest";

    #[test]
    fn the_key_of_the_rfc_gives_the_accept_of_the_rfc() {
        let upgrade = answer(REQUEST).expect("valid").expect("complete");
        let text = String::from_utf8_lossy(&upgrade.answer).into_owned();
        assert!(text.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{text}");
        assert_eq!(upgrade.rooms, ["a", "b"]);
        assert_eq!(upgrade.length, REQUEST.len() - 4);
    }

    #[test]
    fn an_incomplete_head_waits_and_a_post_is_refused() {
        assert!(matches!(answer(&REQUEST[..40]), Ok(None)));
        assert!(answer(b"POST / HTTP/1.1\r\n\r\n").is_err());
    }
}
