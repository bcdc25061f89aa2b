//! Why the runtime did not do what was asked.

use std::error::Error as _;
use std::io;

use tonic::{Code, Status};

/// A call to the runtime that failed.
#[derive(Debug, thiserror::Error)]
pub enum CriError {
    /// Nothing listens at the socket.
    #[error(
        "cannot {attempted}: no container runtime answers at {socket} ({kind}); start containerd or \
         CRI-O, or name the socket of the one that runs (runtimeEndpoint; edgeadm: --runtime-endpoint)"
    )]
    NoRuntime {
        /// What was attempted, on what.
        attempted: String,
        /// Path of the socket.
        socket: String,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// The runtime is there and does not speak CRI v1.
    #[error(
        "the runtime at {socket} does not serve CRI v1; it takes containerd 1.6 or newer with its cri \
         plugin enabled (see disabled_plugins in its config.toml), or CRI-O 1.26 or newer"
    )]
    NoCriV1 {
        /// Path of the socket.
        socket: String,
    },
    /// The runtime is older than what the agent knows to work.
    #[error("{name} {found} at {socket} is too old: install {name} {needed} or newer")]
    TooOld {
        /// Path of the socket.
        socket: String,
        /// Name of the runtime.
        name: String,
        /// Its version.
        found: String,
        /// The oldest that is taken.
        needed: &'static str,
    },
    /// The runtime did not answer in time, or the connection broke before it did. Whether it did
    /// what was asked is not known.
    #[error("cannot {attempted}: no answer from the runtime ({message})")]
    NoAnswer {
        /// What was attempted, on what.
        attempted: String,
        /// What the client library said.
        message: String,
    },
    /// The runtime answered that it failed.
    #[error("cannot {attempted}: {message} ({code:?})")]
    Refused {
        /// What was attempted, on what.
        attempted: String,
        /// The gRPC code of the answer.
        code: Code,
        /// The runtime's own words.
        message: String,
    },
    /// The runtime answered without what the interface requires.
    #[error("cannot {attempted}: the runtime's answer has no {missing}")]
    Incomplete {
        /// What was attempted, on what.
        attempted: String,
        /// The field that is missing.
        missing: &'static str,
    },
}

impl CriError {
    /// Sorts what tonic reports by what the caller can do about it.
    pub(crate) fn from_status(attempted: String, socket: &str, status: &Status) -> Self {
        // A status that was made here, not received, carries the local cause.
        let Some(cause) = status.source() else {
            let (code, message) = (status.code(), status.message().to_owned());
            return Self::Refused { attempted, code, message };
        };
        match connect_failure(cause) {
            Some(kind) => Self::NoRuntime { attempted, socket: socket.to_owned(), kind },
            None => Self::NoAnswer { attempted, message: innermost(cause) },
        }
    }

    /// The gRPC code, where the runtime answered.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::NoCriV1 { .. } => Some(Code::Unimplemented),
            Self::NoRuntime { .. }
            | Self::TooOld { .. }
            | Self::NoAnswer { .. }
            | Self::Incomplete { .. } => None,
        }
    }

    /// The runtime's or the client's own words, for Events that quote them.
    pub fn message(&self) -> String {
        match self {
            Self::Refused { message, .. } | Self::NoAnswer { message, .. } => message.clone(),
            Self::NoRuntime { .. }
            | Self::NoCriV1 { .. }
            | Self::TooOld { .. }
            | Self::Incomplete { .. } => self.to_string(),
        }
    }

    /// What the runtime answered as a kubelet quotes it: as the gRPC of Go prints it.
    pub fn status(&self) -> String {
        match self {
            Self::Refused { code: Code::Cancelled, message, .. } => {
                format!("rpc error: code = Canceled desc = {message}")
            }
            Self::Refused { code, message, .. } => {
                format!("rpc error: code = {code:?} desc = {message}")
            }
            Self::NoRuntime { .. }
            | Self::NoCriV1 { .. }
            | Self::TooOld { .. }
            | Self::NoAnswer { .. }
            | Self::Incomplete { .. } => self.message(),
        }
    }

    /// Whether the runtime says that the container, sandbox or image does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound)
    }

    /// Whether the runtime does not know the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code() == Some(Code::Unimplemented)
    }

    /// Whether the runtime could not be asked at all: the same call may succeed once it is back.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::NoRuntime { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { code, .. } => *code == Code::Unavailable,
            Self::NoCriV1 { .. } | Self::TooOld { .. } | Self::Incomplete { .. } => false,
        }
    }

    /// Whether only another runtime at the socket would help.
    pub fn is_unusable(&self) -> bool {
        matches!(self, Self::NoCriV1 { .. } | Self::TooOld { .. })
    }
}

/// The cause of the whole chain, which says more than the layers above it.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }

    innermost.to_string()
}

/// What the operating system said to a connect, if that is what failed.
fn connect_failure(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            let kind = io.kind();
            let refused = matches!(
                kind,
                io::ErrorKind::NotFound
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::PermissionDenied
            );
            return refused.then_some(kind);
        }
        next = error.source();
    }

    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_quoted_with_its_code() {
        for (code, name) in [
            (Code::Unknown, "Unknown"),
            (Code::NotFound, "NotFound"),
            (Code::Cancelled, "Canceled"),
            (Code::DeadlineExceeded, "DeadlineExceeded"),
        ] {
            let (attempted, message) = ("pull".to_owned(), "m".to_owned());
            let error = CriError::Refused { attempted, code, message };
            assert_eq!(error.status(), format!("rpc error: code = {name} desc = m"));
            assert_eq!(error.message(), "m");
        }
    }
}
