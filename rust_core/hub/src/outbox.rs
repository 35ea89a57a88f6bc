//! What one connection is owed: shared frames by reference, its own by value.
//!
//! Exists only while bytes are owed. Rule: what is kept is whole frames, but for the first, of which `offset` bytes are gone; so
//! the rest can be cut off at any time without breaking the peer's stream.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use smallvec::SmallVec;

use crate::timers::Tick;

/// Slices one write may carry; Linux takes 1024, and the gain of more is lost in building the list.
pub(crate) const PARTS_MAX: usize = 64;
/// A shared piece this small is copied when it must wait: its entry would be as large as its bytes.
const COPIED_BYTES_MAX: usize = 256;
/// Own bytes are gathered up to this, so that a buffer is given back while the next is still owed.
const TAIL_BYTES_MAX: usize = 16 * 1024;
/// A buffer kept for less than a quarter of itself is exchanged for a copy, if it is large enough to matter.
const PINNED_FACTOR: usize = 4;
const PINNED_BYTES_MIN: usize = 4096;

/// Slices for one write.
pub(crate) type Parts<'a> = SmallVec<[&'a [u8]; PARTS_MAX]>;

#[derive(Debug)]
enum Segment {
    Shared {
        buffer: Arc<[u8]>,
        range: Range<usize>,
    },
    Own(Vec<u8>),
    /// Not yet begun, a newer pong takes its place.
    Pong(Vec<u8>),
    /// An HTTP answer, or the rest of a frame: all or nothing, and never cut off at the head.
    Whole(Vec<u8>),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Shared { buffer, range } => &buffer[range.clone()],
            Segment::Own(bytes) | Segment::Pong(bytes) | Segment::Whole(bytes) => bytes,
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Segment::Shared { range, .. } => range.end = range.end.min(range.start + len),
            Segment::Own(bytes) | Segment::Pong(bytes) | Segment::Whole(bytes) => bytes.truncate(len),
        }
    }

    /// Memory this segment keeps from being freed.
    fn pinned(&self) -> usize {
        match self {
            Segment::Shared { buffer, .. } => buffer.len(),
            Segment::Own(bytes) | Segment::Pong(bytes) | Segment::Whole(bytes) => bytes.capacity(),
        }
    }

    /// Size of the unit that begins at `at`: a frame, or all of it.
    fn unit(&self, at: usize) -> usize {
        match self {
            Segment::Whole(bytes) => bytes.len(),
            _ => frame_size(&self.bytes()[at..]),
        }
    }

    /// Start of the unit in which the byte `at` lies.
    fn unit_start(&self, at: usize) -> usize {
        let mut start = 0;
        while start + self.unit(start) <= at {
            start += self.unit(start);
        }
        start
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are written already.
    offset: usize,
    bytes: usize,
    /// Segments that ever left at the front, so that `pong` can name one.
    popped: i64,
    pong: Option<i64>,
    /// When the socket last took something, or refused to for the first time.
    pub progress: Tick,
}

impl Outbox {
    /// Bytes owed.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds whole frames of a shared buffer; `waits`: the socket is full, so this will be kept for a while.
    pub fn push_shared(&mut self, buffer: &Arc<[u8]>, range: Range<usize>, waits: bool) {
        let len = range.len();
        if waits && (len <= COPIED_BYTES_MAX || len * PINNED_FACTOR < buffer.len()) {
            return self.push_own(|own| own.extend_from_slice(&buffer[range]));
        }
        self.bytes += len;
        self.segments.push_back(Segment::Shared { buffer: Arc::clone(buffer), range });
    }

    /// Adds the whole frames that `encode` appends.
    pub fn push_own(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if !matches!(self.segments.back(), Some(Segment::Own(tail)) if tail.len() < TAIL_BYTES_MAX) {
            self.segments.push_back(Segment::Own(Vec::new()));
        }
        if let Some(Segment::Own(tail)) = self.segments.back_mut() {
            let before = tail.len();
            encode(tail);
            self.bytes += tail.len() - before;
        }
    }

    /// Adds bytes that are no frames.
    pub fn push_whole(&mut self, bytes: Vec<u8>) {
        self.bytes += bytes.len();
        self.segments.push_back(Segment::Whole(bytes));
    }

    /// Adds a pong that replaces an earlier one not yet begun: RFC 6455 section 5.5.3 allows to answer only the latest ping.
    pub fn push_pong(&mut self, frame: Vec<u8>) {
        let waiting = self.pong.and_then(|number| usize::try_from(number - self.popped).ok());
        if let Some(index) = waiting.filter(|&index| index > 0 || self.offset == 0)
            && let Some(Segment::Pong(old)) = self.segments.get_mut(index)
        {
            self.bytes = self.bytes - old.len() + frame.len();
            *old = frame;
            return;
        }
        self.pong = Some(self.popped + self.segments.len() as i64);
        self.bytes += frame.len();
        self.segments.push_back(Segment::Pong(frame));
    }

