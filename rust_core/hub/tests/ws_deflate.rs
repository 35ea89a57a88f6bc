//! permessage-deflate: what is agreed, what is inflated and what is not, and that a small window is a small window.

use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;
use tidegate_hub::{
    group::Encoding,
    ws::{
        deflate::{Deflater, Inflater, Malformed, Negotiated, negotiate},
        message::Violation,
    },
};

const MAX: usize = 1 << 20;

fn agreed(offers: &str) -> Option<Negotiated> {
    negotiate(offers.as_bytes()).unwrap()
}

fn bits(server_max_window_bits: Option<u8>) -> Option<Negotiated> {
    Some(Negotiated { server_max_window_bits })
}

/// Compressed as a client would, the end of the flush taken off.
fn compressed(message: &[u8], level: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() * 2 + 64);
    Compress::new(Compression::new(level), false).compress_vec(message, &mut out, FlushCompress::Sync).unwrap();
    out.truncate(out.len() - 4);
    out
}

/// Payload of the one frame in `frame`, and whether it is compressed.
fn payload(frame: &[u8]) -> (bool, &[u8]) {
    let size = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    (frame[0] & 0x40 != 0, &frame[size..])
}

fn encoded(message: &[u8], encoding: Encoding) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::default().encode(true, message, encoding, &mut out);
    out
}

