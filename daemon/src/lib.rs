//! The frame of a long-lived process: what it says, the tasks it runs, the signals that end it.
//! Knows nothing of what the process is for.

pub mod notify;
pub mod retry;
pub mod signals;
pub mod tasks;
pub mod telemetry;
