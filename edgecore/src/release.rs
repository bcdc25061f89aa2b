//! What the agent's program says of its release to who has nothing but its file: `edgeadm upgrade` must know
//! what it is about to run, and starts no programs.

use std::io::BufRead as _;
use std::str::FromStr;

const BRACKET: u8 = b'[';
const BEGIN: &str = "[holdfast edgecore ";
const SCHEMA: &str = " state-schema ";
/// Longest text that is looked at.
const BYTES_MAX: usize = 96;

/// Stands in the file of the program as it is here, once. The agent says it in its log, so that no linker
/// takes it out.
pub const TEXT: &str =
    concat!("[holdfast edgecore ", env!("CARGO_PKG_VERSION"), " state-schema 1]");

/// A release of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// As in `edgecore --version`.
    pub version: String,
    /// The schema that it makes of the node's state. An earlier release does not open a later one.
    pub state_schema: i64,
}

/// That is no such text.
#[derive(Debug, PartialEq, Eq)]
pub struct NoRelease;

impl FromStr for Release {
    type Err = NoRelease;

    fn from_str(text: &str) -> Result<Self, NoRelease> {
        let inner = text.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(']'));
        let (version, schema) =
            inner.and_then(|inner| inner.split_once(SCHEMA)).ok_or(NoRelease)?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
        if version.is_empty() || !version.chars().all(is_plain) {
            return Err(NoRelease);
        }
        let state_schema = schema.parse().map_err(|_| NoRelease)?;

        Ok(Self { version: version.to_owned(), state_schema })
    }
}

/// The release whose program this is; `None` if it is another program.
pub fn of(program: &[u8]) -> Option<Release> {
    let mut rest = program;
    // Such a text may also be part of what looks for it.
    while rest.skip_until(BRACKET).is_ok_and(|skipped| skipped > 0) {
        let begin = program.len() - rest.len() - 1;
        let text = &program[begin..program.len().min(begin + BYTES_MAX)];
        if let Some(release) = beginning(text) {
            return Some(release);
        }
    }

    None
}

/// The release whose text `bytes` begin with.
fn beginning(bytes: &[u8]) -> Option<Release> {
    if !bytes.starts_with(BEGIN.as_bytes()) {
        return None;
    }
    let end = bytes.iter().position(|byte| *byte == b']')?;

    str::from_utf8(&bytes[..=end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_found_in_the_bytes_of_its_program() {
        let own: Release = TEXT.parse().unwrap();
        assert_eq!(own.version, env!("CARGO_PKG_VERSION"));
        assert_eq!(own.state_schema, store::STATE_SCHEMA);

        let program =
            [b"\x7fELF[holdfast edgecore \0".as_slice(), TEXT.as_bytes(), b"\0more"].concat();
        assert_eq!(of(&program), Some(own));
        let later = b"[holdfast edgecore 1.2.0-rc.1+x state-schema 12]";
        assert_eq!(
            of(later),
            Some(Release { version: "1.2.0-rc.1+x".to_owned(), state_schema: 12 })
        );
        for other in [
            "",
            "[holdfast edgecore ",
            "[holdfast edgecore 1 state-schema ]",
            "[holdfast edgecore 1 2 state-schema 1]",
            "[holdfast edgecore 1 state-schema 1",
        ] {
            assert_eq!(of(other.as_bytes()), None, "{other}");
        }
    }
}
