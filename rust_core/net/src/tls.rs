//! TLS over sockets that do not wait: rustls keeps the state, this file moves its bytes.
//!
//! Rule: ciphertext that the socket does not take is bounded; when the bound is reached the session takes no more plain text, and
//! the outbox above keeps it. Errors of a certificate or key say which of the two, and never quote them.

use std::{
    fmt,
    io::{self, IoSlice, Read, Write},
    os::fd::RawFd,
    sync::Arc,
};

use rustls::{
    ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};

use crate::socket::{self, Moved};

/// What a server needs to show: made once, shared by all sessions that begin while it is the current one.
pub fn config(certificate_pem: &[u8], key_pem: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let chain = CertificateDer::pem_slice_iter(certificate_pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| broken("certificate", "CERTIFICATE", &error))?;
    if chain.is_empty() {
        return Err(broken("certificate", "CERTIFICATE", &pem::Error::NoItemsFound));
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| broken("key", "PRIVATE KEY", &error))?;
    // TLS 1.2 and 1.3 are what rustls calls safe; older ones it does not know
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut config = builder.with_no_client_auth().with_single_cert(chain, key).map_err(rejected)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // a client that comes back needs no second signature: that is most of the work in a storm of reconnects
    config.ticketer =
        ring::Ticketer::new().map_err(|error| format!("TLS: no random numbers for session tickets: {error}"))?;
    Ok(Arc::new(config))
}

pub struct Tls {
    session: ServerConnection,
}

/// What the peer's bytes came to, besides plain text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    Open,
    /// The peer said that it will send no more.
    Ended,
    /// Not TLS, or not the kind we speak. The alert that says so has been sent, as far as the socket took it.
    Failed,
}

impl Tls {
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut session = ServerConnection::new(config)?;
        session.set_buffer_limit(Some(BUFFER_BYTES_MAX));
        Ok(Self { session })
    }

    /// Takes what was read from the socket; plain text is added to `plain`. What TLS itself must answer goes to `fd`.
    pub fn receive(&mut self, fd: RawFd, mut cipher: &[u8], plain: &mut Vec<u8>) -> Received {
        let mut received = Received::Open;
        while !cipher.is_empty() && received == Received::Open {
            received = self.step(&mut cipher, plain).unwrap_or(Received::Failed);
        }
        match self.flush(fd) {
            Moved::Broken => Received::Failed,
            _ => received,
        }
    }

    /// Takes as much of `parts` as fits, like a socket: the ciphertext goes to `fd` as far as that takes it.
    pub fn write(&mut self, fd: RawFd, parts: &[&[u8]]) -> Moved {
        let mut taken = 0;
        match self.flush(fd) {
            Moved::Bytes(_) => {}
            moved => return moved,
        }
        for some in parts.chunks(PARTS_A_RECORD) {
            let mut slices = [IoSlice::new(&[]); PARTS_A_RECORD];
            for (slice, part) in slices.iter_mut().zip(some) {
                *slice = IoSlice::new(part);
            }
            let offered: usize = some.iter().map(|part| part.len()).sum();
            match self.write_slices(fd, &mut slices[..some.len()]) {
                Moved::Bytes(count) => {
                    taken += count;
                    if count < offered {
                        break;
                    }
                }
                moved => return moved,
            }
        }
        if taken == 0 { Moved::Blocked } else { Moved::Bytes(taken) }
    }

    /// Ciphertext waits for the socket.
    pub fn is_blocked(&self) -> bool {
        self.session.wants_write()
    }

    /// Writes the ciphertext that waits: `Blocked` when some is left.
    pub fn flush(&mut self, fd: RawFd) -> Moved {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Cipher(fd)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Moved::Blocked,
                Err(_) => return Moved::Broken,
            }
        }
        Moved::Bytes(0)
    }

    /// Says that we send no more: without it the peer cannot tell the end from a cut (RFC 8446 section 6.1).
    pub fn end(&mut self, fd: RawFd) {
        self.session.send_close_notify();
        self.flush(fd);
    }

    fn step(&mut self, cipher: &mut &[u8], plain: &mut Vec<u8>) -> Option<Received> {
        let taken = self.session.read_tls(cipher).ok()?;
        let state = self.session.process_new_packets().ok()?;
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        self.session.reader().read_exact(&mut plain[start..]).ok()?;
        // after its close_notify nothing a peer sends is taken
        let ended = state.peer_has_closed() || taken == 0;
        Some(if ended { Received::Ended } else { Received::Open })
    }

    /// Until all is taken, or the socket is full and so is the session's buffer.
    fn write_slices(&mut self, fd: RawFd, mut slices: &mut [IoSlice<'_>]) -> Moved {
        let mut taken = 0;
        loop {
            let Ok(count) = self.session.writer().write_vectored(slices) else {
                return Moved::Broken;
            };
            taken += count;
            IoSlice::advance_slices(&mut slices, count);
            match self.flush(fd) {
                Moved::Broken => return Moved::Broken,
                Moved::Blocked => return Moved::Bytes(taken),
                _ if slices.is_empty() || count == 0 => return Moved::Bytes(taken),
                _ => {}
            }
        }
    }
}

