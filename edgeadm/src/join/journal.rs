//! How far a join came that failed: a token that lets one machine in is used up by then, and the same command
//! has to be able to go on.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::steps::write;

/// Its name, beside the configuration.
pub const FILE: &str = "join.json";

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    /// Who joins.
    pub node: String,
    /// Where.
    pub cloudcore: String,
    /// By which token; its id is no secret.
    pub token_id: String,
}

/// What an earlier join left. One that cannot be read is as none: the machine asks anew.
pub(super) fn read(dir: &Path) -> Option<Journal> {
    serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
}

/// Keeps it until the join is done.
pub(super) fn keep(dir: &Path, journal: &Journal) -> io::Result<()> {
    write(&dir.join(FILE), &serde_json::to_string(journal)?)
}

/// The join is done.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _gone => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_until_the_join_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal {
            node: "edge-1".to_owned(),
            cloudcore: "c:1".to_owned(),
            token_id: "0123abcd".to_owned(),
        };
        assert_eq!(read(dir.path()), None);
        keep(dir.path(), &journal).unwrap();
        assert_eq!(read(dir.path()), Some(journal));
        forget(dir.path()).unwrap();
        forget(dir.path()).unwrap();
        assert_eq!(read(dir.path()), None);
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(read(dir.path()), None);
    }
}
