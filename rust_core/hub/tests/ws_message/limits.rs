//! Sizes and numbers that a peer announces or sends: refused early, and never worth memory.

use tidegate_hub::ws::message::{Limits, Violation};

use crate::reader::*;

/// CVE-2020-27813 and its kin: a length is judged from the header, without a byte of memory for it.
#[test]
fn announced_lengths_beyond_the_limit_are_refused_from_the_header() {
    for length in [65_537, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1] {
        let bytes = header(FIN | BINARY, length);
        assert_eq!(violated(std::slice::from_ref(&bytes), &LIMITS), (Violation::TooBig, bytes.len()), "{length}");
        let compressed = header(FIN | RSV1 | BINARY, length.max(100_000));
        assert_eq!(violated(&[compressed], &DEFLATE).0, Violation::TooBig, "{length}");
        let fragments = [frame(BINARY, b"x"), header(FIN, length)];
        assert_eq!(violated(&fragments, &LIMITS).0, Violation::TooBig, "{length}");
    }
    for length in [1 << 63, u64::MAX] {
        assert!(protocol(&[header(FIN | BINARY, length)], &LIMITS).contains("63 bits"));
    }
}

#[test]
fn fragments_together_keep_the_limit() {
    let full = [frame(BINARY, &[1; 65_535]), frame(CONTINUATION, b"2"), frame(FIN, b"")];
    assert!(whole(&full, &LIMITS).is_ok());
    let over = [frame(BINARY, &[1; 65_535]), frame(CONTINUATION, b"2"), frame(FIN, b"3")];
    assert_eq!(whole(&over, &LIMITS), Err(Violation::TooBig));
}

#[test]
fn an_announced_length_reserves_nothing() {
    let limits = Limits { message_bytes_max: 1 << 30, ..LIMITS };
    let mut reader = Reader::default();
    reader.feed(&header(FIN | BINARY, 1 << 30), 14, &limits).unwrap();
    assert!(reader.held_bytes() < 512, "{} bytes", reader.held_bytes());
    reader.feed(&[0; 100], 100, &limits).unwrap();
    assert!(reader.held_bytes() < 1024, "{} bytes", reader.held_bytes());
}

/// GHSA-96hv-2xvq-fx4p: memory below the size limit, by many small pieces.
#[test]
fn tiny_fragments_and_pieces_do_not_multiply_memory() {
    let limits = Limits { message_bytes_max: 1 << 20, fragments_max: 200_000, ..LIMITS };
    let mut reader = Reader::default();
    reader.feed(&frame(BINARY, b"x"), 1, &limits).unwrap();
    for received in 2..100_000 {
        reader.feed(&frame(CONTINUATION, b"x"), 1, &limits).unwrap();
        assert!(reader.held_bytes() <= 2 * received + 512, "{} bytes for {received}", reader.held_bytes());
    }
    reader.feed(&frame(FIN, b""), 6, &limits).unwrap();
    assert!(reader.got == [Got::Binary(vec![b'x'; 99_999])] && reader.partial.is_none());
}

#[test]
fn a_message_has_a_bounded_number_of_fragments_empty_ones_included() {
    for payload in [&b""[..], b"x"] {
        let mut frames = vec![frame(BINARY, payload)];
        frames.extend(vec![frame(CONTINUATION, payload); LIMITS.fragments_max - 2]);
        assert!(whole(&[frames.concat(), frame(FIN, payload)], &LIMITS).is_ok());
        frames.push(frame(CONTINUATION, payload));
        assert_eq!(whole(&[frames.concat(), frame(FIN, payload)], &LIMITS), Err(Violation::TooBig));
    }
    let alone = Limits { fragments_max: 1, ..LIMITS };
    assert_eq!(delivered(&[frame(FIN | TEXT, b"one"), frame(FIN | TEXT, b"two")], &alone).len(), 2);
}
