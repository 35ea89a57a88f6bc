//! The HTTP answers to a handshake: 101, or a refusal.
//!
//! Rules: a refusal always ends the connection and says so; it is constant for its reason, so nothing of the request comes back.

use super::{deflate::Negotiated, list};
use crate::Refusal;

/// A refusal by the rules of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejection {
    pub status: u16,
    pub why: Refusal,
    /// What is wrong, for the answer and the log. Never quotes the request.
    pub reason: &'static str,
}

impl Rejection {
    /// For a head that has not ended within `Settings::head_bytes_max`.
    pub const HEAD_TOO_LARGE: Rejection = Rejection {
        status: 431,
        why: Refusal::HeadTooLarge,
        reason: "request head too large: send fewer or shorter headers",
    };

    pub(super) const fn bad(reason: &'static str) -> Self {
        Self::new(400, reason)
    }

    pub(super) const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, why: Refusal::BadRequest, reason }
    }

    /// The whole HTTP answer.
    pub fn response(&self) -> Vec<u8> {
        let (error, headers) = match self.status {
            // RFC 6455 section 4.2.2 and RFC 9110 section 15.5.22: what the client should ask for instead
            426 => ("upgrade_required", "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"),
            405 => ("method_not_allowed", "Allow: GET\r\n"),
            431 => ("head_too_large", ""),
            505 => ("http_version_not_supported", ""),
            _ => ("bad_request", ""),
        };
        let body = format!(r#"{{"error":"{error}","reason":"{}"}}"#, self.reason);
        answer(self.status, body.as_bytes(), headers)
    }
}

/// RFC 6455 section 4.2.2 and RFC 7692 section 7.1. A protocol that is no token is left out: it must not become a header of its own.
pub fn response_101(accept: &[u8; 28], protocol: Option<&str>, deflate: Option<Negotiated>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
    );
    out.extend_from_slice(accept);
    if let Some(protocol) = protocol.filter(|protocol| list::is_token(protocol.as_bytes())) {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    if let Some(Negotiated { server_max_window_bits }) = deflate {
        out.extend_from_slice(
            b"\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        );
        if let Some(bits) = server_max_window_bits {
            out.extend_from_slice(format!("; server_max_window_bits={bits}").as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n\r\n");
    out
}

/// A final answer: JSON when `body` begins with a brace, else plain text; always `Connection: close`.
pub fn response(status: u16, body: &[u8], retry_after_s: Option<u32>) -> Vec<u8> {
    match retry_after_s {
        Some(seconds) => answer(status, body, &format!("Retry-After: {seconds}\r\n")),
        None => answer(status, body, ""),
    }
}

fn answer(status: u16, body: &[u8], headers: &str) -> Vec<u8> {
    let media = match body.first() {
        None => "",
        Some(b'{') => "Content-Type: application/json\r\n",
        Some(_) => "Content-Type: text/plain; charset=utf-8\r\n",
    };
    let phrase = phrase(status);
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} {phrase}\r\n{headers}{media}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// The reason phrase of those that a gateway sends; it may be empty (RFC 9112 section 4).
fn phrase(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn an_accepted_upgrade_names_what_was_agreed() {
        let accept = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        assert_eq!(
            text(response_101(accept, None, None)),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
        let agreed = Some(Negotiated { server_max_window_bits: Some(10) });
        let full = text(response_101(accept, Some("chat.v1"), agreed));
        assert!(full.ends_with(
            "\r\nSec-WebSocket-Protocol: chat.v1\r\nSec-WebSocket-Extensions: permessage-deflate; \
             server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10\r\n\r\n"
        ));
    }

    #[test]
    fn a_protocol_never_smuggles_a_header() {
        let out = text(response_101(&[b'='; 28], Some("a\r\nSet-Cookie: b"), None));
        assert!(!out.contains("Cookie") && !out.contains("Protocol:"));
    }

    #[test]
    fn an_answer_describes_its_body_and_closes() {
        assert_eq!(
            text(response(503, br#"{"error":"max_connections"}"#, Some(5))),
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Type: application/json\r\n\
             Content-Length: 27\r\nConnection: close\r\n\r\n{\"error\":\"max_connections\"}"
        );
        assert_eq!(
            text(response(403, b"", None)),
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        assert!(text(response(418, b"no", None)).contains("\r\nContent-Type: text/plain; charset=utf-8\r\n"));
    }

    #[test]
    fn a_refusal_to_upgrade_says_what_to_ask_for() {
        let out = text(Rejection::new(426, "this is a WebSocket endpoint").response());
        for header in ["Upgrade: websocket", "Sec-WebSocket-Version: 13", "Connection: close"] {
            assert!(out.contains(&format!("\r\n{header}\r\n")), "{out}");
        }
        assert!(text(Rejection::new(405, "use GET").response()).contains("\r\nAllow: GET\r\n"));
    }
}
