//! RFC 6455 section 5, rule by rule.

use std::ops::ControlFlow;

use tidegate_hub::{
    Refusal,
    ws::{
        deflate::Inflater,
        message::{Incoming, Violation, feed},
    },
};

use crate::reader::*;

#[test]
fn the_examples_of_rfc_6455_section_5_7_are_read() {
    let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58".to_vec();
    assert_eq!(delivered(&[hello], &LIMITS), [text("Hello")]);
    assert_eq!(delivered(&[frame(TEXT, b"Hel"), frame(FIN, b"lo")], &LIMITS), [text("Hello")]);
    assert_eq!(delivered(&[frame(FIN | PING, b"Hello")], &LIMITS), [Got::Ping(b"Hello".to_vec())]);
    assert_eq!(delivered(&[frame(FIN | BINARY, &[7; 256])], &LIMITS), [Got::Binary(vec![7; 256])]);
    let long = [frame(FIN | BINARY, &vec![7; 0x1_0000])];
    assert!(whole(&long, &LIMITS) == Ok(vec![Got::Binary(vec![7; 0x1_0000])]));
}

#[test]
fn a_whole_message_is_delivered_where_it_was_read() {
    let mut bytes = frame(FIN | TEXT, b"here");
    let range = bytes.as_ptr_range();
    let mut partial = None;
    let sink = &mut |incoming: Incoming<'_>| {
        let Incoming::Text(text) = incoming else { panic!("{incoming:?}") };
        assert!(range.contains(&text.as_ptr()), "copied");
        ControlFlow::Continue(())
    };
    let used = feed(&mut partial, &mut bytes, &LIMITS, &mut Inflater::default(), sink);
    assert_eq!((used, partial.is_none()), (Ok(10), true));
}

#[test]
fn control_frames_may_stand_between_fragments() {
    let frames = [
        frame(TEXT, b"a\xc3"),
        frame(FIN | PING, b"1"),
        frame(CONTINUATION, b""),
        frame(FIN | PONG, b"2"),
        frame(FIN | CONTINUATION, b"\xa9b"),
        frame(FIN | BINARY, b""),
        frame(FIN | TEXT, b""),
        frame(FIN | CLOSE, b"\x03\xe8bye"),
    ];
    let expected = [
        Got::Ping(b"1".to_vec()),
        Got::Pong,
        text("a\u{e9}b"),
        Got::Binary(vec![]),
        text(""),
        Got::Close(Some(1000), b"bye".to_vec()),
    ];
    assert_eq!(delivered(&frames, &LIMITS), expected);
}

#[test]
fn nothing_is_read_after_a_close_frame() {
    let mut bytes = [frame(FIN | CLOSE, b""), frame(FIN | TEXT, b"late"), vec![0xff; 9]].concat();
    let mut got = Vec::new();
    let sink = &mut |incoming: Incoming<'_>| {
        got.push(Got::from(incoming));
        ControlFlow::Continue(())
    };
    assert_eq!(feed(&mut None, &mut bytes, &LIMITS, &mut Inflater::default(), sink), Ok(6));
    assert_eq!(got, [Got::Close(None, vec![])]);
}

#[test]
fn a_sink_that_breaks_off_gets_the_rest_later() {
    let mut bytes = [frame(FIN | TEXT, b"one"), frame(FIN | TEXT, b"two")].concat();
    let mut got = Vec::new();
    let mut at = 0;
    for expected in [9, 9] {
        let sink = &mut |incoming: Incoming<'_>| {
            got.push(Got::from(incoming));
            ControlFlow::Break(())
        };
        assert_eq!(feed(&mut None, &mut bytes[at..], &LIMITS, &mut Inflater::default(), sink), Ok(expected));
        at += expected;
    }
    assert_eq!(got, [text("one"), text("two")]);
}

