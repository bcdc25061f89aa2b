//! What cloudcore writes about pods: the status that their node reports, and their removal.
//!
//! The node is the truth for pod status (invariant 9): what it reported last is kept and asserted
//! again when somebody else changed it.

mod patch;
mod status;

pub use self::status::{PodPath, Statuses, remove, write};
