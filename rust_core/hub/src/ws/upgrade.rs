use super::deflate::Negotiated;
use crate::{Refusal, Settings};

#[derive(PartialEq, Eq, Debug)]
pub enum Request {
    /// Not a WebSocket path: the HTTP app's business.
    Http,
    WebSocket(Upgrade),
}

#[derive(PartialEq, Eq, Debug)]
pub struct Upgrade {
    /// Path and query.
    pub target: Box<[u8]>,
    /// One value for each name of `Settings::headers`.
    pub headers: Vec<Option<Box<[u8]>>>,
    /// The value of `Sec-WebSocket-Accept`.
    pub accept: [u8; 28],
    /// `Sec-WebSocket-Protocol` as sent; empty when absent. See [`offers`].
    pub protocols: Box<[u8]>,
    /// Agreed if `Settings::compression` is on and the client offered something we can do.
    pub deflate: Option<Negotiated>,
}

/// A refusal with its constant answer: nothing the client sent is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejection {
    pub status: u16,
    pub why: Refusal,
}

impl Rejection {
    /// For a head that has not ended within `Settings::head_bytes_max`.
    pub const HEAD_TOO_LARGE: Rejection = Rejection { status: 431, why: Refusal::HeadTooLarge };

    /// The whole HTTP answer.
    pub fn response(&self) -> Vec<u8> {
        response(self.status, b"", None)
    }
}

/// The length of the request's head, once its end is there. `scanned` starts at 0 and remembers what need not be looked at again.
/// Bytes that cannot begin a request end their head at once, so that `parse` refuses them now and not at the time-out.
pub fn find_head_end(buf: &[u8], scanned: &mut usize) -> Option<usize> {
    let _ = (buf, scanned);
    None
}

pub fn parse(head: &[u8], settings: &Settings) -> Result<Request, Rejection> {
    let _ = (head, settings);
    Ok(Request::Http)
}

/// Whether `protocol` is one of those in a `Sec-WebSocket-Protocol` list.
pub fn offers(protocols: &[u8], protocol: &str) -> bool {
    let _ = (protocols, protocol);
    false
}

pub fn response_101(accept: &[u8; 28], protocol: Option<&str>, deflate: Option<Negotiated>) -> Vec<u8> {
    let _ = (accept, protocol, deflate);
    Vec::new()
}

/// A final answer: JSON when `body` begins with a brace, else plain text; always `Connection: close`.
pub fn response(status: u16, body: &[u8], retry_after_s: Option<u32>) -> Vec<u8> {
    let _ = (status, body, retry_after_s);
    Vec::new()
}
