//! The PROXY protocol of haproxy, versions 1 and 2: a load balancer says who is behind it, before anything else.
//!
//! Rule: strict, because who may write this header may choose an address: every deviation is `Bad` at the first byte that shows it,
//! and nothing is longer than its bound. <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    Incomplete,
    /// The header took `len` bytes. No peer: a health check of the proxy itself, or a family it or we do not know.
    Done {
        len: usize,
        peer: Option<IpAddr>,
    },
    Bad,
}

pub fn parse(buf: &[u8]) -> Parsed {
    if begins(buf, V2_SIGNATURE) {
        parse_v2(buf)
    } else if begins(buf, V1_SIGNATURE) {
        parse_v1(buf)
    } else {
        Parsed::Bad
    }
}

/// Whether `buf` begins with `signature` as far as it goes.
fn begins(buf: &[u8], signature: &[u8]) -> bool {
    let len = buf.len().min(signature.len());
    buf[..len] == signature[..len]
}

fn parse_v1(buf: &[u8]) -> Parsed {
    let bounded = &buf[..buf.len().min(V1_BYTES_MAX)];
    let Some(newline) = memchr::memchr(b'\n', bounded) else {
        return if buf.len() < V1_BYTES_MAX { Parsed::Incomplete } else { Parsed::Bad };
    };
    let line = std::str::from_utf8(&bounded[..newline]).ok().and_then(|line| line.strip_suffix('\r'));
    let Some(line) = line.and_then(|line| line.strip_prefix("PROXY ")) else {
        return Parsed::Bad;
    };
    let peer = match line.split_once(' ') {
        // whatever an unknown family says is to be ignored
        _ if line == "UNKNOWN" || line.starts_with("UNKNOWN ") => Some(None),
        Some(("TCP4", rest)) => source::<Ipv4Addr>(rest).map(|peer| Some(IpAddr::V4(peer))),
        Some(("TCP6", rest)) => source::<Ipv6Addr>(rest).map(|peer| Some(IpAddr::V6(peer))),
        _ => None,
    };
    match peer {
        Some(peer) => Parsed::Done { len: newline + 1, peer },
        None => Parsed::Bad,
    }
}

/// The first address of "source destination port port", if all four are what they should be.
fn source<A: FromStr>(rest: &str) -> Option<A> {
    let mut words = rest.split(' ');
    let source = words.next()?.parse().ok()?;
    let _destination: A = words.next()?.parse().ok()?;
    let ports_good = is_port(words.next()?) && is_port(words.next()?);
    (ports_good && words.next().is_none()).then_some(source)
}

fn is_port(word: &str) -> bool {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    plain && word.parse::<u16>().is_ok()
}

fn parse_v2(buf: &[u8]) -> Parsed {
    let Some((fixed, rest)) = buf.split_first_chunk::<V2_FIXED_BYTES>() else {
        return Parsed::Incomplete;
    };
    let (version, command) = (fixed[12] >> 4, fixed[12] & 0x0f);
    let (family, transport) = (fixed[13] >> 4, fixed[13] & 0x0f);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let len = V2_FIXED_BYTES + length;
    if version != 2 || command > 1 || family > 3 || transport > 2 || len > V2_BYTES_MAX {
        return Parsed::Bad;
    }
    let Some(addresses) = rest.get(..length) else {
        return Parsed::Incomplete;
    };
    let done = |peer| Parsed::Done { len, peer };
    match (command, family, transport) {
        // LOCAL, UNSPEC and UNIX: the spec says to go on with the addresses of the socket
        (0, _, _) | (_, 0 | 3, _) | (_, _, 0) => done(None),
        (_, 1, 1) if length >= 12 => done(addresses.first_chunk::<4>().map(|&octets| octets.into())),
        (_, 2, 1) if length >= 36 => done(addresses.first_chunk::<16>().map(|&octets| octets.into())),
        // datagrams do not come over TCP; addresses that are cut off are wrong
        _ => Parsed::Bad,
    }
}

const V1_SIGNATURE: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line that the specification allows, CRLF included.
const V1_BYTES_MAX: usize = 107;
/// Signature, version and command, family and transport, length.
const V2_FIXED_BYTES: usize = 16;
/// The specification promises that a header fits in the smallest TCP segment of IPv4; what follows the addresses is skipped.
const V2_BYTES_MAX: usize = 536;

