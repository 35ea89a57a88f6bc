//! The engine: starts the shards, hands them work and collects what they tell.
//!
//! Rule: every method may be called from any thread and returns at once, except `start` and `stop`.

use std::os::fd::RawFd;

use tidegate_hub::{ConnId, Event};

use crate::{EngineOptions, Order, StartError};

pub struct Engine {
    _private: (),
}

#[allow(unused_variables)]
impl Engine {
    /// Binds the port and starts the shards; clients are served from here on.
    pub fn start(options: EngineOptions) -> Result<Engine, StartError> {
        unimplemented!()
    }

    /// The port bound, also when 0 was asked for.
    pub fn port(&self) -> u16 {
        unimplemented!()
    }

    /// An eventfd, readable when events wait or `pressed` may have turned false. It belongs to the engine: never close it.
    pub fn event_fd(&self) -> RawFd {
        unimplemented!()
    }

    /// Moves up to `limit` events to `events`, oldest first; when none are left the eventfd is reset.
    pub fn drain_events(&self, limit: usize, events: &mut Vec<Event>) {
        unimplemented!()
    }

    /// Hands orders to the shards, in order for each connection and each room. Returns `pressed()`.
    pub fn submit(&self, orders: Vec<Order>) -> bool {
        unimplemented!()
    }

    pub fn pressed(&self) -> bool {
        unimplemented!()
    }

    pub fn uuid(&self, conn: ConnId) -> String {
        unimplemented!()
    }

    /// The keyed hash by which `Command::Admit` names a user.
    pub fn user_hash(&self, user: &str) -> u64 {
        unimplemented!()
    }

    /// Counters summed over the shards, by the names of the fields of `Stats`, and `refused.REASON`, `shards`, `shard_lag_us_max`,
    /// `http_relays_now`, `events_queued_now`.
    pub fn stats(&self) -> Vec<(String, u64)> {
        unimplemented!()
    }

    /// New TLS handshakes use this certificate; an error names what is wrong with it, and the old one stays.
    pub fn set_tls(&self, certificate_pem: &[u8], key_pem: &[u8]) -> Result<(), String> {
        unimplemented!()
    }

    /// Refuses upgrades, delivers what is owed, closes everybody with 1001 spread over the time.
    pub fn begin_drain(&self, within_ms: u64) {
        unimplemented!()
    }

    pub fn is_drained(&self) -> bool {
        unimplemented!()
    }

    /// Ends all shards at once and joins their threads; later calls do nothing, and `submit` drops what it is given.
    pub fn stop(&self) {
        unimplemented!()
    }
}
