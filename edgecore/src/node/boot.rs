//! Whether the machine has started since the agent last ran: the store keeps the id of its boot.

use store::Store;

/// The store's setting that holds the id.
pub const SETTING: &str = "node.boot-id";

/// What has happened to the machine since the agent last ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boot {
    /// The agent never ran here.
    First,
    /// Nothing.
    Same,
    /// It has started again.
    Another,
}

impl Boot {
    /// Compares the id with the value of [`SETTING`].
    pub fn of(id: &str, stored: Option<&[u8]>) -> Self {
        match stored {
            None => Self::First,
            Some(stored) if stored == id.as_bytes() => Self::Same,
            Some(_) => Self::Another,
        }
    }

    /// Whether nothing can have run before the agent did.
    pub fn is_new(self) -> bool {
        self != Self::Same
    }

    /// Keeps the id for the next comparison.
    pub fn keep(self, id: &str, store: &Store) {
        if self.is_new() {
            // If that fails the start of the machine is told once more.
            store.put_setting(SETTING, id.as_bytes().to_vec(), Box::new(drop));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_known_by_its_id() {
        for (stored, boot) in [
            (None, Boot::First),
            (Some("a"), Boot::Same),
            (Some("b"), Boot::Another),
            (Some(""), Boot::Another),
        ] {
            assert_eq!(Boot::of("a", stored.map(str::as_bytes)), boot);
        }
    }
}
