//! What the node remembers: the only crate with a database.
//!
//! - [`Store`]: desired state, the memory of pods, settings and tombstones, in `state.db`.
//! - [`Outbox`]: telemetry that waits for the cloud, in order, in `outbox.db`.
//!
//! Each file has one thread that writes it. Every answer of success means that what was written
//! survives a power cut. Every row is sealed (see [`seal`]): Secrets cannot be read from the disk
//! without the key file beside it, and damage is found when a row is read.

mod database;
mod error;
mod key;
mod outbox;
mod reserve;
mod schema;
mod seal;
mod state;

pub use error::StoreError;
pub use outbox::{Appended, Message, Outbox, Taken};
pub use state::{Done, Opened, Options, Store, Write};
