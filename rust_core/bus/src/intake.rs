//! The bytes of one connection: messages of the watched subscriptions stay here, the rest goes back.
//!
//! Rule: a watched consumer's own numbers must follow each other. A hole means that a message was lost on its way; what comes after
//! it is not taken, because it would be delivered before what is missing. What is handed back is whole frames in their order.

use std::collections::VecDeque;

use crate::{
    frame::{self, Delivery, Frame},
    messages::{Messages, Position},
};

#[derive(Default)]
pub struct Intake {
    /// The beginning of a frame that is not whole.
    kept: Vec<u8>,
    feeds: Vec<Feed>,
    /// A frame could not be read: from there on all is the library's.
    blind: bool,
}

struct Feed {
    sid: u64,
    expected: u64,
    last: u64,
    state: State,
    batches: VecDeque<Messages>,
    touched: bool,
}

/// What a feed has seen since it is watched.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct State {
    /// Messages that came, wanted or not.
    pub received: u64,
    /// The consumer's number that should be next.
    pub expected: u64,
    /// Messages that the server holds beyond the newest.
    pub pending: u64,
    /// Messages without a position.
    pub unreadable: u64,
    /// The number that came instead of the one expected.
    pub gap: Option<u64>,
}

impl Intake {
    /// From now on: `first` is the number that the consumer's next message must have, `last` the newest sequence known.
    pub fn watch(&mut self, sid: u64, first: u64, last: u64) {
        self.forget(sid);
        let state = State { expected: first, ..State::default() };
        self.feeds.push(Feed { sid, expected: first, last, state, batches: VecDeque::new(), touched: false });
    }

    pub fn forget(&mut self, sid: u64) {
        self.feeds.retain(|feed| feed.sid != sid);
    }

    /// Takes what came from the server. Frames for the library are added to `rest`.
    pub fn take(&mut self, data: &[u8], rest: &mut Vec<u8>) {
        if self.kept.is_empty() {
            let taken = self.frames(data, rest);
            self.kept.extend_from_slice(&data[taken..]);
            return;
        }
        let mut bytes = std::mem::take(&mut self.kept);
        bytes.extend_from_slice(data);
        let taken = self.frames(&bytes, rest);
        bytes.drain(..taken);
        self.kept = bytes;
    }

    /// Whether `take` would hand all back unseen and nothing is held.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// The subscriptions that something came for since this was asked last.
    pub fn touched(&mut self) -> impl Iterator<Item = u64> {
        self.feeds.iter_mut().filter_map(|feed| std::mem::take(&mut feed.touched).then_some(feed.sid))
    }

    /// The oldest batch.
    pub fn next(&mut self, sid: u64) -> Option<Messages> {
        self.feed(sid)?.batches.pop_front()
    }

    pub fn state(&mut self, sid: u64) -> Option<State> {
        self.feed(sid).map(|feed| feed.state.clone())
    }

    fn feed(&mut self, sid: u64) -> Option<&mut Feed> {
        self.feeds.iter_mut().find(|feed| feed.sid == sid)
    }

    /// Returns how many bytes were whole frames.
    fn frames(&mut self, bytes: &[u8], rest: &mut Vec<u8>) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.blind {
            let end = match frame::first(&bytes[at..]) {
                Frame::Partial => return at,
                Frame::Unreadable => {
                    self.blind = true;
                    break;
                }
                Frame::Message(delivery) if self.is_ours(&delivery, &bytes[at..]) => {
                    at += delivery.end;
                    continue;
                }
                Frame::Message(delivery) => at + delivery.end,
                Frame::Line(length) => at + length,
            };
            rest.extend_from_slice(&bytes[at..end]);
            at = end;
        }
        rest.extend_from_slice(&bytes[at..]);
        bytes.len()
    }

    /// A message without a reply subject is a status: those are for the library.
    fn is_ours(&mut self, delivery: &Delivery, frame: &[u8]) -> bool {
        if delivery.reply.is_empty() {
            return false;
        }
        match self.feed(delivery.sid) {
            Some(feed) => {
                let [subject, reply, payload] =
                    [&delivery.subject, &delivery.reply, &delivery.payload].map(|range| &frame[range.clone()]);
                feed.take(subject, reply, payload);
                true
            }
            None => false,
        }
    }
}

