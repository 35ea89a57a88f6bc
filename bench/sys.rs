//! The system calls that the limit program and the load generator both make, each as one safe function.
//!
//! Rule: nothing here knows WebSocket. A thread that calls `keep_only` has a descriptor table of its own from then on, which is
//! how both programs hold more sockets than RLIMIT_NOFILE allows one table: the limit counts per table, not per process.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::RawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{c_int, c_void};

/// Readiness of a TCP connection, told once per change. Writability is asked for from the start: a second `epoll_ctl` for each
/// connection that falls behind would cost more than the spurious bit.
pub const CONNECTION_EVENTS: c_int = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;

/// Told again on each wait until drained: listeners, mailboxes.
pub const LEVEL_EVENTS: c_int = libc::EPOLLIN;

/// Events taken by one wait: enough that a full batch amortises the call, small enough to stay in the L1 cache (12 bytes each).
const EVENTS_PER_WAIT: usize = 1024;

pub fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Nanoseconds of CLOCK_MONOTONIC, the clock that Python calls `time.monotonic_ns`: stamps travel between the programs.
pub fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec that lives through the call
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Ends the process with SIGALRM after `seconds`, and with its parent: no load survives a driver that crashed.
pub fn stop_by_itself(seconds: u32) {
    // SAFETY: both calls take plain numbers and touch no memory of ours
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(seconds);
    }
}

/// Gives the calling thread a descriptor table of its own that holds only 0 to 2 and `fd`. Anything else inherited would keep
/// another thread's sockets alive after their close.
pub fn keep_only(fd: RawFd) -> io::Result<()> {
    close_range(fd + 1, c_int::MAX, libc::CLOSE_RANGE_UNSHARE as c_int)?;
    if fd > 3 {
        close_range(3, fd - 1, 0)?;
    }
    Ok(())
}

fn close_range(first: c_int, last: c_int, flags: c_int) -> io::Result<()> {
    // SAFETY: takes plain numbers; the descriptors closed are not used by this thread afterwards (see `keep_only`)
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    check(result as c_int).map(drop)
}

pub fn tcp_socket() -> io::Result<RawFd> {
    // SAFETY: takes plain numbers
    let fd =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    Ok(fd)
}

pub fn set_option(fd: RawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` lives through the call and `size` is its size
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) }).map(drop)
}

pub fn bind(fd: RawFd, address: SocketAddrV4) -> io::Result<()> {
    let raw = socket_address(address);
    // SAFETY: `raw` lives through the call and its size is given
    check(unsafe { libc::bind(fd, (&raw const raw).cast(), size_of_val(&raw) as libc::socklen_t) }).map(drop)
}

pub fn socket_address(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

/// Reads into `buffer`; `Ok(None)` when there is nothing yet, `Ok(Some(0))` at the peer's end of stream.
pub fn receive(fd: RawFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: the pointer and length are those of a live, writable slice
    let count = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast::<c_void>(), buffer.len(), 0) };
    transferred(count)
}

/// Sends what the kernel takes of `bytes`; `Ok(None)` when it takes nothing now. Never raises SIGPIPE.
pub fn send(fd: RawFd, bytes: &[u8]) -> io::Result<Option<usize>> {
    // SAFETY: the pointer and length are those of a live slice
    let count = unsafe { libc::send(fd, bytes.as_ptr().cast::<c_void>(), bytes.len(), libc::MSG_NOSIGNAL) };
    transferred(count)
}

fn transferred(count: isize) -> io::Result<Option<usize>> {
    if count >= 0 {
        return Ok(Some(count as usize));
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
}

pub fn close(fd: RawFd) {
    // SAFETY: takes a plain number; each caller forgets the descriptor with this call
    unsafe { libc::close(fd) };
}

pub struct Epoll {
    fd: RawFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes a plain number
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_PER_WAIT] })
    }

    pub fn add(&self, fd: RawFd, interest: c_int) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest as u32, u64: fd as u64 };
        // SAFETY: `event` lives through the call
        check(unsafe { libc::epoll_ctl(self.fd, libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Waits at most `timeout_ms` (-1 = until something happens) and says how many events `event` can be asked for.
    pub fn wait(&mut self, timeout_ms: c_int) -> io::Result<usize> {
        // SAFETY: pointer and length are those of a live, writable vector
        let count =
            unsafe { libc::epoll_wait(self.fd, self.events.as_mut_ptr(), self.events.len() as c_int, timeout_ms) };
        match check(count) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            other => other.map(|count| count as usize),
        }
    }

    pub fn event(&self, index: usize) -> (RawFd, c_int) {
        let event = self.events[index];
        (event.u64 as RawFd, event.events as c_int)
    }
}

/// Orders for a thread that sleeps in `Epoll::wait`. Unbounded on purpose: its one sender waits for each answer.
pub struct Mailbox<T> {
    orders: Mutex<Vec<T>>,
    pub wake: RawFd,
}

impl<T> Mailbox<T> {
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes plain numbers
        let wake = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        Ok(Self { orders: Mutex::new(Vec::new()), wake })
    }

    pub fn put(&self, order: T) {
        self.orders().push(order);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight live bytes, which is what an eventfd takes
        unsafe { libc::write(self.wake, one.as_ptr().cast::<c_void>(), one.len()) };
    }

    pub fn take(&self) -> Vec<T> {
        let mut count = [0u8; 8];
        // SAFETY: eight live, writable bytes, which is what an eventfd gives
        unsafe { libc::read(self.wake, count.as_mut_ptr().cast::<c_void>(), count.len()) };
        std::mem::take(&mut *self.orders())
    }

    fn orders(&self) -> MutexGuard<'_, Vec<T>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
