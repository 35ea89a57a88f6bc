//! How many shards, and what each may hold: arithmetic over the limit of descriptors.
//!
//! Rule: a shard never runs out of descriptors, because what it may hold of each kind adds up to less than its table.

use tidegate_hub::ConnId;

use crate::StartError;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Connections a shard.
    pub slots: usize,
    /// HTTP relays a shard; each takes two descriptors.
    pub relays: usize,
    /// Sockets that see their last bytes off.
    pub lingers: usize,
}

impl Capacity {
    pub fn of(descriptors: usize) -> Result<Self, StartError> {
        if descriptors < DESCRIPTORS_MIN {
            return Err(StartError::Option(format!(
                "the limit of open files is {descriptors}, too few to serve: raise it to at least {DESCRIPTORS_MIN} (ulimit -n)"
            )));
        }
        let relays = RELAYS_MAX.min(descriptors / 16);
        let lingers = LINGERS_MAX.min(descriptors / 32);
        let slots = descriptors - OWN - 2 * relays - lingers;
        Ok(Self { slots: slots.min(ConnId::SLOTS_MAX), relays, lingers })
    }

    /// As many shards as cores, and more when so many connections need more descriptors than that gives.
    pub fn shards(&self, cores: usize, connections_max: u64) -> Result<usize, StartError> {
        let planned = (self.slots as f64 * PLANNED) as u64;
        let needed = connections_max.div_ceil(planned.max(1));
        if needed > SHARDS_MAX as u64 {
            return Err(StartError::Option(format!(
                "connections_max {connections_max} needs {needed} shards of {planned} connections, at most {SHARDS_MAX} are possible: \
                 raise the limit of open files (ulimit -n)"
            )));
        }
        Ok(cores.max(needed as usize).clamp(1, SHARDS_MAX))
    }
}

/// Below this, what a shard keeps for itself would be a large part of all.
const DESCRIPTORS_MIN: usize = 64;
/// Standard streams, epoll, listener, two eventfds, and one being accepted; rounded up.
const OWN: usize = 16;
/// HTTP requests at a time: far more than health checks and scrapes need, and at 64 KiB a busy direction 128 MiB at worst.
const RELAYS_MAX: usize = 1024;
const LINGERS_MAX: usize = 256;
/// SO_REUSEPORT spreads connections by a hash, not evenly: with 17,000 a shard the standard deviation is 130, so one shard in
/// many is some hundreds above the mean. A twentieth is six deviations: no shard is full before all together are.
const PLANNED: f64 = 0.95;
/// Shard numbers have 12 bits, of which the last few stand for what is no connection (see `token`).
pub const SHARDS_MAX: usize = ConnId::SHARDS_MAX - 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_shard_may_hold_fits_into_its_table() {
        for descriptors in [64, 65, 256, 1024, 20_000, 1 << 20, 1 << 30] {
            let capacity = Capacity::of(descriptors).unwrap();
            assert!(capacity.slots + 2 * capacity.relays + capacity.lingers + OWN <= descriptors);
            assert!(capacity.slots > descriptors.min(ConnId::SLOTS_MAX) / 2, "most of it is for connections");
        }
    }

    #[test]
    fn a_million_connections_take_sixty_tables_of_twenty_thousand() {
        let capacity = Capacity::of(20_000).unwrap();
        assert_eq!(capacity.shards(2, 1_000_000).unwrap(), 60);
        assert_eq!(capacity.shards(2, 10_000).unwrap(), 2, "one a core where the limit allows");
    }

    #[test]
    fn what_cannot_be_served_is_an_error_with_its_cure() {
        let few = Capacity::of(63).unwrap_err().to_string();
        assert!(few.contains("63") && few.contains("ulimit"), "{few}");
        let many = Capacity::of(1024).unwrap().shards(2, 1 << 40).unwrap_err().to_string();
        assert!(many.contains("connections_max") && many.contains("ulimit"), "{many}");
    }
}