impl Feed {
    fn take(&mut self, subject: &[u8], reply: &[u8], payload: &[u8]) {
        self.touched = true;
        let Some(position) = Position::of(reply) else {
            self.state.unreadable += 1;
            return;
        };
        self.state.received += 1;
        if self.state.gap.is_some() {
            return;
        }
        if position.number != self.expected {
            self.state.gap = Some(position.number);
            return;
        }
        self.expected += 1;
        self.state.expected = self.expected;
        // delivered twice by the server, after the ack wait: the first copy was handed over or is about to be
        if position.sequence <= self.last {
            return;
        }
        self.last = position.sequence;
        self.state.pending = position.pending;
        if self.batches.back().is_none_or(Messages::is_full) {
            self.batches.push_back(Messages::default());
        }
        if let Some(batch) = self.batches.back_mut() {
            batch.push(subject, reply, payload, position.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn msg(sid: u64, sequence: u64, number: u64, payload: &str) -> String {
        let reply = format!("$JS.ACK.CHAT.gw.1.{sequence}.{number}.1700000000.3");
        format!("MSG chat.events {sid} {reply} {}\r\n{payload}\r\n", payload.len())
    }

    fn take(intake: &mut Intake, data: &str) -> String {
        let mut rest = Vec::new();
        intake.take(data.as_bytes(), &mut rest);
        String::from_utf8(rest).unwrap()
    }

    fn sequences(intake: &mut Intake, sid: u64) -> Vec<u64> {
        let batches: Vec<Messages> = std::iter::from_fn(|| intake.next(sid)).collect();
        batches.iter().flat_map(|batch| (0..batch.len()).map(|at| batch.get(at).unwrap().sequence)).collect()
    }

    fn watching() -> Intake {
        let mut intake = Intake::default();
        intake.watch(4, 1, 10);
        intake
    }

    #[test]
    fn watched_messages_stay_and_all_else_goes_back_in_its_order() {
        let mut intake = watching();
        let others = ["PING\r\n", "MSG x 2 r 2\r\nhi\r\n", "HMSG _INBOX.1 4 12 12\r\nNATS/1.0\r\n\r\n\r\n"];
        let data = [others[0], &msg(4, 11, 1, "a"), others[1], &msg(4, 12, 2, "b"), others[2]].concat();
        assert_eq!(take(&mut intake, &data), others.concat());
        assert_eq!(intake.touched().collect::<Vec<_>>(), [4]);
        assert_eq!(sequences(&mut intake, 4), [11, 12]);
        assert_eq!(intake.touched().count(), 0);
        assert_eq!(intake.state(4), Some(State { received: 2, expected: 3, pending: 3, ..State::default() }));
    }

    #[test]
    fn after_a_hole_nothing_is_taken() {
        let mut intake = watching();
        take(&mut intake, &[msg(4, 11, 1, ""), msg(4, 13, 3, ""), msg(4, 14, 4, "")].concat());
        assert_eq!(sequences(&mut intake, 4), [11]);
        let state = intake.state(4).unwrap();
        assert_eq!((state.received, state.expected, state.gap), (3, 2, Some(3)));
    }

    #[test]
    fn a_second_copy_counts_as_received_and_is_not_kept() {
        let mut intake = watching();
        take(&mut intake, &[msg(4, 11, 1, ""), msg(4, 10, 2, ""), msg(4, 11, 3, ""), msg(4, 12, 4, "")].concat());
        assert_eq!(sequences(&mut intake, 4), [11, 12]);
        assert_eq!(intake.state(4).unwrap().received, 4);
    }

    #[test]
    fn what_has_no_position_is_counted_and_forgotten_subscriptions_are_the_librarys() {
        let mut intake = watching();
        assert_eq!(take(&mut intake, "MSG s 4 some.reply 0\r\n\r\n"), "");
        assert_eq!(intake.state(4).unwrap().unreadable, 1);
        intake.forget(4);
        let data = msg(4, 11, 1, "");
        assert_eq!(take(&mut intake, &data), data);
        assert_eq!((intake.state(4), intake.next(4).is_some()), (None, false));
    }

    #[test]
    fn from_an_unreadable_frame_on_all_is_the_librarys() {
        let mut intake = watching();
        let data = [&msg(4, 11, 1, ""), "MSG what\r\n", &msg(4, 12, 2, "")].concat();
        assert_eq!(take(&mut intake, &data), data[msg(4, 11, 1, "").len()..]);
        assert!(intake.is_blind());
        assert_eq!(take(&mut intake, &msg(4, 13, 3, "")), msg(4, 13, 3, ""));
        assert_eq!(sequences(&mut intake, 4), [11]);
    }

    #[test]
    fn a_large_burst_comes_in_batches() {
        let mut intake = watching();
        (0..1200).for_each(|at| drop(take(&mut intake, &msg(4, 11 + at, 1 + at, "x"))));
        let sizes: Vec<usize> = std::iter::from_fn(|| intake.next(4)).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [500, 500, 200]);
    }

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_the_same_comes_out(
            kinds in prop::collection::vec(0..4u8, 1..20), cuts in prop::collection::vec(1..60usize, 1..40),
        ) {
            let mut number = 0;
            let frames = kinds.iter().map(|kind| match kind {
                0 => "PING\r\n".to_owned(),
                1 => "HMSG i 4 16 16\r\nNATS/1.0 100\r\n\r\n\r\n".to_owned(),
                2 => "MSG other 7 5\r\na\r\nb\r\r\n".to_owned(),
                _ => {
                    number += 1;
                    msg(4, 10 + number, number, "MSG 1 2\r\n")
                }
            });
            let data = frames.collect::<String>();
            let (mut whole, mut cut) = (watching(), watching());
            let expected = take(&mut whole, &data);
            let (mut rest, mut at) = (String::new(), 0);
            for step in cuts.iter().cycle() {
                let end = data.len().min(at + step);
                rest += &take(&mut cut, &data[at..end]);
                at = end;
                if at == data.len() {
                    break;
                }
            }
            prop_assert_eq!(rest, expected);
            prop_assert_eq!(cut.state(4), whole.state(4));
            prop_assert_eq!(sequences(&mut cut, 4), sequences(&mut whole, 4));
        }

        #[test]
        fn no_bytes_are_lost_or_made_up(data in prop::collection::vec(any::<u8>(), 0..200)) {
            let (mut intake, mut rest) = (Intake::default(), Vec::new());
            intake.take(&data, &mut rest);
            rest.extend_from_slice(&intake.kept);
            prop_assert_eq!(rest, data);
        }
    }
}
