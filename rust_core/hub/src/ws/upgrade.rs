//! The opening handshake, RFC 6455 section 4.2.1 on top of RFC 9112, taken by the letter.
//!
//! Rules: no byte of a head is searched twice for its end (CVE-2023-43669), every step after that is linear in a bounded head, and
//! bytes above ASCII are only ever bytes. What is not on a WebSocket path is left to the HTTP app, untouched.

use std::borrow::Cow;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::general_purpose::{self, GeneralPurpose, GeneralPurposeConfig},
};
use httparse::Header;
use sha1::{Digest, Sha1};

pub use super::answer::{Rejection, response, response_101};
use super::{
    deflate::{self, Negotiated},
    list,
};
use crate::Settings;

#[derive(PartialEq, Eq, Debug)]
pub enum Request {
    /// Not a WebSocket path: the HTTP app's business.
    Http,
    WebSocket(Upgrade),
}

#[derive(PartialEq, Eq, Debug)]
pub struct Upgrade {
    /// Path and query, printable ASCII.
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

/// The length of the request's head, once its end is there. `scanned` starts at 0 and remembers what need not be looked at again.
/// Bytes that cannot begin a request end their head at once, so that `parse` refuses them now and not at the time-out.
pub fn find_head_end(buf: &[u8], scanned: &mut usize) -> Option<usize> {
    let first = *buf.first()?;
    if !list::is_token_byte(first) && !matches!(first, b'\r' | b'\n') {
        return Some(buf.len());
    }
    // the end is an empty line; lines that end in a bare LF are found here to be refused by `parse`
    while let Some(found) = memchr::memchr(b'\n', &buf[*scanned..]) {
        let line_feed = *scanned + found;
        match &buf[line_feed + 1..] {
            [b'\n', ..] => return Some(line_feed + 2),
            [b'\r', b'\n', ..] => return Some(line_feed + 3),
            [] | [b'\r'] => {
                *scanned = line_feed;
                return None;
            }
            _ => *scanned = line_feed + 1,
        }
    }
    *scanned = buf.len();
    None
}

pub fn parse(head: &[u8], settings: &Settings) -> Result<Request, Rejection> {
    if head.len() > settings.head_bytes_max {
        return Err(Rejection::HEAD_TOO_LARGE);
    }
    let mut slots = vec![httparse::EMPTY_HEADER; settings.headers_max];
    let mut request = httparse::Request::new(&mut slots);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Rejection::HEAD_TOO_LARGE),
        Err(httparse::Error::Version) if names_another_version(head) => return Err(WRONG_HTTP),
        Ok(httparse::Status::Partial) | Err(_) => return Err(NOT_HTTP),
    }
    let target = origin_form(request.path.unwrap_or_default());
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    if !settings.ws_paths.iter().any(|known| known == path) {
        return Ok(Request::Http);
    }
    check_request(&request, head, target)?;
    read_upgrade(request.headers, target, settings).map(Request::WebSocket)
}

/// Whether `protocol` is one of those in a `Sec-WebSocket-Protocol` list.
pub fn offers(protocols: &[u8], protocol: &str) -> bool {
    !protocol.is_empty() && list::split(protocols, b',').any(|offered| offered == protocol.as_bytes())
}

/// Whether the first line names a version of HTTP that is not spoken here.
fn names_another_version(head: &[u8]) -> bool {
    let start = head.trim_ascii_start();
    let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let last = line.trim_ascii_end().rsplit(|&byte| byte == b' ').next();
    match last.and_then(|word| word.strip_prefix(b"HTTP/")) {
        Some([b'1', b'.', b'0' | b'1']) => false,
        Some([major, b'.', minor]) => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    }
}

/// The path and query of a target; a proxy sends it with scheme and authority before them (RFC 9112 section 3.2.2).
fn origin_form(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else {
        return target;
    };
    if !["http", "https", "ws", "wss"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return target;
    }
    rest.find('/').map_or(target, |slash| &rest[slash..])
}

fn check_request(request: &httparse::Request<'_, '_>, head: &[u8], target: &str) -> Result<(), Rejection> {
    if request.method != Some("GET") {
        return Err(WRONG_METHOD);
    }
    if request.version != Some(1) {
        return Err(WRONG_HTTP);
    }
    let bare = |at: usize| at == 0 || head[at - 1] != b'\r';
    if memchr::memchr_iter(b'\n', head).any(bare) {
        return Err(Rejection::bad("lines must end in CRLF"));
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(Rejection::bad("the request target must be percent-encoded ASCII without a fragment"));
    }
    Ok(())
}

