//! Starting a shard's thread so that no signal is ever delivered to it.
//!
//! Why: a signal of the process runs on any thread that lets it in. Python's writes a byte to the descriptor its loop watches, by
//! number, and in a shard's own descriptor table that number is some client's socket.

use std::{io, mem, ptr, thread};

pub fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    let before = block_signals()?;
    // a new thread has its maker's mask
    let thread = thread::Builder::new().name(name).spawn(work);
    restore_signals(&before);
    thread
}

fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain data; both sets are initialised by the calls before they are read, and live past them.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&mut all);
        for fault in FAULTS {
            libc::sigdelset(&mut all, fault);
        }
        match libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before) {
            0 => Ok(before),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: `before` is a set that the kernel filled in. It fails only for a first argument that does not exist.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
}

/// What a thread does to itself: blocked, they would kill without a word.
const FAULTS: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(signal: libc::c_int) -> bool {
        // SAFETY: the set is initialised by the call that fills it in.
        unsafe {
            let mut mask: libc::sigset_t = mem::zeroed();
            libc::pthread_sigmask(libc::SIG_SETMASK, ptr::null(), &mut mask);
            libc::sigismember(&mask, signal) == 1
        }
    }

    #[test]
    fn a_spawned_thread_gets_no_signal_and_its_maker_keeps_getting_them() {
        let before = blocks(libc::SIGTERM);
        let thread =
            spawn("test".into(), || assert!(blocks(libc::SIGTERM) && blocks(libc::SIGCHLD) && !blocks(libc::SIGSEGV)));
        thread.unwrap().join().unwrap();
        assert_eq!(blocks(libc::SIGTERM), before);
    }
}
