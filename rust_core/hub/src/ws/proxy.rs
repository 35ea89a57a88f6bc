use std::net::IpAddr;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed {
    Incomplete,
    /// The header took `len` bytes. No peer: a health check of the proxy, or one it does not know.
    Done { len: usize, peer: Option<IpAddr> },
    Bad,
}

pub fn parse(buf: &[u8]) -> Parsed {
    let _ = buf;
    Parsed::Bad
}
