//! What cloudcore writes about pods: the status that their node reports, and their removal.
//!
//! The node is the truth for pod status (invariant 9): what it reported last is kept and asserted
//! again when somebody else changed it. `queue` decides, `writer` carries out.

mod patch;
mod queue;
mod request;
mod writer;

pub(crate) use self::patch::{says, status_patch};
pub use self::request::PodPath;
pub use self::writer::{Writer, find};
