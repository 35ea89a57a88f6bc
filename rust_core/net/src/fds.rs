//! Descriptors: who owns one, how many a thread may have, and the table of its own that each shard gets.
//!
//! Why tables of their own: RLIMIT_NOFILE counts per table, so shards together hold more sockets than the limit of one process,
//! and no lock of the kernel is shared between them. Rule: a descriptor that outlives its thread's table must not be owned by it,
//! so what shards share with the engine (eventfds) is owned by the engine and lent as [`Wake`].

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

/// Turns the -1 of a system call into the error it stands for.
pub fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a length.
pub fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Takes ownership of what a system call just returned.
pub fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the caller passes the result of a call that creates a descriptor; nobody else knows the number yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    own(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// An eventfd lent to a thread: valid there as long as the engine, which joins its threads first, owns it.
#[derive(Clone, Copy, Debug)]
pub struct Wake(RawFd);

impl Wake {
    pub fn of(owner: &OwnedFd) -> Self {
        Self(owner.as_raw_fd())
    }

    pub fn fd(self) -> RawFd {
        self.0
    }

    /// Makes it readable. It cannot fail but by a counter of 2^64 - 1, and then it is readable anyway.
    pub fn signal(self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the pointer and length describe `one`, which lives past the call.
        unsafe { libc::write(self.0, one.as_ptr().cast(), one.len()) };
    }

    /// Makes it unreadable until the next `signal`.
    pub fn reset(self) {
        let mut count = [0u8; 8];
        // SAFETY: the pointer and length describe `count`, which lives past the call.
        unsafe { libc::read(self.0, count.as_mut_ptr().cast(), count.len()) };
    }
}

/// Gives the calling thread a descriptor table of its own that holds nothing but 0, 1, 2 and `kept`.
///
/// Closing comes first because a descriptor inherited by accident would keep somebody else's socket alive.
pub fn own_table(kept: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = FIRST_AFTER_STDIO;
    for fd in kept.into_iter().chain([u32::MAX]) {
        // the last piece ends at the largest number there is, the others just before a kept one
        let last = if fd == u32::MAX { fd } else { fd.saturating_sub(1) };
        if first <= last {
            close_range(first, last)?;
        }
        first = first.max(fd.saturating_add(1));
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_UNSHARE;
    // SAFETY: no memory is passed. The first call makes the table this thread's own, so that no other thread's descriptor is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many descriptors a table may hold. The soft limit is raised to the hard one first, as Go's runtime does: the hard one is what
/// the operator allows, the soft one only protects programs that use select(2).
pub fn descriptors_max() -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to `limit`, which lives past the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        // SAFETY: the pointer is to `raised`, which lives past the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
            limit = raised;
        }
    }
    Ok(usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// 0, 1 and 2 stay: a panic message must reach stderr.
const FIRST_AFTER_STDIO: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(fd: RawFd) -> bool {
        // SAFETY: no memory is passed.
        unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn a_table_of_its_own_holds_only_what_was_kept() {
        let (kept, other) = (eventfd().unwrap(), eventfd().unwrap());
        let (kept_fd, other_fd) = (kept.as_raw_fd(), other.as_raw_fd());
        let seen = std::thread::spawn(move || {
            own_table(&[kept_fd]).unwrap();
            (is_open(2), is_open(kept_fd), is_open(other_fd))
        });
        assert_eq!(seen.join().unwrap(), (true, true, false));
        assert!(is_open(other_fd), "the thread's closing must not reach the process's table");
    }

    #[test]
    fn kept_descriptors_may_come_in_any_order_and_twice() {
        let fds: Vec<OwnedFd> = (0..6).map(|_| eventfd().unwrap()).collect();
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let seen = std::thread::spawn(move || {
            own_table(&[raw[4], raw[1], raw[4], raw[2]]).unwrap();
            raw.iter().map(|fd| is_open(*fd)).collect::<Vec<_>>()
        });
        assert_eq!(seen.join().unwrap(), [false, true, true, false, true, false]);
    }

    #[test]
    fn a_signal_sent_in_one_table_is_seen_in_the_other() {
        let owner = eventfd().unwrap();
        let wake = Wake::of(&owner);
        std::thread::spawn(move || {
            own_table(&[wake.fd()]).unwrap();
            wake.signal();
        })
        .join()
        .unwrap();
        let mut count = [0u8; 8];
        // SAFETY: the pointer and length describe `count`.
        let read = unsafe { libc::read(wake.fd(), count.as_mut_ptr().cast(), count.len()) };
        assert_eq!((read, u64::from_ne_bytes(count)), (8, 1));
    }
}
