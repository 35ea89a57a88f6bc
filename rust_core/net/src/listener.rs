//! The port: resolved and probed once for the engine, then listened on once a shard (SO_REUSEPORT), so the kernel spreads
//! connections by a hash of their addresses and no shard passes sockets on.
//!
//! Rule: options that every accepted socket needs are set on the listener, because Linux lets sockets inherit them: no call a client.

use std::{
    io, mem,
    net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    os::fd::{AsRawFd, OwnedFd},
};

use crate::{
    StartError,
    fds::{check, own},
    socket::set_option,
};

/// Holds the port for the engine until every shard listens on it.
pub struct Port {
    pub address: SocketAddr,
    _probe: OwnedFd,
}

impl Port {
    /// Binds without SO_REUSEPORT first: with it, the kernel would let a second gateway of the same user share the port in silence
    /// and take half of the clients. Set afterwards, it lets our own shards in while nobody else gets between.
    pub fn claim(host: &str, port: u16) -> Result<Self, StartError> {
        let address = resolve(host, port)?;
        let claim = || {
            let probe = bind(address, false)?;
            set_option(probe.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
            let bound = local_address(&probe)?;
            Ok(Self { address: SocketAddr::new(address.ip(), bound.port()), _probe: probe })
        };
        claim().map_err(|error| StartError::os(claim_failed(address, &error), error))
    }
}

/// Opens one shard's listener.
pub fn listen(address: SocketAddr, user_timeout_ms: u64) -> io::Result<OwnedFd> {
    let socket = bind(address, true)?;
    let fd = socket.as_raw_fd();
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    let timeout = i32::try_from(user_timeout_ms).unwrap_or(i32::MAX);
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, timeout)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, UNSENT_MAX)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(fd, BACKLOG) })?;
    Ok(socket)
}

/// What the kernel may hold for a client that takes nothing, where it would let that grow to megabytes: the outbox is the bound
/// that counts. Half of it is refilled at a time, more than a burst for most members.
const UNSENT_MAX: i32 = 128 << 10;

/// What one `accept` came to.
#[derive(Debug)]
pub enum Accepted {
    Socket(OwnedFd, IpAddr),
    /// Nobody waits.
    Nobody,
    /// This one left before it was accepted.
    Aborted,
    /// Out of descriptors or memory: somebody waits, and must do so a little longer.
    Exhausted,
}

pub fn accept(listener: &OwnedFd) -> Accepted {
    // SAFETY: sockaddr_storage is plain data; zeroes are a valid value.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&address) as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes at most `len` bytes to `address` and then its length to `len`; both live past the call.
    let result = unsafe { libc::accept4(listener.as_raw_fd(), (&raw mut address).cast(), &mut len, flags) };
    match own(result) {
        Ok(socket) => match address_of(&address) {
            Some(peer) => Accepted::Socket(socket, peer.ip().to_canonical()),
            None => Accepted::Aborted,
        },
        Err(error) => refused_accept(&error),
    }
}

/// accept(2): errors of the connection that was waiting are reported here too; only want of resources is ours.
fn refused_accept(error: &io::Error) -> Accepted {
    match error.raw_os_error() {
        Some(libc::EAGAIN) => Accepted::Nobody,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => Accepted::Exhausted,
        _ => Accepted::Aborted,
    }
}

fn resolve(host: &str, port: u16) -> Result<SocketAddr, StartError> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Ok(every_address(port));
    }
    let unknown =
        |error| StartError::os(format!("host {host:?} is no address of this machine; use 0.0.0.0 for all"), error);
    let mut found = (host, port).to_socket_addrs().map_err(unknown)?;
    found.next().ok_or_else(|| unknown(io::Error::from(io::ErrorKind::AddrNotAvailable)))
}

