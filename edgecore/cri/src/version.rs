//! Which runtime answers, and whether the agent can work with it.

use crate::error::CriError;

/// Oldest versions that serve CRI v1 in full, by the name the runtime gives itself.
const OLDEST: [(&str, (u32, u32), &str); 2] =
    [("containerd", (1, 6), "1.6"), ("cri-o", (1, 26), "1.26")];

/// What the runtime says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeVersion {
    /// Like `containerd` or `cri-o`; the scheme of container ids in a PodStatus.
    pub name: String,
    /// Like `1.6.20~ds1` or `v2.1.4`.
    pub version: String,
}

impl RuntimeVersion {
    /// Major and minor number, if the version starts with them.
    pub fn major_minor(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.trim_start_matches('v').split('.');
        let major = numbers.next()?.parse().ok()?;
        let minor: String = numbers.next()?.chars().take_while(char::is_ascii_digit).collect();

        Some((major, minor.parse().ok()?))
    }

    /// Refuses a runtime known to be too old. One whose version cannot be read is taken.
    pub(crate) fn check(self, socket: &str) -> Result<Self, CriError> {
        let known = OLDEST.iter().find(|(name, ..)| self.name.eq_ignore_ascii_case(name));
        match (known, self.major_minor()) {
            (Some((_, oldest, needed)), Some(found)) if found < *oldest => Err(CriError::TooOld {
                socket: socket.to_owned(),
                name: self.name,
                found: self.version,
                needed,
            }),
            _ => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, version: &str, taken: bool) {
        let given = RuntimeVersion { name: name.into(), version: version.into() };
        let outcome = given.check("/run/x.sock");
        assert_eq!(outcome.is_ok(), taken, "{name} {version}: {outcome:?}");
    }

    #[test]
    fn old_runtimes_are_refused_and_unreadable_versions_taken() {
        check("containerd", "1.6.20~ds1", true);
        check("containerd", "v2.1.4", true);
        check("containerd", "1.5.18", false);
        check("containerd", "v1.10.0", true);
        check("cri-o", "1.25.3", false);
        check("cri-o", "1.34.1", true);
        check("containerd", "unknown", true);
        check("another", "0.1", true);
    }

    #[test]
    fn the_message_says_what_to_install() {
        let given = RuntimeVersion { name: "containerd".into(), version: "1.4.13".into() };
        assert_eq!(
            given.check("/run/x.sock").unwrap_err().to_string(),
            "containerd 1.4.13 at /run/x.sock is too old: install containerd 1.6 or newer"
        );
    }
}
