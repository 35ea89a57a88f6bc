//! The load generator as a program of its own; `lib.rs` is all of it, and `tidegate._core` has it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tidegate_loadgen::run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tidegate-loadgen: {message}");
            ExitCode::FAILURE
        }
    }
}
