//! Translates: the only crate that knows Python. No logic.
//!
//! `options.rs`, `command.rs` and `event.rs` turn one kind of Python data each into Rust's or back, `error.rs` errors into exceptions;
//! `engine.rs` is the class, `bus.rs` what bus messages come in, `bench.rs` the programs of the benchmarks. Rule: the surface is exactly
//! `python/tidegate/_core.pyi` (`make lint` compares them), and whatever
//! may take a lock or wait runs with the GIL released.

use mimalloc::MiMalloc;
use pyo3::prelude::*;

mod bench;
mod bus;
mod command;
mod engine;
mod error;
mod event;
mod options;

// Buffers of a few sizes come and go on many threads: the system's allocator would fragment and contend
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::bench::{run_limit, run_loadgen};
    #[pymodule_export]
    use super::bus::{Intake, Messages, Rule};
    #[pymodule_export]
    use super::engine::Engine;
    use super::{command, event};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        for (name, number) in event::NAMES.into_iter().chain(command::NAMES) {
            module.add(name, number)?;
        }
        Ok(())
    }
}
