//! UTF-8 checked as it arrives: a text message is refused at its first wrong byte, not at its end.
//!
//! Rule: the verdict after any split of a text equals that of the standard library on the whole. What is kept between two pieces
//! is the beginning of one character, never text.

/// The beginning of a character whose end has not come yet.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(super) struct Utf8 {
    tail: [u8; 4],
    tail_len: u8,
}

impl Utf8 {
    /// Takes the next piece; `false` as soon as no continuation could make the text valid.
    #[must_use]
    pub fn push(&mut self, piece: &[u8]) -> bool {
        let Some(piece) = self.complete_tail(piece) else {
            return false;
        };
        let Err(error) = simdutf8::compat::from_utf8(piece) else {
            return true;
        };
        if error.error_len().is_some() {
            return false;
        }
        let tail = &piece[error.valid_up_to()..];
        self.tail[..tail.len()].copy_from_slice(tail);
        self.tail_len = tail.len() as u8;
        true
    }

    /// Whether the text may end here.
    pub fn is_complete(&self) -> bool {
        self.tail_len == 0
    }

    /// Adds bytes to a begun character until it ends; gives what is left of `piece`, or `None` if the character is wrong.
    fn complete_tail<'a>(&mut self, mut piece: &'a [u8]) -> Option<&'a [u8]> {
        while self.tail_len > 0 {
            let Some((&byte, rest)) = piece.split_first() else {
                break;
            };
            piece = rest;
            let len = usize::from(self.tail_len) + 1;
            self.tail[len - 1] = byte;
            match std::str::from_utf8(&self.tail[..len]) {
                Ok(_) => self.tail_len = 0,
                Err(error) if error.error_len().is_none() => self.tail_len = len as u8,
                Err(_) => return None,
            }
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where the text becomes hopeless when fed byte by byte, or its length and whether it may end there.
    fn bytewise(text: &[u8]) -> (usize, bool) {
        let mut utf8 = Utf8::default();
        for (at, byte) in text.iter().enumerate() {
            if !utf8.push(&[*byte]) {
                return (at, false);
            }
        }
        (text.len(), utf8.is_complete())
    }

    /// The same by the standard library, on growing prefixes.
    fn naive(text: &[u8]) -> (usize, bool) {
        for end in 1..=text.len() {
            if std::str::from_utf8(&text[..end]).is_err_and(|error| error.error_len().is_some()) {
                return (end - 1, false);
            }
        }
        (text.len(), std::str::from_utf8(text).is_ok())
    }

    fn in_two(text: &[u8], at: usize) -> bool {
        let mut utf8 = Utf8::default();
        utf8.push(&text[..at]) && utf8.push(&text[at..]) && utf8.is_complete()
    }

    #[test]
    fn every_sequence_of_two_bytes_and_every_bound_of_four_is_judged_as_by_the_standard_library() {
        let edges = [0x00, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc1, 0xc2, 0xdf, 0xe0, 0xed, 0xf0, 0xf4, 0xf5];
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                assert_eq!(bytewise(&[first, second]), naive(&[first, second]));
            }
            for pick in 0..edges.len().pow(3) {
                let [b, c, d] = [pick, pick >> 4, pick >> 8].map(|pick| edges[pick & 15]);
                assert_eq!(bytewise(&[first, b, c, d]), naive(&[first, b, c, d]));
            }
        }
    }

    #[test]
    fn a_code_point_above_the_last_is_refused_before_its_end() {
        let mut utf8 = Utf8::default();
        assert!(utf8.push(b"\xf4"));
        assert!(!utf8.push(b"\x90"), "U+110000 and above cannot become valid");
    }

    proptest! {
        #[test]
        fn any_split_of_valid_text_is_valid(text in "\\PC{0,60}", at in 0..240usize) {
            prop_assert!(in_two(text.as_bytes(), at.min(text.len())));
        }

        #[test]
        fn any_split_of_damaged_text_is_judged_as_the_whole(
            text in "\\PC{0,60}", at in 0..240usize, place in any::<prop::sample::Index>(), byte: u8,
        ) {
            let mut text = text.into_bytes();
            text.push(b'.');
            let place = place.index(text.len());
            text[place] = byte;
            prop_assert_eq!(in_two(&text, at.min(text.len())), std::str::from_utf8(&text).is_ok());
            prop_assert_eq!(bytewise(&text), naive(&text));
        }
    }
}
