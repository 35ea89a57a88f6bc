//! What a shard says to a client by itself, because the application must not be asked each time or would be too late.
//!
//! Rule: a template is taken apart at the start; when it is said, the time is put in and nothing else. In which dialect is the
//! application's to know: it numbers them, and says with `Admit` which one is spoken.

use crate::{Millis, Payload};

/// Where in a template the time goes, as digits: since the epoch, in seconds or in milliseconds.
const SECONDS: &[u8] = b"$UNIX_SECONDS";
const MILLIS: &[u8] = b"$UNIX_MILLIS";

/// A text, perhaps with the time in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Notice {
    before: Box<[u8]>,
    /// Milliseconds a unit of the time, and what comes behind it.
    time: Option<(Millis, Box<[u8]>)>,
}

/// All notices in one dialect; what is `None` is not said.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Notices {
    /// Answers a message beyond the rate, which is discarded; `None`: its sender is closed with 1008.
    pub excess: Option<Notice>,
    /// Comes before the close frame of who was not heard.
    pub silence: Option<Notice>,
    /// Comes before the close frame of a drain.
    pub farewell: Option<Notice>,
}

impl Notice {
    pub fn new(template: &[u8]) -> Self {
        for (place, unit_ms) in [(SECONDS, 1000), (MILLIS, 1)] {
            if let Some(at) = memchr::memmem::find(template, place) {
                let (before, rest) = template.split_at(at);
                return Self { before: before.into(), time: Some((unit_ms, rest[place.len()..].into())) };
            }
        }
        Self { before: template.into(), time: None }
    }

    /// As it is said at `unix_ms`.
    pub fn at(&self, unix_ms: Millis) -> Payload {
        let mut bytes = self.before.to_vec();
        if let Some((unit_ms, after)) = &self.time {
            bytes.extend_from_slice((unix_ms / unit_ms).to_string().as_bytes());
            bytes.extend_from_slice(after);
        }
        Payload { bytes: bytes.into(), text: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(template: &[u8]) -> Box<[u8]> {
        Notice::new(template).at(1_767_225_600_123).bytes
    }

    #[test]
    fn the_time_goes_where_the_template_has_a_place_for_it() {
        assert_eq!(said(br#"{"at":$UNIX_SECONDS,"x":1}"#)[..], br#"{"at":1767225600,"x":1}"#[..]);
        assert_eq!(said(br#"{"at":$UNIX_MILLIS}"#)[..], br#"{"at":1767225600123}"#[..]);
        assert_eq!(said(b"$UNIX_SECONDS")[..], b"1767225600"[..]);
    }

    #[test]
    fn a_text_without_a_place_is_said_as_it_is() {
        for text in [&b""[..], b"slow down", b"$UNIX", b"$unix_seconds"] {
            assert_eq!(said(text)[..], text[..]);
        }
    }
}
