//! The exit codes of `edgeadm`, as docs/operations.md lists them (numbers of sysexits.h).

/// What was asked for is not so: a check failed, a step of a reset did, there is no such pod.
pub const FAILED: u8 = 1;
/// Something that is needed does not answer (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;
/// The operating system refused something (`EX_OSERR`).
pub const OS_ERROR: u8 = 71;
/// A file cannot be written (`EX_IOERR`).
pub const NOT_WRITTEN: u8 = 74;
/// Not root, or refused by cloudcore or the API server (`EX_NOPERM`).
pub const NOT_PERMITTED: u8 = 77;
/// The arguments, the token or a file are wrong (`EX_CONFIG`).
pub const BAD_CONFIG: u8 = 78;