/// The socket, as rustls wants to see it.
struct Cipher(RawFd);

impl Write for Cipher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.moved(&[bytes])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut parts: [&[u8]; PARTS_A_RECORD] = [&[]; PARTS_A_RECORD];
        let count = slices.len().min(PARTS_A_RECORD);
        for (part, slice) in parts.iter_mut().zip(slices) {
            *part = slice;
        }
        self.moved(&parts[..count])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Cipher {
    fn moved(&mut self, parts: &[&[u8]]) -> io::Result<usize> {
        match socket::write(self.0, parts) {
            Moved::Bytes(count) => Ok(count),
            Moved::Blocked => Err(io::ErrorKind::WouldBlock.into()),
            Moved::End | Moved::Broken => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn broken(what: &str, section: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => {
            format!("TLS {what}: no {section} section found; the file must be PEM and hold -----BEGIN {section}-----")
        }
        pem::Error::MissingSectionEnd { .. } => {
            format!("TLS {what}: the PEM ends before its -----END line; is the file complete?")
        }
        pem::Error::IllegalSectionStart { .. } => {
            format!("TLS {what}: a -----BEGIN line of the PEM is malformed")
        }
        pem::Error::Base64Decode(_) => {
            format!("TLS {what}: what stands between BEGIN and END is not base64")
        }
        _ => format!("TLS {what}: the PEM cannot be read"),
    }
}

fn rejected(error: rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "TLS key: it does not belong to the certificate; give the pair that was made together".into()
        }
        rustls::Error::InvalidCertificate(why) => {
            format!("TLS certificate: it cannot be used: {why:?}")
        }
        other => {
            format!("TLS key: it cannot be used (RSA, ECDSA P-256/P-384 and Ed25519 can): {other}")
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Four records: enough to fill a usual socket buffer in one call, little enough for a million sessions that stall.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Frames that are encrypted together, so that small ones share a record.
const PARTS_A_RECORD: usize = 64;

#[cfg(test)]
mod tests {
    use std::{
        os::{fd::AsRawFd, unix::net::UnixStream},
        thread,
    };

    use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

    use super::*;

    struct Pair {
        certificate: Vec<u8>,
        key: Vec<u8>,
    }

    fn pair() -> Pair {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        Pair { certificate: made.cert.pem().into_bytes(), key: made.signing_key.serialize_pem().into_bytes() }
    }

    fn error_of(certificate: &[u8], key: &[u8]) -> String {
        config(certificate, key).map(drop).expect_err("a configuration that cannot work was taken")
    }

    /// A client that trusts the certificate and offers these protocols, on its own thread.
    fn client(
        pair: &Pair,
        alpn: &[&[u8]],
        talk: impl FnOnce(&mut Stream<ClientConnection, UnixStream>) + Send + 'static,
    ) -> UnixStream {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pair.certificate).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut session = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        thread::spawn(move || talk(&mut Stream::new(&mut session, &mut far)));
        near
    }

    /// Reads until `enough` says so, or the session is over.
    fn receive_until(tls: &mut Tls, socket: &mut UnixStream, enough: impl Fn(&[u8]) -> bool) -> (Vec<u8>, Received) {
        let (mut plain, mut cipher) = (Vec::new(), [0; 4096]);
        loop {
            let count = socket.read(&mut cipher).unwrap();
            let received = tls.receive(socket.as_raw_fd(), &cipher[..count], &mut plain);
            if count == 0 || received != Received::Open || enough(&plain) {
                return (plain, received);
            }
        }
    }

    #[test]
    fn bytes_go_both_ways_and_the_end_is_told() {
        let pair = pair();
        let (said, heard) = std::sync::mpsc::channel();
        let mut socket = client(&pair, &[b"http/1.1"], move |stream| {
            stream.write_all(b"ping").unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
            said.send(answer).unwrap();
        });
        let mut tls = Tls::new(config(&pair.certificate, &pair.key).unwrap()).unwrap();
        let (plain, _) = receive_until(&mut tls, &mut socket, |plain| plain.len() == 4);
        assert_eq!(plain, b"ping");
        assert_eq!(tls.write(socket.as_raw_fd(), &[b"po", b"", b"ng"]), Moved::Bytes(4));
        assert_eq!(&heard.recv().unwrap(), b"pong");
        assert_eq!(receive_until(&mut tls, &mut socket, |_| false).1, Received::Ended);
    }

    #[test]
    fn a_client_that_stops_reading_costs_a_bounded_buffer_and_gets_all_in_the_end() {
        let pair = pair();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (said, heard) = std::sync::mpsc::channel();
        let mut socket = client(&pair, &[], move |stream| {
            stream.write_all(b"x").unwrap();
            wait.recv().unwrap();
            let mut all = vec![0; 2 << 20];
            stream.read_exact(&mut all).unwrap();
            said.send(all).unwrap();
        });
        let mut tls = Tls::new(config(&pair.certificate, &pair.key).unwrap()).unwrap();
        receive_until(&mut tls, &mut socket, |plain| plain.len() == 1);
        let all: Vec<u8> = (0..2 << 20).map(|at: u32| (at % 251) as u8).collect();
        let Moved::Bytes(mut taken) = tls.write(socket.as_raw_fd(), &[&all]) else { panic!("nothing was taken") };
        assert!(taken < 1 << 20 && tls.is_blocked(), "{taken} bytes were taken from a stalled socket");
        assert_eq!(tls.write(socket.as_raw_fd(), &[&all[taken..]]), Moved::Blocked);
        go.send(()).unwrap();
        while taken < all.len() {
            match tls.write(socket.as_raw_fd(), &[&all[taken..]]) {
                Moved::Bytes(count) => taken += count,
                _ => thread::yield_now(),
            }
        }
        while tls.flush(socket.as_raw_fd()) == Moved::Blocked {
            thread::yield_now();
        }
        assert!(heard.recv().unwrap() == all);
    }

    #[test]
    fn what_is_not_tls_fails_and_what_speaks_only_http2_too() {
        let pair = pair();
        let config = config(&pair.certificate, &pair.key).unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let plain_http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        let received = Tls::new(config.clone()).unwrap().receive(near.as_raw_fd(), plain_http, &mut Vec::new());
        assert_eq!(received, Received::Failed);
        let mut socket = client(&pair, &[b"h2"], |stream| assert!(stream.write_all(b"x").is_err()));
        assert_eq!(receive_until(&mut Tls::new(config).unwrap(), &mut socket, |_| false).1, Received::Failed);
    }

    #[test]
    fn a_bad_certificate_or_key_is_named_and_never_quoted() {
        let (one, other) = (pair(), pair());
        assert!(error_of(b"", &one.key).starts_with("TLS certificate: no CERTIFICATE"));
        assert!(error_of(&one.key, &one.key).starts_with("TLS certificate: no CERTIFICATE"));
        assert!(error_of(&one.certificate, b"nothing").starts_with("TLS key: no PRIVATE KEY"));
        assert!(error_of(&one.certificate, &other.key).contains("does not belong to the certificate"));
        let cut = &one.key[..one.key.len() / 2];
        let error = error_of(&one.certificate, cut);
        assert!(error.starts_with("TLS key: the PEM ends before"), "{error}");
        let spoiled = String::from_utf8(one.key.clone()).unwrap().replace("M", "*");
        let error = error_of(&one.certificate, spoiled.as_bytes());
        assert!(error.starts_with("TLS key") && !error.contains('*'), "{error}");
    }
}
