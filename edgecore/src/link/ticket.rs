//! The resume ticket, kept twice: in the store, and in a file beside it. A node whose store was lost
//! would otherwise have to join anew, by hand.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use proto::admission::Ticket;
use store::Write;

/// The store's setting with the ticket.
const SETTING: &str = "link.ticket";

/// The store's setting with the id of the join that the ticket belongs to. A node that has joined anew is a
/// new one to the cloud, and must not show the ticket of the old one.
const OWNER_SETTING: &str = "link.ticket-owner";

/// The file with the join's id and the ticket, in the folder of the store.
const FILE: &str = "link.ticket";

/// The ticket that was given to the node that joined then: of the two that are kept the one that was given
/// out last, for the store may have been set back. A ticket begins with the number of its session.
pub(super) fn held(
    settings: &BTreeMap<String, Vec<u8>>,
    folder: &Path,
    join_id: &[u8],
) -> Option<Ticket> {
    let is_owner = settings.get(OWNER_SETTING).is_none_or(|owner| owner == join_id);
    let stored = settings.get(SETTING).filter(|_| is_owner).cloned();
    let spare = || {
        let text = fs::read(folder.join(FILE)).ok()?;
        text.strip_prefix(join_id).map(<[u8]>::to_vec)
    };

    stored.max(spare()).and_then(Ticket::new)
}

/// What keeps it in the store.
pub(super) fn writes(ticket: &Ticket, join_id: &[u8]) -> Vec<Write> {
    let settings = [(SETTING, ticket.as_bytes().to_vec()), (OWNER_SETTING, join_id.to_owned())];
    let write = |(name, value): (&str, _)| Write::Setting { name: name.to_owned(), value };

    settings.map(write).into()
}

/// Keeps it in the file.
pub(super) fn keep(folder: &Path, ticket: &Ticket, join_id: &[u8]) -> io::Result<()> {
    let path = folder.join(FILE);
    let new = path.with_extension("ticket.new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&[join_id, ticket.as_bytes()].concat())?;
    file.sync_all()?;
    fs::rename(new, path)?;

    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(text: &str) -> Ticket {
        Ticket::new(text.as_bytes().to_vec()).unwrap()
    }

    fn stored(text: &str, owner: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let setting = |write| match write {
            Write::Setting { name, value } => (name, value),
            Write::Object(_) | Write::Memory { .. } | Write::ForgetPod(_) => unreachable!(),
        };

        writes(&ticket(text), owner).into_iter().map(setting).collect()
    }

    #[test]
    fn a_ticket_outlives_its_store_and_is_of_one_join() {
        let folder = tempfile::tempdir().unwrap();
        let held = |settings: &_, owner: &[u8]| held(settings, folder.path(), owner);
        assert_eq!(held(&BTreeMap::new(), b"me"), None);
        keep(folder.path(), &ticket("old"), b"me").unwrap();
        keep(folder.path(), &ticket("spare"), b"me").unwrap();

        assert_eq!(held(&stored("until-then", b"me"), b"me"), Some(ticket("until-then")));
        assert_eq!(held(&BTreeMap::new(), b"me"), Some(ticket("spare")));
        // The store was set back.
        assert_eq!(held(&stored("kept", b"me"), b"me"), Some(ticket("spare")));
        assert_eq!(held(&stored("kept", b"me"), b"another"), None);
        assert_eq!(held(&stored("kept", b"another"), b"me"), Some(ticket("spare")));
    }
}
