//! Messages as they go on the wire, encoded once for all members.
//!
//! Rule: a broadcast is one contiguous run of frames. A member that falls behind is owed the rest of that run, so it costs a
//! position, never a copy.

use std::fmt::Write;
use std::iter;
use std::ops::Range;
use std::sync::Arc;

use crate::sys::now_ns;

pub struct Broadcast {
    pub room: String,
    pub frames: Arc<Vec<u8>>,
    /// Where each send begins and ends in `frames`.
    pub sends: Vec<Range<usize>>,
    /// All sends to one member before the next member, instead of one send to every member before the next send.
    pub member_by_member: bool,
}

impl Broadcast {
    /// One message as it came from a bus.
    pub fn single(room: &str, payload: &[u8]) -> Self {
        let frames = text_frame(payload);
        Self {
            room: room.to_owned(),
            sends: iter::once(0..frames.len()).collect(),
            frames: Arc::new(frames),
            member_by_member: false,
        }
    }

    /// `count` numbered messages from `first` on, each of `size` bytes, `batch` of them to a send.
    pub fn numbered(room: &str, first: u64, count: usize, size: usize, batch: usize) -> Self {
        let stamp = now_ns();
        let (mut frames, mut sends, mut begin) = (Vec::new(), Vec::new(), 0);
        for index in 0..count {
            let payload = event(room, first + index as u64, stamp, size);
            frames.extend_from_slice(&text_frame(payload.as_bytes()));
            if (index + 1) % batch.max(1) == 0 || index + 1 == count {
                sends.push(begin..frames.len());
                begin = frames.len();
            }
        }
        Self { room: room.to_owned(), frames: Arc::new(frames), sends, member_by_member: false }
    }
}

/// The event that a backend would publish: same keys and size as the drivers send to the gateway.
fn event(room: &str, number: u64, stamp: u64, size: usize) -> String {
    let mut text = String::with_capacity(size);
    let head = write!(text, r#"{{"type":"message","room":"{room}","payload":{{"n":{number},"t":{stamp},"x":""#);
    debug_assert!(head.is_ok(), "writing to a String cannot fail");
    let padding = size.saturating_sub(text.len() + TAIL.len());
    text.extend(iter::repeat_n('x', padding));
    text.push_str(TAIL);
    text
}

const TAIL: &str = r#""}}"#;

/// A server's text frame (RFC 6455, 5.2): final, unmasked, shortest length form.
pub fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length @ 126..=0xffff => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::{Broadcast, event, text_frame};

    #[test]
    fn an_event_has_exactly_the_size_asked_for() {
        for size in [128, 512, 2048] {
            assert_eq!(event("chat:1", 7, 123, size).len(), size);
        }
    }

    #[test]
    fn length_forms_change_at_126_and_65536_bytes() {
        assert_eq!(text_frame(&[b'x'; 125]).len(), 127);
        assert_eq!(text_frame(&[b'x'; 126])[1..4], [126, 0, 126]);
        assert_eq!(text_frame(&vec![b'x'; 65_536])[1..10], [127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn the_sends_of_a_broadcast_cover_its_frames_without_a_gap() {
        let broadcast = Broadcast::numbered("r", 1, 25, 128, 10);
        let mut end = 0;
        for send in &broadcast.sends {
            assert_eq!(send.start, end);
            end = send.end;
        }
        assert_eq!((broadcast.sends.len(), end), (3, broadcast.frames.len()));
    }
}
