//! Reads what backends send: frames of the NATS client protocol, and the room that a plain event is for.
//!
//! An [`Intake`] takes the bytes of one connection as they come and keeps the messages of the subscriptions it was told to watch;
//! everything else goes back to the client library, which stays the one that speaks. A [`Rule`] says what a profile would decide
//! about an event, for the events where that is plain. Bytes in, values out: no socket, clock, thread or `unsafe`.
//!
//! **Invariant:** whatever is not understood in full is not guessed: it goes back to the library, or to the profile.
#![forbid(unsafe_code)]

mod frame;
mod intake;
mod json;
mod messages;
mod rule;

pub use intake::{Intake, State};
pub use messages::{Message, Messages};
pub use rule::{ForRoom, Plain, Rule, Target};
