//! Who may speak for others: the addresses and networks from which a PROXY header is believed.
//!
//! Rule: an entry that cannot be read stops the start; a list that silently misses one would lock the load balancer out.

use std::net::IpAddr;

#[derive(Clone, Default, Debug)]
pub struct Networks(Vec<(u128, u128)>);

impl Networks {
    /// Each entry is an address or a network in CIDR notation.
    pub fn parse(entries: &[String]) -> Result<Self, String> {
        entries
            .iter()
            .map(|entry| network(entry.trim()).ok_or_else(|| wrong(entry)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn contain(&self, address: IpAddr) -> bool {
        let bits = bits_of(address);
        self.0.iter().any(|(network, mask)| bits & mask == *network)
    }
}

/// IPv4 is compared as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2), as a dual-stack socket reports it.
fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn network(entry: &str) -> Option<(u128, u128)> {
    let (address, prefix) = match entry.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u32>().ok()?)),
        None => (entry, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(width);
    if prefix > width {
        return None;
    }
    // an IPv4 mask keeps all bits of the mapped form's prefix, so IPv6 addresses never match it
    let mask = u128::MAX.checked_shl(width - prefix).unwrap_or(0);
    Some((bits_of(address) & mask, mask))
}

fn wrong(entry: &str) -> String {
    format!("proxy_trusted: {entry:?} is neither an address nor a network; write 10.0.0.7, 10.0.0.0/8 or fd00::/8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(entry: &str, address: &str) -> bool {
        Networks::parse(&[entry.into()]).unwrap().contain(address.parse().unwrap())
    }

    #[test]
    fn a_network_contains_its_addresses_and_no_other() {
        assert!(contains("10.0.0.0/8", "10.255.1.2") && !contains("10.0.0.0/8", "11.0.0.1"));
        assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.4"));
        assert!(contains("10.1.2.3/31", "10.1.2.2"), "host bits of an entry do not matter");
        assert!(contains("fd00::/8", "fdff::1") && !contains("fd00::/8", "fe80::1"));
    }

    #[test]
    fn every_address_of_one_family_is_not_every_address() {
        assert!(contains("0.0.0.0/0", "203.0.113.9") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1") && contains("::/0", "203.0.113.9"));
    }

    #[test]
    fn ipv4_is_recognised_in_its_mapped_form() {
        assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1"));
    }

    #[test]
    fn a_bad_entry_is_named() {
        for bad in ["10.0.0.0/33", "localhost", "", "10.0.0.0/-1", "::/129", "10.0.0.0/8/8"] {
            let error = Networks::parse(&["10.0.0.1".into(), bad.into()]).unwrap_err();
            assert!(error.contains(&format!("{bad:?}")) && error.contains("proxy_trusted"), "{error}");
        }
    }

    #[test]
    fn an_empty_list_trusts_nobody() {
        assert!(!Networks::default().contain(IpAddr::from([127, 0, 0, 1])));
    }
}
