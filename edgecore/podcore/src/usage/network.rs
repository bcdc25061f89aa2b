//! From `/proc/PID/net/dev` to interfaces.

use super::{Interface, Traffic};

/// Interfaces that carry nothing of their own, as cadvisor leaves them out.
const IGNORED: [&str; 4] = ["lo", "veth", "docker", "nerdctl"];

/// The interfaces of a namespace.
pub fn interfaces(table: &str) -> Vec<Interface> {
    table.lines().filter_map(interface).collect()
}

fn interface(line: &str) -> Option<Interface> {
    let (name, numbers) = line.split_once(':')?;
    let name = name.trim();
    let numbers: Vec<u64> = numbers.split_whitespace().map_while(|n| n.parse().ok()).collect();
    let traffic = |at: usize| {
        let [bytes, packets, errors, dropped] = numbers.get(at..at + 4)?.try_into().ok()?;
        Some(Traffic { bytes, packets, errors, dropped })
    };
    if IGNORED.iter().any(|ignored| name.starts_with(ignored)) {
        return None;
    }

    Some(Interface { name: name.to_owned(), received: traffic(0)?, sent: traffic(8)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read() {
        let table = "Inter-|   Receive                        |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes packets\n    \
             lo:    3193      29    0    0    0     0          0         0     3193 29 0 0 0 0 0 0\n  \
             eth0: 296338798   14712    1    2    0     0          0         0  1117713   10378    \
             3    4    0     0       0          0\n";
        let traffic = |bytes, packets, errors, dropped| Traffic { bytes, packets, errors, dropped };
        let expected = Interface {
            name: "eth0".to_owned(),
            received: traffic(296_338_798, 14_712, 1, 2),
            sent: traffic(1_117_713, 10_378, 3, 4),
        };
        assert_eq!(interfaces(table), [expected]);
    }
}
