//! Sockets without waiting: read, write, connect and end one. Nothing here knows what the bytes mean.
//!
//! Rule: "would block" is an answer, not an error, and a broken connection is one too: the network may cause both at any time.

use std::{
    io::{self, IoSlice},
    mem,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use crate::fds::{check, check_len, own};

/// What a read or a write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moved {
    Bytes(usize),
    /// Not now: an edge of epoll will tell when.
    Blocked,
    /// The peer sends no more.
    End,
    /// Reset, timed out or otherwise gone.
    Broken,
}

pub fn read(fd: RawFd, buffer: &mut [u8]) -> Moved {
    receive(fd, buffer, 0)
}

/// Reads without taking: the same bytes come again.
pub fn peek(fd: RawFd, buffer: &mut [u8]) -> Moved {
    receive(fd, buffer, libc::MSG_PEEK)
}

fn receive(fd: RawFd, buffer: &mut [u8], flags: libc::c_int) -> Moved {
    let moved = retried(|| {
        // SAFETY: the kernel writes at most the length of `buffer` into it.
        unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), flags | libc::MSG_DONTWAIT) }
    });
    if moved == Moved::Bytes(0) { Moved::End } else { moved }
}

/// Writes as much of `parts` as the socket takes; less than all means that an edge will tell when it takes more.
pub fn write(fd: RawFd, parts: &[&[u8]]) -> Moved {
    let mut written = 0;
    for some in parts.chunks(PARTS_A_CALL) {
        let offered: usize = some.iter().map(|part| part.len()).sum();
        match write_once(fd, some) {
            Moved::Bytes(count) => {
                written += count;
                if count < offered {
                    break;
                }
            }
            Moved::Blocked if written > 0 => break,
            moved => return moved,
        }
    }
    Moved::Bytes(written)
}

fn write_once(fd: RawFd, parts: &[&[u8]]) -> Moved {
    let mut slices = [IoSlice::new(&[]); PARTS_A_CALL];
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
    }
    // SAFETY: msghdr is plain data for which all zeroes mean "nothing".
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // IoSlice is guaranteed to have the layout of iovec, and sendmsg does not write through it
    message.msg_iov = slices.as_mut_ptr().cast();
    message.msg_iovlen = parts.len().min(PARTS_A_CALL);
    retried(|| {
        // SAFETY: `message` points to as many slices as it says, and they live past the call.
        unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) }
    })
}

/// A call that does not wait is hardly ever interrupted; when it is, it has moved nothing.
fn retried(mut call: impl FnMut() -> isize) -> Moved {
    loop {
        match check_len(call()) {
            Ok(count) => return Moved::Bytes(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Moved::Blocked,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Moved::Broken,
        }
    }
}

/// Says that no more will be sent; the peer may go on.
pub fn end_writing(fd: RawFd) {
    // SAFETY: no memory is passed. A failure means that the connection is gone already.
    unsafe { libc::shutdown(fd, libc::SHUT_WR) };
}

/// Connects to an abstract UNIX socket (unix(7)). A UNIX connect does not take time: it works or it fails.
pub fn connect_abstract(name: &str) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = own(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })?;
    // SAFETY: sockaddr_un is plain data; zeroes are a valid value.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // the first byte of an abstract name is a NUL
    let place = address.sun_path.get_mut(1..=name.len()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    for (to, from) in place.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let len = mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: `address` lives past the call and `len` is within it.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len as libc::socklen_t) })?;
    Ok(socket)
}

/// Sets an option whose value is an int.
pub fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: pointer and length describe `value`, which lives past the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) }).map(drop)
}

/// Frames a call can write together. The kernel takes 1,024; copying pointers for more than this saves nothing any more.
const PARTS_A_CALL: usize = 64;

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixListener, UnixStream},
        },
    };

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        UnixStream::pair().unwrap()
    }

    #[test]
    fn reading_tells_bytes_nothing_yet_and_the_end_apart() {
        let (near, mut far) = pair();
        let mut buffer = [0; 8];
        assert_eq!(read(near.as_raw_fd(), &mut buffer), Moved::Blocked);
        far.write_all(b"abc").unwrap();
        assert_eq!(peek(near.as_raw_fd(), &mut buffer), Moved::Bytes(3));
        assert_eq!(read(near.as_raw_fd(), &mut buffer), Moved::Bytes(3));
        assert_eq!(&buffer[..3], b"abc");
        drop(far);
        assert_eq!(read(near.as_raw_fd(), &mut buffer), Moved::End);
    }

    #[test]
    fn more_parts_than_one_call_takes_arrive_in_order() {
        let (near, mut far) = pair();
        let numbers: Vec<[u8; 2]> = (0..500u16).map(u16::to_be_bytes).collect();
        let parts: Vec<&[u8]> = numbers.iter().map(|number| &number[..]).collect();
        assert_eq!(write(near.as_raw_fd(), &parts), Moved::Bytes(1000));
        let mut seen = [0; 1000];
        far.read_exact(&mut seen).unwrap();
        assert_eq!(seen.to_vec(), numbers.concat());
    }

    #[test]
    fn a_full_socket_takes_a_part_and_then_blocks() {
        let (near, _far) = pair();
        let big = vec![0; 8 << 20];
        let Moved::Bytes(count) = write(near.as_raw_fd(), &[&big]) else { panic!("nothing was written") };
        assert!(count < big.len());
        assert_eq!(write(near.as_raw_fd(), &[&big]), Moved::Blocked);
    }

    #[test]
    fn writing_to_a_peer_that_left_is_broken_and_raises_no_signal() {
        let (near, far) = pair();
        drop(far);
        assert_eq!(write(near.as_raw_fd(), &[b"x"]), Moved::Broken);
    }

    #[test]
    fn an_abstract_socket_is_reached_by_its_name() {
        let name = format!("tidegate-socket-test-{}", std::process::id());
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let near = connect_abstract(&name).unwrap();
        assert_eq!(write(near.as_raw_fd(), &[b"hi"]), Moved::Bytes(2));
        let mut seen = [0; 2];
        listener.accept().unwrap().0.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hi");
        assert!(connect_abstract(&"x".repeat(200)).is_err());
    }
}