fn read_upgrade(headers: &[Header<'_>], target: &str, settings: &Settings) -> Result<Upgrade, Rejection> {
    check_upgrade(headers, settings.upgrade_required_status)?;
    let accept = accept(headers)?;
    check_host(headers)?;
    let protocols = joined(headers, "sec-websocket-protocol").unwrap_or_default();
    if !list::split(&protocols, b',').all(|protocol| protocol.is_empty() || list::is_token(protocol)) {
        return Err(Rejection::bad("Sec-WebSocket-Protocol must be a list of tokens"));
    }
    let extensions = joined(headers, "sec-websocket-extensions").unwrap_or_default();
    let deflate = deflate::negotiate(&extensions)
        .map_err(|_| Rejection::bad("Sec-WebSocket-Extensions must be a list of extensions"))?;
    let value = |name: &String| joined(headers, name).map(|value| value.into_owned().into_boxed_slice());
    Ok(Upgrade {
        target: target.as_bytes().into(),
        headers: settings.headers.iter().map(value).collect(),
        accept,
        protocols: protocols.into_owned().into_boxed_slice(),
        deflate: deflate.filter(|_| settings.compression),
    })
}

fn check_upgrade(headers: &[Header<'_>], status: u16) -> Result<(), Rejection> {
    if !joined(headers, "upgrade").is_some_and(|value| list::has_token(&value, "websocket")) {
        return Err(Rejection::new(status, "this is a WebSocket endpoint: connect with a WebSocket client"));
    }
    let mut versions = values(headers, "sec-websocket-version");
    match (versions.next(), versions.next()) {
        (Some(b"13"), None) => {}
        (_, Some(_)) => return Err(Rejection::bad("Sec-WebSocket-Version must come once")),
        _ => {
            return Err(Rejection::new(status, "only version 13 of the WebSocket protocol is spoken here"));
        }
    }
    if !joined(headers, "connection").is_some_and(|value| list::has_token(&value, "upgrade")) {
        return Err(Rejection::bad("Connection must name Upgrade: a proxy on the way may have removed it"));
    }
    if values(headers, "content-length").chain(values(headers, "transfer-encoding")).next().is_some() {
        return Err(Rejection::bad("an upgrade has no body"));
    }
    Ok(())
}

fn check_host(headers: &[Header<'_>]) -> Result<(), Rejection> {
    let mut hosts = values(headers, "host");
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Rejection::bad("Host must come once"));
    };
    let plain = |byte: &u8| byte.is_ascii_graphic() && !b"/?#@,\\\"<>".contains(byte);
    if host.is_empty() || !host.iter().all(plain) {
        return Err(Rejection::bad("Host must be a name or an address"));
    }
    Ok(())
}

/// RFC 6455 section 4.2.2, step 5.4.
fn accept(headers: &[Header<'_>]) -> Result<[u8; 28], Rejection> {
    let mut keys = values(headers, "sec-websocket-key");
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(Rejection::bad("Sec-WebSocket-Key must come once"));
    };
    // the engine wants room for three bytes of every four
    let mut nonce = [0; 18];
    if KEY_BASE64.decode_slice(key, &mut nonce) != Ok(16) {
        return Err(Rejection::bad("Sec-WebSocket-Key must be 16 bytes in base64"));
    }
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let mut accept = [0; 28];
    match general_purpose::STANDARD.encode_slice(digest, &mut accept) {
        Ok(28) => Ok(accept),
        _ => Err(Rejection::bad("Sec-WebSocket-Key must be 16 bytes in base64")),
    }
}

fn values<'a>(headers: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.trim_ascii())
}

/// All values of a header as one (RFC 9110 section 5.3).
fn joined<'a>(headers: &'a [Header<'a>], name: &'a str) -> Option<Cow<'a, [u8]>> {
    let mut values = values(headers, name);
    let mut all = Cow::Borrowed(values.next()?);
    for value in values {
        let all = all.to_mut();
        all.extend_from_slice(b", ");
        all.extend_from_slice(value);
    }
    Some(all)
}

const NOT_HTTP: Rejection = Rejection::bad("not an HTTP/1.1 request");
const WRONG_HTTP: Rejection = Rejection::new(505, "use HTTP/1.1");
const WRONG_METHOD: Rejection = Rejection::new(405, "use GET");
/// RFC 6455 section 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Four bits of the last letter mean nothing; clients that make up the letters, not the bytes, leave them set.
const KEY_BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));
