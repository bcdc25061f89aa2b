//! The exit codes of `cloudcore`, as docs/operations.md lists them (numbers of sysexits.h).

/// A task ended though nobody asked it to.
pub const FAULT: u8 = 1;
/// The API server cannot be reached or refuses what cloudcore needs (`EX_UNAVAILABLE`).
pub const API_SERVER: u8 = 69;
/// The API server is of another cluster, with an authority that only a start loads (`EX_TEMPFAIL`).
pub const OTHER_CLUSTER: u8 = 75;
/// A port cannot be taken (`EX_OSERR`).
pub const OS_ERROR: u8 = 71;
/// The config file is wrong (`EX_CONFIG`).
pub const BAD_CONFIG: u8 = 78;
