//! What the process asks of the allocators: Python's messages live in glibc's heap, whose top is trimmed at 128 KiB by default, and the
//! engine's tables in mimalloc's, which likes huge pages.
//!
//! Rule: only what a batch of events needs is kept, and what nobody wrote to is not resident. Without it, every batch of large messages hands
//! its pages back and faults them in again, and each shard's 64 KiB slices become 2 MiB: 430 bytes a connection at 40,000 (measured).

/// The settings are the process's, so the last engine to start decides: they are all alike.
pub fn prepare() {
    keep_batches();
    forgo_huge_pages();
}

#[cfg(target_env = "gnu")]
fn keep_batches() {
    // SAFETY: mallopt takes numbers, and these are within what mallopt(3) allows.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TOP_PAD, STEP);
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_batches() {}

/// Where the system gives huge pages to everybody (`transparent_hugepage/enabled` is `always`); mimalloc is built not to ask for any.
/// A kernel without them refuses, and then there is nothing to forgo.
fn forgo_huge_pages() {
    // SAFETY: prctl takes numbers; those of no meaning must be 0.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Twice a batch of events and the answers to it.
#[cfg(target_env = "gnu")]
const KEPT: i32 = 4 << 20;
/// A batch's worth at a time instead of a message's.
#[cfg(target_env = "gnu")]
const STEP: i32 = 1 << 20;
