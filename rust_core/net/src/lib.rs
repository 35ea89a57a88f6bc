//! Moves bytes: sockets, threads and every system call of the engine.
//!
//! An [`Engine`] runs shards. A shard is one thread with a table of descriptors of its own, a listener, and a `tidegate_hub::Hub` that
//! decides what the bytes mean; the shard reads, writes and keeps time for it. Threads meet in three places only: a mailbox
//! a shard (what to do), one bounded queue of events (what happened), and the directory (which shards hold members of a room).
//!
//! **Invariant:** no thread here ever waits for another's work, nor for Python. Linux only; `unsafe` is in `fds`, `epoll`, `socket`,
//! `listener` and `threads`, and nowhere else in the project.

mod answers;
mod capacity;
mod directory;
pub mod engine;
mod epoll;
mod events;
mod fds;
mod heap;
mod limit;
mod linger;
mod listener;
mod mailbox;
mod networks;
mod numbered;
pub mod options;
mod relay;
mod shard;
mod shared;
mod slots;
mod socket;
mod stats;
mod submit;
mod threads;
mod tls;
mod token;

pub use engine::Engine;
pub use options::{EngineOptions, Exclude, Order, Publish, StartError, TlsPem};
