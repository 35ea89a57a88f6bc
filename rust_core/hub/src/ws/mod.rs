//! The WebSocket protocol, RFC 6455 and RFC 7692, as functions on bytes.
//!
//! Rule: nothing here knows a connection, a clock or a socket, and nothing here holds memory for a connection that is idle.
mod answer;
pub mod close;
pub mod deflate;
pub mod frame;
mod list;
pub mod message;
pub mod proxy;
pub mod upgrade;
mod utf8;
