//! The frame reader: the same messages however the bytes are cut, every rule of RFC 6455 section 5, and what broke other servers.

mod chunks;
mod compressed;
mod limits;
mod reader;
mod rules;
