//! Who has connected to a port and proved nothing yet: only so many at once, and those who take most make
//! room.
//!
//! Anybody may connect. Were further connections to wait, a few hundred idle ones would keep every node out;
//! here a node finds room as long as it comes from somewhere else than most of the crowd.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Connections at once to a port for nodes or callers: 10,000 nodes that come back find room in turns, and 20 KB
/// each stay below 10 MB.
pub const CROWD_MAX: usize = 512;

/// Bits of an IPv6 address that say whose it is: sites get a /64 or more.
const SITE_V6: u128 = u128::MAX << 64;

/// Where connections come from: an IPv4 address, or the network of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(IpAddr);

impl Source {
    /// That of a peer.
    pub fn of(peer: IpAddr) -> Self {
        Self(match peer.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & SITE_V6)),
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The crowd before a port, or before several that share one; cheap to clone.
#[derive(Clone, Debug)]
pub struct Crowd {
    members: Arc<Mutex<Members>>,
    len_max: usize,
}

impl Default for Crowd {
    /// A crowd of [`CROWD_MAX`].
    fn default() -> Self {
        Self::of(CROWD_MAX)
    }
}

impl Crowd {
    /// A crowd of so many at most.
    pub fn of(len_max: usize) -> Self {
        Self { members: Arc::default(), len_max }
    }

    /// Takes a connection in. If that is one too many, the oldest one loses its place among those of the
    /// source that has most.
    pub fn enter(&self, source: Source) -> Place {
        let left = CancellationToken::new();
        let mut members = self.lock();
        let number = members.add(source, left.clone());
        if members.by_number.len() > self.len_max
            && let Some(last) = members.remove_oldest_of_most()
        {
            last.cancel();
        }
        drop(members);

        Place { crowd: self.clone(), number, left }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        // Whole after every statement but for counts, which only decide who goes.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the crowd, given back when dropped.
#[derive(Debug)]
pub struct Place {
    crowd: Crowd,
    number: u64,
    left: CancellationToken,
}

impl Place {
    /// Resolves when somebody else got the place; never once it was given back.
    pub fn lost(&self) -> impl Future<Output = ()> + use<> {
        self.left.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.crowd.lock().remove(self.number));
    }
}

#[derive(Debug, Default)]
struct Members {
    /// By age, as numbers only rise.
    by_number: BTreeMap<u64, (Source, CancellationToken)>,
    counts: BTreeMap<Source, usize>,
    next: u64,
}

impl Members {
    fn add(&mut self, source: Source, left: CancellationToken) -> u64 {
        let number = self.next;
        self.next += 1;
        self.by_number.insert(number, (source, left));
        *self.counts.entry(source).or_default() += 1;

        number
    }

    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let (source, left) = self.by_number.remove(&number)?;
        if let Some(count) = self.counts.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }

        Some(left)
    }

    fn remove_oldest_of_most(&mut self) -> Option<CancellationToken> {
        let most = self.counts.values().max()?;
        let mut members = self.by_number.iter();
        let (&oldest, _) =
            members.find(|(_, (source, _))| self.counts.get(source) == Some(most))?;

        self.remove(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::of(address.parse().unwrap())
    }

    fn has_lost(place: &Place) -> bool {
        place.left.is_cancelled()
    }

    #[test]
    fn a_source_is_an_address_or_the_network_of_a_site() {
        for (address, other, are_one) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("::ffff:192.0.2.1", "192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:0:0:2", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            assert_eq!(source(address) == source(other), are_one, "{address} {other}");
        }
    }

    #[test]
    fn a_flood_from_one_place_keeps_nobody_else_out() {
        let crowd = Crowd::default();
        let nodes: Vec<_> = (0..100).map(|n| crowd.enter(source(&format!("10.0.0.{n}")))).collect();
        let flood: Vec<_> = (0..10_000).map(|_| crowd.enter(source("192.0.2.1"))).collect();
        let late = crowd.enter(source("10.0.1.1"));

        assert!(!nodes.iter().chain([&late]).any(has_lost));
        let kept: Vec<_> = flood.iter().map(|place| !has_lost(place)).collect();
        let (first, last) = kept.split_at(kept.len() - (CROWD_MAX - nodes.len() - 1));
        assert!(!first.contains(&true) && !last.contains(&false), "the oldest make room");
    }

    #[test]
    fn a_flood_from_everywhere_makes_the_oldest_go() {
        let crowd = Crowd::default();
        let places: Vec<_> = (0x0A00_0000_u32..)
            .take(CROWD_MAX + 1)
            .map(|address| crowd.enter(Source(IpAddr::V4(address.into()))))
            .collect();

        assert!(has_lost(&places[0]));
        assert!(!places[1..].iter().any(has_lost));
    }

    #[test]
    fn places_are_given_back() {
        let crowd = Crowd::default();
        let kept = crowd.enter(source("192.0.2.1"));
        for _ in 0..3 * CROWD_MAX {
            drop(crowd.enter(source("192.0.2.1")));
        }

        assert!(!has_lost(&kept));
        drop(kept);
        let members = crowd.lock();
        assert!(members.by_number.is_empty() && members.counts.is_empty());
    }
}
