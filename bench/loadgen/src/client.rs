//! One client's socket: connecting from a loopback address of its own, and reading the server's answer to the upgrade.
//!
//! Rule: never blocks, and touches no socket but its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::RawFd;

use crate::frame::SEQUENCES;
use crate::sys;
use crate::target::ACCEPT;

/// A client between two events, in a table by descriptor.
#[derive(Default)]
pub struct Client {
    pub index: u32,
    /// Reads nothing, whatever comes.
    pub paused: bool,
    /// The highest number seen in a message's marker, for each sequence; 0 = none yet.
    pub last: [u32; SEQUENCES],
    pub since_ns: u64,
    pub state: State,
    /// Messages that came before it counted as open.
    pub welcomes: u8,
    /// The beginning of a frame whose end has not come yet.
    pub rest: Option<Box<[u8]>>,
}

// a million of them must cost the machine less than the server that is measured
const _: () = assert!(size_of::<Client>() <= 64);

#[derive(Default, Clone, Copy, PartialEq, Debug)]
pub enum State {
    #[default]
    Free,
    Connecting,
    Upgrading,
    /// Upgraded, but the messages that welcome it have not all come.
    Greeted,
    Open,
}

/// Begins a connection to `server` from the loopback address of client `index`. The kernel chooses the port at connect, when it
/// knows both ends, so that a port may serve many connections.
pub fn connect(server: SocketAddrV4, index: u32, sources: u32) -> io::Result<RawFd> {
    let fd = sys::tcp_socket()?;
    begin(fd, server, source(index % sources)).inspect_err(|_| sys::close(fd))?;
    Ok(fd)
}

fn begin(fd: RawFd, server: SocketAddrV4, source: Ipv4Addr) -> io::Result<()> {
    sys::set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    sys::bind(fd, SocketAddrV4::new(source, 0))?;
    let raw = sys::socket_address(server);
    // SAFETY: `raw` lives through the call and its size is given
    let result = unsafe { libc::connect(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) };
    match sys::check(result) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

/// 127.1.0.1 and up: 250 addresses a row, 250 rows, and never 127.0.0.1 itself.
fn source(number: u32) -> Ipv4Addr {
    let [row, column] = [(number / 250) % 250, number % 250].map(|part| part as u8);
    Ipv4Addr::new(127, 1 + ((number / 62_500) % 250) as u8, row, column + 1)
}

/// Closes with a reset, as a network that breaks would.
pub fn cut(fd: RawFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: `linger` lives through the call and its size is given
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as libc::socklen_t,
        );
    }
    sys::close(fd);
}

/// Length of a whole, correct 101 answer at the start of `bytes`; `Ok(None)` while it is incomplete, else why it is none. `deflate`:
/// whether the client offered to take compressed messages; then a server that declines is no server to measure.
pub fn upgraded(bytes: &[u8], deflate: bool) -> Result<Option<usize>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > ANSWER_BYTES_MAX { Err("answer_too_long".to_owned()) } else { Ok(None) };
    };
    let head = &bytes[..end];
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(format!("status_{}", String::from_utf8_lossy(head.get(9..12).unwrap_or(b"none"))));
    }
    let has = |text: &[u8]| head.windows(text.len()).any(|window| window == text);
    if !has(ACCEPT) {
        return Err("wrong_accept".to_owned());
    }
    if has(b"permessage-deflate") != deflate || has(b"server_no_context_takeover") != deflate {
        return Err("wrong_extensions".to_owned());
    }
    Ok(Some(end + 4))
}

const ANSWER_BYTES_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::source;

    fn upgraded(bytes: &[u8]) -> Result<Option<usize>, String> {
        super::upgraded(bytes, false)
    }

    #[test]
    fn compression_is_agreed_when_it_was_offered_and_only_then() {
        let agreed = b"HTTP/1.1 101 Ok\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
            Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\r\n";
        assert_eq!(super::upgraded(agreed, true), Ok(Some(agreed.len())));
        assert_eq!(super::upgraded(agreed, false), Err("wrong_extensions".to_owned()));
        let declined = b"HTTP/1.1 101 Ok\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(super::upgraded(declined, true), Err("wrong_extensions".to_owned()));
    }

    #[test]
    fn every_source_is_an_address_of_its_own() {
        let sources: HashSet<_> = (0..200_000).map(source).collect();
        assert_eq!(sources.len(), 200_000);
    }

    #[test]
    fn only_a_101_with_the_right_accept_is_an_upgrade() {
        let good =
            b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x00";
        assert_eq!(upgraded(good), Ok(Some(good.len() - 2)));
        assert_eq!(upgraded(&good[..30]), Ok(None));
        assert_eq!(upgraded(b"HTTP/1.1 503 No\r\n\r\n"), Err("status_503".to_owned()));
        assert_eq!(upgraded(b"HTTP/1.1 101 Ok\r\n\r\n"), Err("wrong_accept".to_owned()));
    }
}
