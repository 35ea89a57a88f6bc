//! Clients, sockets and a clock for tests of the hub: no I/O, so a test is a list of what happens and what must follow.
//!
//! Each test binary uses its part of this.
#![allow(dead_code)]

pub mod client;
pub mod random;
pub mod world;
