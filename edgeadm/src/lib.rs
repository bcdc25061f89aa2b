//! The commands of `edgeadm`.
//!
//! - [`cli`]: arguments; [`ui`]: the only module that prints.
//! - [`join`]: makes this machine a node: facts, a plan, idempotent steps.
//! - [`token`]: join tokens, on the cluster's side.

pub mod cli;
pub mod join;
pub mod token;
pub mod ui;
