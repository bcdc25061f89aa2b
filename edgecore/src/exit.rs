//! The exit codes of `edgecore`, as docs/operations.md lists them (numbers of sysexits.h).

/// A task ended though nobody asked it to.
pub const FAULT: u8 = 1;
/// The container runtime is there but cannot be used (`EX_UNAVAILABLE`).
pub const RUNTIME_UNUSABLE: u8 = 69;
/// The operating system refused something (`EX_OSERR`).
pub const OS_ERROR: u8 = 71;
/// The store cannot be opened or used (`EX_IOERR`).
pub const STORE_UNUSABLE: u8 = 74;
/// Started by a user who may not (`EX_NOPERM`).
pub const NOT_PERMITTED: u8 = 77;
/// The config file or the identity is wrong (`EX_CONFIG`); the unit file does not restart on it.
pub const BAD_CONFIG: u8 = 78;