#[test]
fn frames_against_the_rules_are_violations() {
    for (frames, reason) in [
        (vec![b"\x81\x05Hello".to_vec()], "frame without a mask"),
        (vec![frame(FIN | 0x20 | TEXT, b"")], "reserved bit set"),
        (vec![frame(FIN | 0x10 | TEXT, b"")], "reserved bit set"),
        (vec![frame(FIN | RSV1 | TEXT, b"")], "compression was not negotiated"),
        (vec![frame(FIN | 3, b"")], "unknown opcode"),
        (vec![frame(FIN | 15, b"")], "unknown opcode"),
        (vec![frame(PING, b"")], "fragmented control frame"),
        (vec![frame(FIN | PING, &[0; 126])], "control frame of more than 125 bytes"),
        (vec![frame(FIN | CONTINUATION, b"")], "continuation of no message"),
        (vec![frame(FIN | TEXT, b"x"), frame(CONTINUATION, b"")], "continuation of no message"),
        (vec![frame(TEXT, b"x"), frame(TEXT, b"y")], "message inside another"),
        (vec![frame(BINARY, b"x"), frame(FIN | BINARY, b"y")], "message inside another"),
        (vec![frame(FIN | CLOSE, b"\x03")], "close frame with half a code"),
        (vec![frame(FIN | CLOSE, b"\x03\xed")], "close code that must not be sent"),
    ] {
        assert_eq!(protocol(&frames, &LIMITS), reason);
    }
    let reserved = "compression bit on a control or continuation frame";
    assert_eq!(protocol(&[frame(FIN | RSV1 | PING, b"")], &DEFLATE), reserved);
    assert_eq!(protocol(&[frame(TEXT, b"x"), frame(FIN | RSV1, b"y")], &DEFLATE), reserved);
}

#[test]
fn a_violation_has_its_close_code_and_label() {
    for (violation, code, label) in [
        (Violation::Protocol("x"), 1002, Refusal::Protocol),
        (Violation::Utf8, 1007, Refusal::Utf8),
        (Violation::TooBig, 1009, Refusal::TooBig),
    ] {
        assert_eq!((violation.close_code(), violation.refusal()), (code, label));
        assert!(!violation.reason().is_empty());
    }
}

#[test]
fn what_came_before_a_violation_is_delivered() {
    let mut reader = Reader::default();
    let bytes = [frame(FIN | TEXT, b"good"), frame(FIN | 3, b"")].concat();
    assert!(reader.feed(&bytes, bytes.len(), &LIMITS).is_err());
    assert_eq!(reader.got, [text("good")]);
}

#[test]
fn wrong_text_is_refused_at_its_first_wrong_byte() {
    let mut bytes = header(FIN | TEXT, 20);
    bytes.extend(&frame(0, "κόσμε\u{0}".as_bytes())[6..]);
    let good = bytes.len();
    // the last byte of an overlong or surrogate sequence is never needed
    for (wrong, at) in
        [(&b"\xff"[..], 1), (b"\xed\xa0\x80", 2), (b"\xf4\x90\x80\x80", 2), (b"\xc0\xaf", 1), (b"\xe0\x80\xaf", 2)]
    {
        let masked: Vec<u8> =
            wrong.iter().enumerate().map(|(n, byte)| byte ^ [0x37, 0xfa, 0x21, 0x3d][(good - 6 + n) % 4]).collect();
        assert_eq!(violated(&[bytes.clone(), masked], &LIMITS), (Violation::Utf8, good + at), "{wrong:02x?}");
    }
    let fragments = [frame(TEXT, b"\xf4"), frame(FIN | PING, b""), frame(CONTINUATION, b"\x90")];
    assert_eq!(violated(&fragments, &LIMITS), (Violation::Utf8, fragments.concat().len()));
}

#[test]
fn text_must_not_end_inside_a_character() {
    for frames in [vec![frame(FIN | TEXT, b"a\xc3")], vec![frame(TEXT, b"\xe2\x82"), frame(FIN, b"")]] {
        assert_eq!(violated(&frames, &LIMITS).0, Violation::Utf8);
    }
    let split = [frame(TEXT, b"\xe2\x82"), frame(FIN, b"\xac")];
    assert_eq!(delivered(&split, &LIMITS), [text("\u{20ac}")]);
    assert_eq!(violated(&[frame(FIN | CLOSE, b"\x03\xe8\xff")], &LIMITS).0, Violation::Utf8);
}