    /// What to write next.
    pub fn parts(&self) -> Parts<'_> {
        let mut parts: Parts<'_> = self.segments.iter().take(PARTS_MAX).map(Segment::bytes).collect();
        if let Some(first) = parts.first_mut() {
            *first = &first[self.offset..];
        }
        parts
    }

    /// The first `written` bytes are gone.
    pub fn advance(&mut self, written: usize) {
        self.bytes -= written;
        self.offset += written;
        while let Some(head) = self.segments.front()
            && self.offset >= head.bytes().len()
        {
            self.offset -= head.bytes().len();
            self.segments.pop_front();
            self.popped += 1;
        }
    }

    /// Gives up a buffer of which only a small rest is owed, so that a slow reader can't pin what others have long read.
    pub fn unpin(&mut self) {
        let Some(head) = self.segments.front() else {
            return;
        };
        let owed = &head.bytes()[self.offset..];
        if head.pinned() < PINNED_BYTES_MIN || owed.len() * PINNED_FACTOR >= head.pinned() {
            return;
        }
        let rest_of_unit = match self.begun() {
            0 => 0,
            begun => begun - self.offset,
        };
        let (whole, frames) = (owed[..rest_of_unit].to_vec(), owed[rest_of_unit..].to_vec());
        self.segments.pop_front();
        self.popped += 1;
        self.offset = 0;
        for segment in [Segment::Own(frames), Segment::Whole(whole)] {
            if !segment.bytes().is_empty() {
                self.popped -= 1;
                self.segments.push_front(segment);
            }
        }
    }

    /// Drops every frame that is not begun. Returns the number of bytes that are not owed any more.
    pub fn cut_unbegun(&mut self) -> usize {
        match self.begun() {
            0 => self.cut(0, 0),
            begun => self.cut(0, begun),
        }
    }

    /// Drops messages beyond the first `messages_max`. Returns how many.
    pub fn cut_messages(&mut self, messages_max: usize) -> usize {
        let (mut seen, mut from) = (0, None);
        for (index, segment) in self.segments.iter().enumerate() {
            if matches!(segment, Segment::Whole(_)) {
                continue;
            }
            let mut at = if index == 0 { segment.unit_start(self.offset) } else { 0 };
            while at < segment.bytes().len() {
                seen += usize::from(is_message(&segment.bytes()[at..]));
                if seen > messages_max && from.is_none() {
                    from = Some((index, at));
                }
                at += segment.unit(at);
            }
        }
        let Some((index, at)) = from else { return 0 };
        if index == 0 && at < self.offset {
            return 0;
        }
        self.cut(index, at);
        seen - messages_max
    }

    /// Drops what was added after `bytes` were owed.
    pub fn cut_to(&mut self, bytes: usize) {
        let mut kept = bytes + self.offset;
        let index = self.segments.iter().position(|segment| {
            let ends_later = segment.bytes().len() > kept;
            kept -= if ends_later { 0 } else { segment.bytes().len() };
            ends_later
        });
        if let Some(index) = index {
            self.cut(index, kept);
        }
    }

    /// Ready for the next connection.
    pub fn clear(&mut self) {
        self.segments.clear();
        (self.offset, self.bytes, self.popped, self.pong) = (0, 0, 0, None);
    }

    /// Room for segments kept while empty.
    pub fn capacity(&self) -> usize {
        self.segments.capacity()
    }

    /// Where in the first segment the unit ends that is partly written (or must not be cut); 0 when there is none.
    fn begun(&self) -> usize {
        match self.segments.front() {
            Some(Segment::Whole(bytes)) => bytes.len(),
            Some(head) if self.offset > 0 => {
                let start = head.unit_start(self.offset);
                if start == self.offset { start } else { start + head.unit(start) }
            }
            _ => 0,
        }
    }

    /// Keeps the segments before `index` and `len` bytes of that one.
    fn cut(&mut self, index: usize, len: usize) -> usize {
        let keep = index + usize::from(len > 0);
        self.segments.truncate(keep);
        if let Some(last) = self.segments.get_mut(index) {
            last.truncate(len);
        }
        let before = self.bytes;
        self.bytes = self.sum();
        if self.bytes == 0 {
            self.clear();
        }
        before - self.bytes
    }

    /// Bytes owed, counted anew.
    pub fn sum(&self) -> usize {
        self.segments.iter().map(|segment| segment.bytes().len()).sum::<usize>().saturating_sub(self.offset)
    }

    /// Memory kept from being freed.
    #[cfg(test)]
    fn pinned(&self) -> usize {
        self.segments.iter().map(Segment::pinned).sum()
    }
}

/// Size of the server's frame (it has no mask) at the start of `bytes`; RFC 6455 section 5.2.
fn frame_size(bytes: &[u8]) -> usize {
    let be = |range: Range<usize>| bytes[range].iter().fold(0, |size: usize, byte| size << 8 | usize::from(*byte));
    match bytes[1] {
        126 => 4 + be(2..4),
        127 => 10 + be(2..10),
        len => 2 + usize::from(len),
    }
}

