//! Messages of one stream in its order, their bytes side by side.
//!
//! Rule: a batch is closed at a number of messages and of bytes, so that handing one over never takes long.

use crate::frame::number;

#[derive(Default, Debug)]
pub struct Messages {
    /// Subject, reply and payload of each message, one after the other.
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    payload_bytes: usize,
}

#[derive(Debug)]
struct Entry {
    begin: usize,
    subject: usize,
    reply: usize,
    end: usize,
    sequence: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    pub subject: &'a [u8],
    pub payload: &'a [u8],
    /// In the stream.
    pub sequence: u64,
}

/// What a JetStream reply subject says.
#[derive(PartialEq, Eq, Debug)]
pub struct Position {
    pub sequence: u64,
    /// In the consumer: without a gap for who sees all.
    pub number: u64,
    /// Messages that follow.
    pub pending: u64,
}

impl Messages {
    pub fn push(&mut self, subject: &[u8], reply: &[u8], payload: &[u8], sequence: u64) {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(subject);
        self.bytes.extend_from_slice(reply);
        self.bytes.extend_from_slice(payload);
        let reply_end = begin + subject.len() + reply.len();
        self.entries.push(Entry {
            begin,
            subject: begin + subject.len(),
            reply: reply_end,
            end: self.bytes.len(),
            sequence,
        });
        self.payload_bytes += payload.len();
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() >= BATCH_MESSAGES_MAX || self.payload_bytes >= BATCH_BYTES_MAX
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    pub fn get(&self, index: usize) -> Option<Message<'_>> {
        let entry = self.entries.get(index)?;
        let (subject, payload) = (&self.bytes[entry.begin..entry.subject], &self.bytes[entry.reply..entry.end]);
        Some(Message { subject, payload, sequence: entry.sequence })
    }

    /// The sequence of the newest one.
    pub fn last(&self) -> Option<u64> {
        self.entries.last().map(|entry| entry.sequence)
    }

    /// An empty publication to each message's reply subject, as the wire wants them.
    pub fn acknowledgements(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for entry in &self.entries {
            out.extend_from_slice(b"PUB ");
            out.extend_from_slice(&self.bytes[entry.subject..entry.reply]);
            out.extend_from_slice(b" 0\r\n\r\n");
        }
        out
    }
}

impl Position {
    /// `$JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.number.stored_at.pending[.random]`
    pub fn of(reply: &[u8]) -> Option<Self> {
        let mut tokens = [&reply[..0]; TOKENS_MAX];
        let mut count = 0;
        for token in reply.split(|byte| *byte == b'.') {
            *tokens.get_mut(count)? = token;
            count += 1;
        }
        if !reply.starts_with(b"$JS.ACK.") || count < 9 {
            return None;
        }
        let at = if count == 9 { 5 } else { 7 };
        let token = |index: usize| number(tokens[index]);
        Some(Self { sequence: token(at)?, number: token(at + 1)?, pending: token(at + 3)? })
    }
}

/// What one hand-over may bring: its fixed cost vanishes, and other work still runs in between.
const BATCH_MESSAGES_MAX: usize = 500;
const BATCH_BYTES_MAX: usize = 1024 * 1024;
/// Of the longest form, and of what a later server may add.
const TOKENS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_is_acknowledged_by_its_reply_subject() {
        let mut messages = Messages::default();
        messages.push(b"chat.events", b"$JS.ACK.1", b"one", 7);
        messages.push(b"chat.other", b"$JS.ACK.2", b"", 9);
        assert_eq!((messages.len(), messages.payload_bytes(), messages.last()), (2, 3, Some(9)));
        assert_eq!(messages.get(0), Some(Message { subject: b"chat.events", payload: b"one", sequence: 7 }));
        assert_eq!(messages.get(1), Some(Message { subject: b"chat.other", payload: b"", sequence: 9 }));
        assert_eq!(messages.get(2), None);
        assert_eq!(messages.acknowledgements(), b"PUB $JS.ACK.1 0\r\n\r\nPUB $JS.ACK.2 0\r\n\r\n");
    }

    #[test]
    fn a_batch_is_full_by_number_or_by_bytes() {
        let mut messages = Messages::default();
        (0..BATCH_MESSAGES_MAX).for_each(|at| {
            assert!(!messages.is_full());
            messages.push(b"s", b"r", b"x", at as u64);
        });
        assert!(messages.is_full());
        let mut large = Messages::default();
        large.push(b"s", b"r", &vec![0; BATCH_BYTES_MAX], 1);
        assert!(large.is_full());
    }

    #[test]
    fn positions_are_read_with_and_without_a_domain() {
        let position = Some(Position { sequence: 41, number: 5, pending: 9 });
        assert_eq!(Position::of(b"$JS.ACK.CHAT.gw.1.41.5.1700000000000000000.9"), position);
        assert_eq!(Position::of(b"$JS.ACK.hub.HASH.CHAT.gw.1.41.5.1700000000000000000.9"), position);
        assert_eq!(Position::of(b"$JS.ACK.hub.HASH.CHAT.gw.1.41.5.1700000000000000000.9.rnd"), position);
        for nonsense in [&b""[..], b"x", b"........", b"$JS.ACK.CHAT.gw.1.one.5.17.9", b"$JS.ACK.CHAT.gw.1.41.5.17"] {
            assert_eq!(Position::of(nonsense), None);
        }
    }
}
