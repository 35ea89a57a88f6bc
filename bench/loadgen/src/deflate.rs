//! Compressed messages (permessage-deflate, RFC 7692, without context takeover): each stands for itself.
//!
//! Rule: every one of them is checked like a plain one. A broadcast is the same bytes for all its members, so what was inflated is
//! remembered by its bytes: the first client pays for inflating, the others for a comparison.

use flate2::{Decompress, FlushDecompress, Status};

use crate::frame::{self, Marker, PAYLOAD_BYTES_MAX};

/// What a client asks for; a server that agrees must not keep context (RFC 7692, 7.1.1.1).
pub const OFFER: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

pub struct Inflater {
    stream: Decompress,
    plain: Vec<u8>,
    seen: Vec<Seen>,
}

/// A message met before: its compressed bytes, and what was in it.
#[derive(Default, Clone)]
struct Seen {
    bytes: Box<[u8]>,
    marker: Option<Marker>,
}

/// Places for messages met before, four bursts of 250: a message is forgotten when another of its place comes.
const PLACES: usize = 1024;

/// The end of a flush, which the sender takes off (RFC 7692, 7.2.1), and an empty final block: only a whole message ends exactly there.
const END: [u8; 6] = [0, 0, 0xff, 0xff, 3, 0];

impl Default for Inflater {
    fn default() -> Self {
        Self { stream: Decompress::new(false), plain: Vec::new(), seen: Vec::new() }
    }
}

impl Inflater {
    /// The marker inside a compressed message; `Err` when it does not inflate.
    pub fn marker(&mut self, compressed: &[u8]) -> Result<Option<Marker>, &'static str> {
        if self.seen.is_empty() {
            self.seen.resize(PLACES, Seen::default());
        }
        let place = place_of(compressed);
        if *self.seen[place].bytes != *compressed {
            self.inflate(compressed)?;
            self.seen[place] = Seen { bytes: compressed.into(), marker: frame::marker(&self.plain) };
        }
        Ok(self.seen[place].marker)
    }

    fn inflate(&mut self, compressed: &[u8]) -> Result<(), &'static str> {
        self.stream.reset(false);
        self.plain.clear();
        self.plain.reserve(PAYLOAD_BYTES_MAX as usize);
        for (part, last) in [(compressed, false), (&END, true)] {
            let before = self.stream.total_in();
            let status = self.stream.decompress_vec(part, &mut self.plain, FlushDecompress::Sync);
            let used = self.stream.total_in() - before;
            let ended = status.map_err(|_| "deflate")? == Status::StreamEnd;
            if used != part.len() as u64 || ended != last {
                return Err("deflate");
            }
        }
        Ok(())
    }
}

/// FNV-1a over words of eight bytes, the rest left out: two messages of one place are only forgotten sooner.
fn place_of(bytes: &[u8]) -> usize {
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
    let hash =
        words.fold(bytes.len() as u64, |hash, word| (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29));
    hash as usize % PLACES
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::Inflater;

    fn compressed(plain: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(plain.len() + 64);
        let mut stream = Compress::new(Compression::default(), false);
        stream.compress_vec(plain.as_bytes(), &mut bytes, FlushCompress::Sync).expect("room for it");
        bytes.truncate(bytes.len() - 4);
        bytes
    }

    #[test]
    fn the_marker_inside_is_found_again_and_again() {
        let mut inflater = Inflater::default();
        for number in [1, 2, 1, 1] {
            let message =
                compressed(&format!(r#"{{"room":"chat:1","payload":{{"n":{number},"t":5,"x":"aaaaaaaaaa"}}}}"#));
            let marker = inflater.marker(&message).expect("valid").expect("a marker");
            assert_eq!((marker.number, marker.stamp), (number, 5));
        }
        assert_eq!(inflater.marker(&compressed("no marker here")), Ok(None));
    }

    #[test]
    fn a_message_that_is_cut_or_broken_is_an_error() {
        let whole = compressed(&r#"{"n":1,"t":5,"x":"different words in every line"}"#.repeat(20));
        let mut inflater = Inflater::default();
        assert!(inflater.marker(&whole[..whole.len() / 2]).is_err());
        assert!(inflater.marker(b"\xff\xff\xff\xff\xff").is_err());
        assert!(inflater.marker(&whole).is_ok());
    }
}
