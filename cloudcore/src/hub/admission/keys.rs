//! Which keys are a node's: the one that it has joined or last connected with, and behind that the one that it was given a
//! certificate for and has not connected with yet. The answer with the certificate may be lost, or power
//! before the node has stored it, so until then either will do.

use k8s_openapi::api::coordination::v1::Lease;

use crate::pki::KeyHash;

/// The annotation of the record with the hashes.
const ANNOTATION: &str = "holdfast.dev/joined-key";

const SEPARATOR: char = ',';

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys(Vec<String>);

impl Keys {
    /// Those of a record.
    pub(super) fn of(lease: &Lease) -> Self {
        let all = lease.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        let hashes =
            all.iter().flat_map(|all| all.split(SEPARATOR)).filter(|hash| !hash.is_empty());

        Self(hashes.map(str::to_owned).collect())
    }

    /// The node has joined with this key.
    pub(super) fn joined(key: &KeyHash) -> Self {
        Self(vec![key.as_str().to_owned()])
    }

    /// The node, which has connected with `current`, gets a certificate for `next`.
    pub(super) fn given(current: &KeyHash, next: &KeyHash) -> Self {
        Self([current, next].map(|key| key.as_str().to_owned()).into())
    }

    /// The node has connected with this key. One that it was given later may yet be stored.
    pub(super) fn connected(&mut self, key: &KeyHash) {
        let is_first_of_two =
            self.0.len() == 2 && self.0.first().is_some_and(|first| first == key.as_str());
        if !is_first_of_two {
            *self = Self::joined(key);
        }
    }

    /// Whether they are known, and this is none of them.
    pub(super) fn are_of_another(&self, key: &KeyHash) -> bool {
        !self.is_empty() && !self.0.iter().any(|hash| hash == key.as_str())
    }

    /// Whether none was ever recorded.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps them in the record.
    pub(super) fn write(&self, lease: &mut Lease) {
        let text = self.0.join(&SEPARATOR.to_string());
        lease.metadata.annotations.get_or_insert_default().insert(ANNOTATION.to_owned(), text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(of: &str) -> KeyHash {
        KeyHash::of(of.as_bytes())
    }

    fn kept(keys: &Keys) -> Keys {
        let mut lease = Lease::default();
        keys.write(&mut lease);

        Keys::of(&lease)
    }

    #[test]
    fn a_key_counts_from_its_certificate_on_and_until_another_has_connected() {
        let (old, new, third) = (key("old"), key("new"), key("third"));
        let are_theirs =
            |keys: &Keys| [&old, &new, &third].map(|key| !kept(keys).are_of_another(key));
        assert!(kept(&Keys::default()).is_empty());
        let mut keys = Keys::joined(&old);
        assert_eq!(are_theirs(&keys), [true, false, false]);
        keys = Keys::given(&old, &new);
        assert_eq!(are_theirs(&keys), [true, true, false]);
        // The answer was lost, and the node asks again.
        keys.connected(&old);
        assert_eq!(are_theirs(&keys), [true, true, false]);
        keys = Keys::given(&old, &third);
        assert_eq!(are_theirs(&keys), [true, false, true]);
        keys.connected(&third);
        assert_eq!(are_theirs(&keys), [false, false, true]);
        // A restored record knows an older one: the ticket has said who it is.
        keys.connected(&new);
        assert_eq!(are_theirs(&keys), [false, true, false]);
    }
}
