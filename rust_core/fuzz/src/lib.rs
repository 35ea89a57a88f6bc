//! What the network may throw at the hub, as functions on bytes: a panic or a broken promise is a finding.
//!
//! `make fuzz` runs each under libFuzzer. The tests below run them on damaged seeds, so that they cannot rot in between.

mod operations;

use std::ops::ControlFlow;

pub use operations::hub;

use tidegate_hub::{
    Settings,
    group::Encoding,
    ws::{
        deflate::{Deflater, Inflater, negotiate},
        message::{Incoming, Limits, Violation, feed},
        proxy::{self, Parsed},
        upgrade::{Request, find_head_end, offers, parse, response_101},
    },
};

/// A request's head, and a PROXY header, cut anywhere.
pub fn upgrade(data: &[u8]) {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    proxied(data);
    let settings = Settings { compression: true, ..Settings::default() };
    let whole = find_head_end(data, &mut 0);
    let mut scanned = 0;
    let cuts = (1..data.len()).step_by(usize::from(step) + 1).chain([data.len()]);
    let first = cuts.filter_map(|cut| find_head_end(&data[..cut], &mut scanned)).next();
    if data.first().is_some_and(u8::is_ascii_alphabetic) {
        assert_eq!(first, whole, "the end of a head depends on how it was cut");
    }
    match parse(&data[..whole.unwrap_or(data.len())], &settings) {
        Ok(Request::Http) => {}
        Ok(Request::WebSocket(upgrade)) => {
            assert_eq!(upgrade.headers.len(), settings.headers.len());
            assert!(upgrade.target.iter().all(u8::is_ascii_graphic));
            let protocol = std::str::from_utf8(&upgrade.protocols).unwrap_or_default();
            assert!(!protocol.contains(',') || !offers(&upgrade.protocols, protocol));
            let answer = response_101(&upgrade.accept, Some(protocol), upgrade.deflate);
            assert_eq!(find_head_end(&answer, &mut 0), Some(answer.len()));
        }
        Err(rejection) => {
            assert!(matches!(rejection.status, 400 | 405 | 426 | 431 | 505));
            assert!(rejection.response().len() < 512);
        }
    }
    let _ = negotiate(data);
}

/// A header is done only when whole, and nothing after it changes that.
fn proxied(data: &[u8]) {
    match proxy::parse(data) {
        Parsed::Done { len, .. } => {
            assert!(len <= data.len());
            assert_eq!(proxy::parse(&data[..len]), proxy::parse(data));
            assert_eq!(proxy::parse(&data[..len - 1]), Parsed::Incomplete);
        }
        Parsed::Incomplete => assert!(data.len() < 536, "waits for more than a header may have"),
        Parsed::Bad => {}
    }
}

/// A client's frames: the same outcome in one piece and in many, limits kept, memory bounded.
pub fn frame(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else {
        return;
    };
    let limits = Limits { message_bytes_max: 1000, fragments_max: 6, deflate: choice & 1 != 0 };
    let step = usize::from(choice >> 1) + 1;
    assert_eq!(read(data, data.len().max(1), &limits), read(data, step, &limits));
}

/// What was delivered, each message by its kind and bytes, and how it ended.
fn read(data: &[u8], step: usize, limits: &Limits) -> (Vec<Owned>, Result<(), Violation>) {
    let mut partial = None;
    let mut inflater = Inflater::default();
    let mut got = Vec::new();
    let mut closed = false;
    for piece in data.chunks(step) {
        let sink = &mut |incoming: Incoming<'_>| {
            closed |= matches!(incoming, Incoming::Close { .. });
            got.push(owned(incoming, limits));
            ControlFlow::Continue(())
        };
        match feed(&mut partial, &mut piece.to_vec(), limits, &mut inflater, sink) {
            Ok(used) => assert!(closed || used == piece.len()),
            Err(violation) => return (got, Err(violation)),
        }
        if closed {
            break;
        }
        let held = partial.as_ref().map_or(0, |partial| partial.held_bytes());
        assert!(held <= 512 + 2 * (limits.message_bytes_max + 1000), "{held} bytes held");
    }
    (got, Ok(()))
}

/// A message that outlives its buffer: opcode and payload.
type Owned = (u8, Vec<u8>);

fn owned(incoming: Incoming<'_>, limits: &Limits) -> Owned {
    match incoming {
        Incoming::Text(text) => {
            assert!(std::str::from_utf8(text).is_ok() && text.len() <= limits.message_bytes_max);
            (1, text.to_vec())
        }
        Incoming::Binary(bytes) => {
            assert!(bytes.len() <= limits.message_bytes_max);
            (2, bytes.to_vec())
        }
        Incoming::Close { code, reason } => {
            assert!(std::str::from_utf8(reason).is_ok() && reason.len() <= 123);
            (8, [&code.unwrap_or(0).to_be_bytes(), reason].concat())
        }
        Incoming::Ping(payload) => (9, payload.to_vec()),
        Incoming::Pong => (10, Vec::new()),
    }
}

/// Compressed bytes as a peer may send them, and a message as we would compress it.
pub fn deflate(data: &[u8]) {
    let mut inflater = Inflater::default();
    for limit in [0, 10, 5000] {
        if let Ok(message) = inflater.inflate(data, limit) {
            assert!(message.len() <= limit);
        }
    }
    let mut deflater = Deflater::default();
    for encoding in [Encoding::Deflate, Encoding::DeflateSmall] {
        let mut out = Vec::new();
        deflater.encode(false, data, encoding, &mut out);
        let size = match out[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let payload = &out[size..];
        let compressed = out[0] & 0x40 != 0;
        let message = if compressed { inflater.inflate(payload, data.len()) } else { Ok(payload) };
        assert!(message == Ok(data), "{encoding:?} gave back something else");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Runs `target` on its seeds, whole and with bytes changed, cut out and doubled.
    fn run_on_seeds(name: &str, rounds: usize, target: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
        let seeds: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(!seeds.is_empty());
        let mut random = 0x5eed_u64;
        let mut below = |bound: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % bound
        };
        for round in 0..rounds {
            let mut data = seeds[round % seeds.len()].clone();
            target(&data);
            for _ in 0..=below(4) {
                let at = below(data.len() + 1);
                match below(4) {
                    0 if at < data.len() => data[at] = below(256) as u8,
                    1 if at < data.len() => data[at] ^= 1 << below(8),
                    2 => drop(data.drain(at..(at + below(8)).min(data.len()))),
                    _ => data.extend_from_within(at..),
                }
            }
            target(&data);
        }
    }

    #[test]
    fn damaged_handshakes_break_nothing() {
        run_on_seeds("upgrade", 20_000, upgrade);
    }

    #[test]
    fn damaged_frames_break_nothing() {
        run_on_seeds("frame", 20_000, frame);
    }

    #[test]
    fn no_sequence_of_operations_breaks_a_hub() {
        run_on_seeds("hub", 1_000, hub);
    }

    #[test]
    fn damaged_compressed_messages_break_nothing() {
        run_on_seeds("deflate", 20_000, deflate);
    }
}
