//! However random bytes are cut, the outcome is the same.

use proptest::prelude::*;
use tidegate_hub::ws::message::Limits;

use crate::reader::*;

/// Any well-formed conversation: messages in fragments, control frames in between.
fn conversation() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let control = (prop::sample::select(vec![PING, PONG]), prop::collection::vec(any::<u8>(), 0..126));
    let message = ("\\PC{0,40}", prop::collection::vec(prop::option::of(control), 1..5));
    prop::collection::vec(message, 1..6).prop_map(|messages| {
        let mut frames = Vec::new();
        for (text, between) in messages {
            let size = text.len() / between.len() + 1;
            let mut parts: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            parts.resize(between.len().max(parts.len()), b"");
            let last = parts.len() - 1;
            for (n, part) in parts.into_iter().enumerate() {
                let first = if n == 0 { TEXT } else { CONTINUATION } | if n == last { FIN } else { 0 };
                frames.push(frame(first, part));
                if let Some(Some((opcode, payload))) = between.get(n) {
                    frames.push(frame(FIN | opcode, payload));
                }
            }
        }
        frames
    })
}

proptest! {
    #[test]
    fn any_conversation_is_the_same_however_it_is_cut(frames in conversation(), steps in prop::collection::vec(1..50usize, 1..20)) {
        let expected = whole(&frames, &LIMITS).unwrap();
        let bytes = frames.concat();
        let mut reader = Reader::default();
        let mut rest = &bytes[..];
        for step in steps.iter().cycle() {
            let (piece, after) = rest.split_at((*step).min(rest.len()));
            reader.feed(piece, piece.len().max(1), &LIMITS).unwrap();
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(reader.got, expected);
        prop_assert!(reader.partial.is_none());
    }

    #[test]
    fn any_bytes_give_the_same_outcome_however_they_are_cut(
        frames in conversation(), place in any::<prop::sample::Index>(), byte: u8, step in 1..40usize, deflate: bool,
    ) {
        let limits = Limits { deflate, message_bytes_max: 300, fragments_max: 5 };
        let mut bytes = frames.concat();
        let place = place.index(bytes.len());
        bytes[place] = byte;
        let (mut one, mut many) = (Reader::default(), Reader::default());
        let (first, second) = (one.feed(&bytes, bytes.len(), &limits), many.feed(&bytes, step, &limits));
        prop_assert_eq!(first, second);
        prop_assert_eq!(one.got, many.got);
    }
}
