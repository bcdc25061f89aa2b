//! Pods: one task each, which observes, asks podcore for a plan and carries it out.

pub mod credentials;
