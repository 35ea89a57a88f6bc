//! epoll(7), edge-triggered: each socket is registered once and never again.
//!
//! Rule: an edge is told once, so whoever is told must go on until the socket would block, or remember that there is more.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use crate::fds::{check, own};

pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

/// What became true of a registered descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    pub token: u64,
    pub readable: bool,
    pub writable: bool,
    /// The peer sends no more, or the connection broke: read on until that shows.
    pub ended: bool,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = own(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_A_WAIT] })
    }

    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, BOTH_WAYS)
    }

    /// For a descriptor that is only read from: an eventfd would tell each reading of it as "writable again".
    pub fn add_source(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, libc::EPOLLIN | libc::EPOLLET)
    }

    /// Gives a registered descriptor another token; what is ready is told again.
    pub fn rename(&self, fd: RawFd, token: u64) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, BOTH_WAYS)
    }

    /// Waits up to `timeout_ms` (-1 = for ever) and fills `ready`. An interrupted wait counts as one that told nothing.
    pub fn wait(&mut self, timeout_ms: i32, ready: &mut Vec<Ready>) -> io::Result<()> {
        let capacity = self.events.len() as libc::c_int;
        // SAFETY: the kernel writes at most `capacity` events to the vector, which has that many.
        let told = unsafe { libc::epoll_wait(self.fd.as_raw_fd(), self.events.as_mut_ptr(), capacity, timeout_ms) };
        let told = match check(told) {
            Ok(told) => told as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        ready.extend(self.events[..told].iter().map(|event| Ready::from_bits(event.u64, event.events as i32)));
        Ok(())
    }

    fn control(&self, operation: i32, fd: RawFd, token: u64, bits: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: bits as u32, u64: token };
        // SAFETY: the pointer is to `event`, which lives past the call; the kernel copies it.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &mut event) }).map(drop)
    }
}

impl Ready {
    fn from_bits(token: u64, bits: i32) -> Self {
        let broken = bits & (libc::EPOLLHUP | libc::EPOLLERR) != 0;
        Self {
            token,
            readable: bits & libc::EPOLLIN != 0 || broken,
            writable: bits & libc::EPOLLOUT != 0 || broken,
            ended: bits & libc::EPOLLRDHUP != 0 || broken,
        }
    }
}

const BOTH_WAYS: i32 = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
/// As many as nginx takes (512): enough to share one system call, few enough that the first is not old when the last is served.
const EVENTS_A_WAIT: usize = 512;

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    #[test]
    fn an_edge_is_told_once_and_again_after_new_bytes() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(near.as_raw_fd(), 7).unwrap();
        let mut wait = || {
            let mut ready = Vec::new();
            epoll.wait(0, &mut ready).unwrap();
            ready.iter().map(|ready| (ready.token, ready.readable, ready.writable)).collect::<Vec<_>>()
        };
        assert_eq!(wait(), [(7, false, true)]);
        assert_eq!(wait(), []);
        far.write_all(b"x").unwrap();
        assert_eq!(wait(), [(7, true, true)]);
        assert_eq!(wait(), []);
    }

    #[test]
    fn a_peer_that_left_is_told_as_ended() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(near.as_raw_fd(), 1).unwrap();
        drop(far);
        let mut ready = Vec::new();
        epoll.wait(0, &mut ready).unwrap();
        assert!(ready[0].ended && ready[0].readable);
    }
}
