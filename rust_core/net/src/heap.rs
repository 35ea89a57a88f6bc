//! How Python's side of the process gives memory back: its messages live in glibc's heap, whose top is trimmed at 128 KiB by default.
//!
//! Rule: only what a batch of events needs is kept. Without it, every batch of large messages hands its pages back and faults them in again.

/// The settings are the process's, so the last engine to start decides: they are all alike.
#[cfg(target_env = "gnu")]
pub fn keep_batches() {
    // SAFETY: mallopt takes numbers, and these are within what mallopt(3) allows.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TOP_PAD, STEP);
    }
}

#[cfg(not(target_env = "gnu"))]
pub fn keep_batches() {}

/// Twice a batch of events and the answers to it.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 4 << 20;
/// A batch's worth at a time instead of a message's.
#[cfg(target_env = "gnu")]
const STEP: i32 = 1 << 20;
