//! Moves bytes: sockets, threads and every system call of the engine.
//!
//! An [`Engine`] runs shards. A shard is one thread with a table of descriptors of its own, a listener, and a `tidegate_hub::Hub` that
//! decides what the bytes mean; the shard reads, writes and keeps time for it. Threads meet in three places only: a mailbox
//! a shard (what to do), one bounded queue of events (what happened), and the directory (which shards hold members of a room).
//!
//! **Invariant:** no thread here ever waits for another's work, nor for Python. Linux only; `unsafe` is in `fds`, `epoll` and `socket`.

pub mod engine;
pub mod options;

pub use engine::Engine;
pub use options::{EngineOptions, Exclude, Order, StartError, TlsPem};