#[cfg(test)]
mod tests {
    use super::*;

    fn done(len: usize, peer: &str) -> Parsed {
        Parsed::Done { len, peer: Some(peer.parse().unwrap()) }
    }

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut out = V2_SIGNATURE.to_vec();
        out.extend([command, family]);
        out.extend((addresses.len() as u16).to_be_bytes());
        out.extend(addresses);
        out
    }

    /// Incomplete up to the last byte, the same however much follows.
    fn assert_parsed(header: &[u8], expected: Parsed) {
        for end in 0..header.len() {
            assert_eq!(parse(&header[..end]), Parsed::Incomplete, "{end} bytes of {header:02x?}");
        }
        assert_eq!(parse(header), expected);
        assert_eq!(parse(&[header, b"GET / HTTP/1.1\r\n"].concat()), expected);
    }

    #[test]
    fn version_1_names_the_peer() {
        let tcp4 = b"PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\r\n";
        assert_parsed(tcp4, done(tcp4.len(), "203.0.113.7"));
        let tcp6 = b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n";
        assert_parsed(tcp6, done(tcp6.len(), "2001:db8::1"));
        let longest = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_parsed(longest, done(longest.len(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    }

    #[test]
    fn version_1_of_an_unknown_family_has_no_peer() {
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff:: whatever 1 2\r\n"] {
            assert_parsed(header, Parsed::Done { len: header.len(), peer: None });
        }
    }

    #[test]
    fn version_1_is_taken_by_the_letter() {
        for bad in [
            "GET /ws HTTP/1.1\r\n",
            "PROXZ",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324\r\n",
            "PROXY TCP4 203.0.113.7 10.0.0.1 56324 443 5\r\n",
            "PROXY TCP4 203.0.113.7  10.0.0.1 56324 443\r\n",
            "PROXY TCP4 203.0.113.07 10.0.0.1 56324 443\r\n",
            "PROXY TCP4 ::1 ::1 56324 443\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +6 443\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 06 443\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 443\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 6 443\r\n",
            "PROXY UNKNOWNS\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 6 443\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), Parsed::Bad, "{bad:?}");
        }
    }

    #[test]
    fn version_1_without_an_end_is_refused_at_its_bound() {
        let endless = [b"PROXY UNKNOWN ".to_vec(), vec![b'x'; 200]].concat();
        assert_eq!(parse(&endless[..106]), Parsed::Incomplete);
        assert_eq!(parse(&endless[..107]), Parsed::Bad);
        assert_eq!(parse(&endless), Parsed::Bad);
    }

    #[test]
    fn version_2_names_the_peer_and_its_extras_are_skipped() {
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
        assert_parsed(&v2(0x21, 0x11, &v4), done(28, "203.0.113.7"));
        let extras = [&v4[..], &[4, 0, 4, 1, 2, 3, 4]].concat();
        assert_parsed(&v2(0x21, 0x11, &extras), done(35, "203.0.113.7"));
        let mut v6 = [0; 36];
        v6[15] = 1;
        assert_parsed(&v2(0x21, 0x21, &v6), done(52, "::1"));
    }

    #[test]
    fn version_2_without_an_internet_peer_goes_on_without() {
        for (command, family, length) in
            [(0x20, 0x00, 0), (0x20, 0x11, 12), (0x21, 0x00, 5), (0x21, 0x31, 216), (0x21, 0x10, 12)]
        {
            let header = v2(command, family, &vec![0; length]);
            assert_parsed(&header, Parsed::Done { len: header.len(), peer: None });
        }
    }

    #[test]
    fn version_2_is_taken_by_the_letter() {
        for (command, family, length) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x41, 12),
            (0x21, 0x13, 12),
            (0x21, 0x12, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x11, 521),
            (0x20, 0x00, 0xffff),
        ] {
            assert_eq!(parse(&v2(command, family, &vec![0; length])), Parsed::Bad, "{command:x} {family:x} {length}");
        }
        assert_parsed(&v2(0x20, 0, &[0; 520]), Parsed::Done { len: 536, peer: None });
        let announced = [V2_SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(parse(&announced), Parsed::Bad, "refused from the length alone");
    }
}
