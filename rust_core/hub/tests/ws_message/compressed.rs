//! Messages under permessage-deflate.

use tidegate_hub::{
    group::Encoding,
    ws::{deflate::Deflater, message::Violation},
};

use crate::reader::*;

fn deflated(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Deflater::default().encode(true, payload, Encoding::Deflate, &mut out);
    assert_eq!(out[0], FIN | RSV1 | TEXT);
    out[if out[1] == 126 { 4 } else { 2 }..].to_vec()
}

#[test]
fn compressed_messages_are_inflated_whole_or_in_fragments() {
    let long = "abc\u{e9}".repeat(50);
    let bytes = deflated(long.as_bytes());
    let frames = [
        frame(FIN | RSV1 | TEXT, &bytes),
        frame(RSV1 | TEXT, &bytes[..5]),
        frame(FIN | PING, b""),
        frame(CONTINUATION, &bytes[5..9]),
        frame(FIN, &bytes[9..]),
        frame(FIN | TEXT, b"plain"),
        frame(FIN | RSV1 | BINARY, b"\x00"),
    ];
    let expected = [text(&long), Got::Ping(vec![]), text(&long), text("plain"), Got::Binary(vec![])];
    assert_eq!(delivered(&frames, &DEFLATE), expected);
}

#[test]
fn compressed_messages_keep_limit_and_encoding() {
    let bomb = deflated(&vec![b'0'; 65_537]);
    assert!(bomb.len() < 200);
    assert_eq!(violated(&[frame(FIN | RSV1 | TEXT, &bomb)], &DEFLATE).0, Violation::TooBig);
    let wrong = deflated(&[0xff; 100]);
    assert_eq!(violated(&[frame(FIN | RSV1 | TEXT, &wrong)], &DEFLATE).0, Violation::Utf8);
    assert_eq!(delivered(&[frame(FIN | RSV1 | BINARY, &wrong)], &DEFLATE), [Got::Binary(vec![0xff; 100])]);
    assert!(protocol(&[frame(FIN | RSV1 | TEXT, b"\xff\xff")], &DEFLATE).contains("inflated"));
}

#[test]
fn a_message_of_the_largest_size_is_taken_even_if_compression_made_it_longer() {
    // stored blocks: a header of five bytes for each block of up to 65,535, the last one of the empty flush cut short
    let payload = [7; 64 * 1024];
    let mut bytes = Vec::new();
    for block in payload.chunks(16_000) {
        let length = block.len() as u16;
        bytes.push(0);
        bytes.extend(length.to_le_bytes());
        bytes.extend((!length).to_le_bytes());
        bytes.extend(block);
    }
    bytes.push(0);
    assert!(bytes.len() > DEFLATE.message_bytes_max);
    let got = whole(&[frame(FIN | RSV1 | BINARY, &bytes)], &DEFLATE);
    assert!(got == Ok(vec![Got::Binary(payload.to_vec())]));
}
