//! Decides in bytes: the pure half of the engine.
//!
//! A [`Hub`] is one shard's connections, rooms and deadlines. Bytes, commands and the time go in through its `handle_*`
//! verbs; bytes, events, effects and the next deadline come out through `drive_writes` and `poll_*`. It opens no socket, reads no clock,
//! starts no thread and contains no `unsafe`, so every behaviour is reproduced by replaying what went in.
//!
//! The one rule of its use: after any `handle_*` call, drain `poll_effect` and `poll_event`, call `drive_writes` until it
//! says that nothing is left, then sleep until `poll_timeout`.
//!
//! **Invariant:** this crate depends on nothing that has a socket, a clock or a thread (`make lint` checks `cargo tree`).
#![forbid(unsafe_code)]

mod bucket;
mod chunked;
mod closing;
pub mod command;
mod connection;
mod delivery;
mod drain;
pub mod event;
mod fanout;
pub mod group;
mod handshake;
pub mod hub;
pub mod id;
mod invariants;
pub mod limits;
mod members;
mod membership;
pub mod notice;
mod outbox;
mod pool;
mod receive;
mod rhythm;
mod rooms;
pub mod settings;
mod short;
mod slab;
pub mod stats;
mod timers;
pub mod ws;

pub use command::{Command, Payload};
pub use event::{Effect, Event, Fate, Refusal};
pub use group::{Group, GroupBuilder};
pub use hub::{Hub, Sent, Wire};
pub use id::{ConnId, Keys};
pub use notice::{Notice, Notices};
pub use settings::Settings;
pub use stats::Stats;

/// Milliseconds since the engine started, from a clock that never goes back.
pub type Millis = u64;