/// An IPv6 socket serves IPv4 too, unless the machine has no IPv6.
fn every_address(port: u16) -> SocketAddr {
    let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let usable = bind(SocketAddr::new(both.ip(), 0), false).is_ok();
    if usable { both } else { SocketAddr::new([0, 0, 0, 0].into(), port) }
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is passed.
    let socket = own(unsafe { libc::socket(family, kind, 0) })?;
    let fd = socket.as_raw_fd();
    // a restart must not wait for the last run's connections in TIME_WAIT
    set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if shared {
        set_option(fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    if address.is_ipv6() {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 0)?;
    }
    let (storage, len) = storage_of(address);
    // SAFETY: `storage` lives past the call and `len` is within it.
    check(unsafe { libc::bind(fd, (&raw const storage).cast(), len) })?;
    Ok(socket)
}

fn local_address(socket: &OwnedFd) -> io::Result<SocketAddr> {
    // SAFETY: sockaddr_storage is plain data; zeroes are a valid value.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `address` and then its length to `len`; both live past the call.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &mut len) })?;
    address_of(&address).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

fn storage_of(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: sockaddr_storage is plain data; zeroes are a valid value.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let place = &raw mut storage;
    match address {
        SocketAddr::V4(v4) => {
            let inner = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is large and aligned enough for every kind of address.
            unsafe { place.cast::<libc::sockaddr_in>().write(inner) };
            (storage, mem::size_of_val(&inner) as libc::socklen_t)
        }
        SocketAddr::V6(v6) => {
            let inner = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: a sockaddr_storage is large and aligned enough for every kind of address.
            unsafe { place.cast::<libc::sockaddr_in6>().write(inner) };
            (storage, mem::size_of_val(&inner) as libc::socklen_t)
        }
    }
}

fn address_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let place = &raw const *storage;
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this is what the kernel wrote, and the storage is large and aligned enough.
            let inner = unsafe { place.cast::<libc::sockaddr_in>().read() };
            let ip = u32::from_be(inner.sin_addr.s_addr).to_be_bytes();
            Some(SocketAddr::new(ip.into(), u16::from_be(inner.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let inner = unsafe { place.cast::<libc::sockaddr_in6>().read() };
            Some(SocketAddr::new(inner.sin6_addr.s6_addr.into(), u16::from_be(inner.sin6_port)))
        }
        _ => None,
    }
}

fn claim_failed(address: SocketAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("port {} is in use by another program: stop it or choose another port", address.port())
        }
        io::ErrorKind::PermissionDenied => {
            format!("port {} needs privileges (CAP_NET_BIND_SERVICE): choose one above 1023", address.port())
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{} is no address of this machine; use 0.0.0.0 for all", address.ip())
        }
        _ => format!("cannot listen on {address}"),
    }
}

/// Connections that wait to be accepted. The kernel cuts it to net.core.somaxconn, whose default is the same 4,096.
const BACKLOG: libc::c_int = 4096;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn option_of(socket: &OwnedFd, name: libc::c_int) -> i32 {
        let (mut value, mut len) = (0i32, 4 as libc::socklen_t);
        // SAFETY: pointer and length describe `value`.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, name, (&raw mut value).cast(), &mut len) };
        check(result).unwrap();
        value
    }

    fn accepted(listener: &OwnedFd) -> (OwnedFd, IpAddr) {
        loop {
            match accept(listener) {
                Accepted::Socket(socket, peer) => return (socket, peer),
                Accepted::Nobody => std::thread::yield_now(),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn accepted_sockets_inherit_what_was_set_on_the_listener() {
        let port = Port::claim("127.0.0.1", 0).unwrap();
        let listener = listen(port.address, 40_000).unwrap();
        let _client = TcpStream::connect(port.address).unwrap();
        let (socket, peer) = accepted(&listener);
        assert_eq!(peer, IpAddr::from([127, 0, 0, 1]));
        assert_ne!(option_of(&socket, libc::TCP_NODELAY), 0);
        assert_eq!(option_of(&socket, libc::TCP_USER_TIMEOUT), 40_000);
        assert_eq!(option_of(&socket, libc::TCP_NOTSENT_LOWAT), UNSENT_MAX);
    }

    #[test]
    fn a_port_in_use_is_named_with_its_cure() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = Port::claim("127.0.0.1", port).err().unwrap().to_string();
        assert!(error.contains(&format!("port {port} is in use")) && error.contains("choose another"), "{error}");
    }

    #[test]
    fn a_second_engine_is_kept_out_although_shards_share_the_port() {
        let port = Port::claim("127.0.0.1", 0).unwrap();
        let _shards = [listen(port.address, 0).unwrap(), listen(port.address, 0).unwrap()];
        assert!(Port::claim("127.0.0.1", port.address.port()).is_err());
        let number = port.address.port();
        drop(port);
        assert!(Port::claim("127.0.0.1", number).is_err(), "also once the probe is gone");
    }

    #[test]
    fn ipv4_clients_of_an_ipv6_socket_keep_their_ipv4_address() {
        let port = Port::claim("", 0).unwrap();
        let listener = listen(port.address, 0).unwrap();
        let _client = TcpStream::connect(("127.0.0.1", port.address.port())).unwrap();
        assert_eq!(accepted(&listener).1, IpAddr::from([127, 0, 0, 1]));
    }

    #[test]
    fn an_unknown_host_is_named() {
        let error = Port::claim("no such host", 0).err().unwrap().to_string();
        assert!(error.contains("no such host"), "{error}");
    }
}