/// Text that compresses, with something else in between.
fn chatter(len: usize) -> Vec<u8> {
    let words = ["room", "typing", "message", "user", "payload", "timestamp", "0123456789", "{\"type\":"];
    let mut seed = 7_u32;
    let mut out = Vec::new();
    while out.len() < len {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(words[(seed >> 24) as usize % words.len()].as_bytes());
        out.push((seed >> 16) as u8);
    }
    out.truncate(len);
    out
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    let mut seed = 1_u64;
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn offers_are_taken_or_declined_by_the_letter() {
    for (offers, expected) in [
        ("", None),
        ("permessage-deflate", bits(None)),
        ("permessage-deflate; client_max_window_bits", bits(None)),
        ("permessage-deflate;client_max_window_bits=8", bits(None)),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", bits(None)),
        ("permessage-deflate; server_max_window_bits=15", bits(Some(15))),
        ("permessage-deflate ; server_max_window_bits = \"9\"", bits(Some(9))),
        ("permessage-deflate; server_max_window_bits=\"1\\0\"", bits(Some(10))),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=7", None),
        ("permessage-deflate; server_max_window_bits=09", None),
        ("permessage-deflate; server_max_window_bits=10; server_max_window_bits=10", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits=1000000000000000000000", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate; unknown", None),
        ("permessage-bzip2, x-webkit-deflate-frame", None),
        ("permessage-deflate; unknown, permessage-deflate; server_max_window_bits=12", bits(Some(12))),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", bits(None)),
        ("foo; bar=\"a,b;c\"", None),
    ] {
        let result = negotiate(offers.as_bytes());
        // "a,b;c" is a good quoted string, but no token (RFC 6455 section 9.1)
        let expected = if offers.contains("a,b") { Err(Malformed) } else { Ok(expected) };
        assert_eq!(result, expected, "{offers}");
    }
}

#[test]
fn a_list_against_the_grammar_is_refused_as_a_whole() {
    for offers in [
        "=",
        ";",
        "a b",
        "a;",
        "a;=1",
        "a;b=",
        "a;b=\"",
        "a;b=\"c",
        "a;b=\"c\"d",
        "a;b=\"\\",
        "permessage-deflate, \u{e9}",
    ] {
        assert_eq!(negotiate(offers.as_bytes()), Err(Malformed), "{offers}");
    }
}

#[test]
fn only_a_full_window_gets_the_large_encoding() {
    assert_eq!(agreed("permessage-deflate").unwrap().encoding(), Encoding::Deflate);
    assert_eq!(agreed("permessage-deflate; server_max_window_bits=15").unwrap().encoding(), Encoding::Deflate);
    for bits in 9..15 {
        let negotiated = Negotiated { server_max_window_bits: Some(bits) };
        assert_eq!(negotiated.encoding(), Encoding::DeflateSmall);
    }
}

#[test]
fn the_examples_of_rfc_7692_section_7_2_3_are_inflated() {
    let mut inflater = Inflater::default();
    for (bytes, text) in [
        (&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], &b"Hello"[..]),
        (b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", b"Hello"),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", b"Hello"),
        (b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", b"Hello"),
        (b"\x00", b""),
        (b"\x02\x00", b""),
        (b"", b""),
    ] {
        assert_eq!(inflater.inflate(bytes, 5), Ok(text), "{bytes:02x?}");
    }
    // the second message of 7.2.3.2 needs the first one's window, which was never agreed
    assert!(inflater.inflate(b"\xf2\x00\x11\x00\x00", 5).is_err());
}

#[test]
fn a_message_is_inflated_up_to_the_limit_and_not_a_byte_further() {
    let mut inflater = Inflater::default();
    for len in [1, 100, 4095, 4096, 4097, 65_536, 100_000] {
        let message = chatter(len);
        let bytes = compressed(&message, 6);
        assert!(inflater.inflate(&bytes, len) == Ok(&message[..]), "{len} bytes");
        assert_eq!(inflater.inflate(&bytes, len - 1), Err(Violation::TooBig));
    }
}

/// CVE-2018-1000518: the limit holds while inflating.
#[test]
fn a_bomb_is_refused_at_the_limit() {
    let bomb = compressed(&vec![0; 100 << 20], 9);
    assert!(bomb.len() < 200_000);
    let mut inflater = Inflater::default();
    assert_eq!(inflater.inflate(&bomb, 64 * 1024), Err(Violation::TooBig));
    assert_eq!(inflater.inflate(&compressed(b"still works", 6), 100), Ok(&b"still works"[..]));
}

#[test]
fn what_is_broken_or_cut_short_is_refused() {
    let mut inflater = Inflater::default();
    let whole = compressed(&chatter(300), 6);
    for cut in 1..whole.len() {
        assert!(inflater.inflate(&whole[..cut], MAX).is_err(), "cut at {cut}");
    }
    for bytes in [&b"\xff\xff\xff"[..], b"\x07", b"\x00\x05\x00\x00\x00Hello"] {
        assert!(matches!(inflater.inflate(bytes, MAX), Err(Violation::Protocol(_))), "{bytes:02x?}");
    }
    let finals = b"\x03\x00".repeat(1000);
    assert!(inflater.inflate(&finals, MAX).is_err(), "final blocks without end");
}

#[test]
fn only_what_gets_smaller_is_compressed() {
    assert!(!payload(&encoded(b"short", Encoding::Deflate)).0);
    assert!(!payload(&encoded(&chatter(1000), Encoding::Plain)).0);
    assert!(payload(&encoded(&chatter(1000), Encoding::Deflate)).0);
    assert!(payload(&encoded(&chatter(1000), Encoding::DeflateSmall)).0);
    let noise = noise(10_000);
    assert_eq!(payload(&encoded(&noise, Encoding::Deflate)), (false, &noise[..]));
}

/// Noise that comes twice gets smaller only if the window reaches back to the first time.
#[test]
fn a_small_window_is_never_looked_beyond() {
    for distance in 100..1200 {
        let message = noise(distance).repeat(2);
        assert!(payload(&encoded(&message, Encoding::Deflate)).0, "{distance}");
        let small = payload(&encoded(&message, Encoding::DeflateSmall)).0;
        assert!(!small || distance <= 512, "looked back {distance} bytes");
        // zlib leaves the last 262 bytes of a window unused
        assert!(small || distance > 250, "did not look back {distance} bytes");
    }
}

proptest! {
    #[test]
    fn what_is_deflated_is_inflated_to_the_same(
        message in prop::collection::vec(prop::sample::select(b"abc \xff\x00".to_vec()), 0..3000), small: bool,
    ) {
        let encoding = if small { Encoding::DeflateSmall } else { Encoding::Deflate };
        let frame = encoded(&message, encoding);
        let (is_compressed, bytes) = payload(&frame);
        let mut inflater = Inflater::default();
        let plain = if is_compressed { inflater.inflate(bytes, MAX).unwrap() } else { bytes };
        prop_assert_eq!(plain, &message[..]);
    }

    #[test]
    fn any_clients_level_is_inflated(message in prop::collection::vec(any::<u8>(), 0..2000), level in 0..=9_u32) {
        let bytes = compressed(&message, level);
        let mut inflater = Inflater::default();
        prop_assert_eq!(inflater.inflate(&bytes, MAX), Ok(&message[..]));
    }

    #[test]
    fn no_bytes_panic_or_pass_the_limit(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in 0..2000usize) {
        if let Ok(message) = Inflater::default().inflate(&bytes, limit) {
            prop_assert!(message.len() <= limit);
        }
    }
}
