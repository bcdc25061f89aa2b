//! What `NO_PROXY` exempts. Entries are as curl and Go programs take them: `*`, names (a name stands for what
//! is below it too; with a leading dot only for that), addresses and networks, each maybe with a port.

use std::net::IpAddr;

use crate::config::CloudAddress;

/// Entries that are looked at.
const ENTRIES_MAX: usize = 256;

/// Whether no proxy is to be asked for `to`.
pub(super) fn is_exempt(to: &CloudAddress, list: &str) -> bool {
    let host = to.host.trim_end_matches('.').to_ascii_lowercase();
    let ip: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
        return true;
    }
    let entries = list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());

    entries.take(ENTRIES_MAX).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        match ip {
            _ if entry == "*" => true,
            Some(ip) => is_of_addresses(ip, to.port, &entry),
            None => is_of_names(&host, to.port, &entry),
        }
    })
}

fn is_of_names(host: &str, port: u16, entry: &str) -> bool {
    let (name, is_port) = match entry.rsplit_once(':') {
        Some((name, of_entry)) => (name, of_entry.parse::<u16>() == Ok(port)),
        None => (entry, true),
    };
    let name = name.strip_prefix('*').unwrap_or(name);
    let below = name.strip_prefix('.');
    let is_below = |name: &str| {
        host.strip_suffix(name).is_some_and(|before| before.ends_with('.') && before.len() > 1)
    };

    is_port
        && match below {
            Some(name) => !name.is_empty() && is_below(name),
            None => !name.is_empty() && (host == name || is_below(name)),
        }
}

fn is_of_addresses(ip: IpAddr, port: u16, entry: &str) -> bool {
    if let Some((network, length)) = entry.split_once('/') {
        let (network, length) = (network.parse::<IpAddr>(), length.parse::<u32>());
        return matches!((network, length), (Ok(network), Ok(length)) if is_within(ip, network, length));
    }
    if let Ok(address) = entry.trim_matches(['[', ']']).parse::<IpAddr>() {
        return address == ip;
    }
    let with_port: Option<std::net::SocketAddr> = entry.parse().ok();

    with_port.is_some_and(|entry| entry.ip() == ip && entry.port() == port)
}

fn is_within(ip: IpAddr, network: IpAddr, length: u32) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) if length <= u32::BITS => {
            let differ = ip.to_bits() ^ network.to_bits();
            differ.checked_shr(u32::BITS - length).unwrap_or(0) == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) if length <= u128::BITS => {
            let differ = ip.to_bits() ^ network.to_bits();
            differ.checked_shr(u128::BITS - length).unwrap_or(0) == 0
        }
        (IpAddr::V4(_) | IpAddr::V6(_), _) => false,
    }
}
