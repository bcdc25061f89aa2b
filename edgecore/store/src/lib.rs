//! What the node remembers: the only crate with a database.
//!
//! - [`Store`]: desired state, the memory of pods, settings and tombstones, in `state.db`.
//! - [`Outbox`]: telemetry that waits for the cloud, in order, in `outbox.db`.
//! - [`settle`]: what a database is that nobody has open.
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
mod settle;
mod state;

pub use error::StoreError;
pub use key::KEY;
pub use outbox::{Appended, Message, Outbox, Taken};
pub use settle::{DATABASES, settle};
pub use state::{Done, Opened, Options, STATE_SCHEMA, Store, Write};