fn is_message(frame: &[u8]) -> bool {
    frame[0] & 0x0f < 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::frame::{self, Opcode};

    fn frames(count: usize, len: usize) -> Arc<[u8]> {
        let mut out = Vec::new();
        (0..count).for_each(|at| frame::encode(Opcode::Text, &vec![at as u8; len], false, &mut out));
        out.into()
    }

    fn shared(count: usize, len: usize) -> Outbox {
        let mut outbox = Outbox::default();
        let buffer = frames(count, len);
        outbox.push_shared(&buffer, 0..buffer.len(), false);
        outbox
    }

    fn rest(outbox: &Outbox) -> Vec<u8> {
        assert_eq!(outbox.bytes(), outbox.sum());
        outbox.parts().concat()
    }

    #[test]
    fn whatever_a_socket_takes_the_rest_follows_in_order() {
        for step in [1, 7, 100, 1000] {
            let mut outbox = shared(3, 300);
            outbox.push_own(|out| frame::encode(Opcode::Binary, b"own", false, out));
            let (whole, mut taken) = (rest(&outbox), Vec::new());
            while outbox.bytes() > 0 {
                let now = rest(&outbox);
                let len = step.min(now.len());
                taken.extend_from_slice(&now[..len]);
                outbox.advance(len);
            }
            assert_eq!(taken, whole);
        }
    }

    #[test]
    fn cutting_keeps_the_rest_of_the_frame_that_is_begun_and_nothing_else() {
        // a payload of 128 bytes has a header of four
        const FRAME: usize = 132;
        for written in [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME - 1, 3 * FRAME] {
            let mut outbox = shared(3, 128);
            outbox.push_own(|out| frame::encode(Opcode::Text, b"later", false, out));
            let whole = rest(&outbox);
            outbox.advance(written);
            let before = outbox.bytes();
            let kept = written.next_multiple_of(FRAME) - written;
            assert_eq!(outbox.cut_unbegun(), before - kept, "after {written}");
            assert_eq!(rest(&outbox), whole[written..written + kept], "after {written}");
        }
    }

    #[test]
    fn an_answer_that_is_no_frame_is_never_cut() {
        let mut outbox = Outbox::default();
        outbox.push_whole(b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec());
        outbox.push_own(|out| frame::encode(Opcode::Text, b"first", false, out));
        outbox.cut_unbegun();
        assert!(rest(&outbox).ends_with(b"\r\n\r\n"));
    }

    #[test]
    fn only_the_newest_messages_are_dropped_and_counted() {
        let mut outbox = shared(10, 5);
        outbox.advance(7 + 3);
        assert_eq!(outbox.cut_messages(20), 0);
        assert_eq!(outbox.cut_messages(4), 5);
        assert_eq!(outbox.bytes(), 4 * 7 - 3);
        assert_eq!(outbox.cut_messages(4), 0);
    }

    #[test]
    fn what_was_added_last_can_be_taken_back() {
        let mut outbox = shared(4, 50);
        outbox.advance(10);
        let before = rest(&outbox);
        outbox.push_own(|out| frame::encode(Opcode::Text, b"more", false, out));
        outbox.push_shared(&frames(2, 9), 0..22, false);
        outbox.cut_to(before.len());
        assert_eq!(rest(&outbox), before);
    }

    #[test]
    fn a_pong_replaces_one_that_is_not_begun() {
        let pong = |payload: &[u8]| {
            let mut out = Vec::new();
            frame::encode(Opcode::Pong, payload, false, &mut out);
            out
        };
        let mut outbox = shared(1, 10);
        outbox.push_pong(pong(b"one"));
        outbox.push_own(|out| frame::encode(Opcode::Text, b"between", false, out));
        outbox.push_pong(pong(b"second"));
        assert!(!rest(&outbox).windows(3).any(|bytes| bytes == b"one"));
        outbox.advance(12 + 1);
        outbox.push_pong(pong(b"third"));
        let rest = rest(&outbox);
        assert!(rest.starts_with(b"\x06second") && rest.ends_with(b"third"));
    }

    #[test]
    fn a_slow_reader_does_not_pin_a_buffer_that_others_have_read() {
        let mut outbox = shared(100, 1000);
        let whole = rest(&outbox);
        outbox.advance(90_500);
        outbox.push_pong(b"\x8a\x00".to_vec());
        outbox.unpin();
        assert!(outbox.pinned() <= 10_000, "{}", outbox.pinned());
        assert_eq!(rest(&outbox), [&whole[90_500..], b"\x8a\x00"].concat());
        outbox.push_pong(b"\x8a\x01x".to_vec());
        assert!(rest(&outbox).ends_with(b"\x8a\x01x"));
        assert_eq!(outbox.cut_unbegun(), outbox_rest_after_begun(&whole, 90_500) + 3);
    }

    /// Bytes behind the frame in which `written` lies.
    fn outbox_rest_after_begun(whole: &[u8], written: usize) -> usize {
        whole.len() - written.next_multiple_of(1004)
    }

    #[test]
    fn small_pieces_that_wait_are_copied_together() {
        let mut outbox = Outbox::default();
        let buffer = frames(1, 20);
        for _ in 0..1000 {
            outbox.push_shared(&buffer, 0..22, true);
        }
        assert_eq!(outbox.bytes(), 22_000);
        assert!(outbox.segments.len() <= 2 && Arc::strong_count(&buffer) == 1);
    }
}
