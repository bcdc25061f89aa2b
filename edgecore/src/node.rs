//! The node itself: its facts, its cgroups and what it reports to Kubernetes.

pub mod abilities;
pub mod cgroups;
pub mod facts;
pub mod gate;
pub mod machine;
pub mod monitor;
pub mod pressure;
pub mod shutdown;
pub mod status;
pub mod usage;
