//! Asks cloudcore to let this machine in: one POST over the pinned TLS.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use edgecore::link::dial::{self, DialError, Stream};
use edgecore::link::post::{PostError, post};
use edgecore::link::proxy::Way;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError};

use crate::pin;

/// TCP and TLS: three SYNs and three round trips of a bad mobile link.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// From the request to the answer: cloudcore asks the API server twice meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What is asked.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinRequest<'a> {
    /// Its text form.
    pub token: &'a str,
    /// Name of the node.
    pub node_name: &'a str,
    /// PEM, subject `O=system:nodes, CN=system:node:<name>`.
    pub csr: &'a str,
}

/// What is given.
#[derive(Debug, Deserialize)]
pub struct Joined {
    /// PEM.
    pub certificate: String,
    /// PEM.
    pub ca: String,
}

#[derive(Deserialize)]
struct Refused {
    #[serde(default)]
    reason: String,
    error: String,
}

/// Why cloudcore did not let this machine in.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection.
    #[error(transparent)]
    Dial(DialError),
    /// The address answers, but too slowly or not at all.
    #[error("{address} does not answer within {} s: check the address, the route and firewalls", after.as_secs())]
    Silent {
        /// HOST:PORT.
        address: String,
        /// How long was waited.
        after: Duration,
    },
    /// It is some other server.
    #[error(
        "the token is not for the cloudcore at {address}: its authority is another one; take a \
         token of that cluster, or the address of the cloudcore that the token is for"
    )]
    OtherAuthority {
        /// HOST:PORT.
        address: String,
    },
    /// The connection broke.
    #[error("the connection to {address} broke while asking to join")]
    Broken {
        /// HOST:PORT.
        address: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The answer is not one of cloudcore.
    #[error(
        "the answer of {address} is not understood ({status}): is it a cloudcore of this version?"
    )]
    Answer {
        /// HOST:PORT.
        address: String,
        /// HTTP.
        status: StatusCode,
    },
    /// Cloudcore said no.
    #[error("cloudcore refused: {error} ({reason})")]
    Refused {
        /// For programs.
        reason: String,
        /// For people, with the remedy.
        error: String,
    },
}

impl AskError {
    /// Whether asking again later may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Dial(_) | Self::Silent { .. } | Self::Broken { .. } => true,
            Self::OtherAuthority { .. } | Self::Answer { .. } => false,
            Self::Refused { reason, .. } => reason == "NotReady",
        }
    }
}

/// A connection to the right cloudcore.
#[derive(Debug)]
pub struct Connection {
    address: String,
    stream: Stream,
}

/// Connects, and so checks that the token is for the cloudcore there.
pub async fn connect(way: &Way, tls: Arc<ClientConfig>) -> Result<Connection, AskError> {
    let address = way.address.clone();
    match timeout(CONNECT_MAX, dial::connect(way, tls)).await {
        Ok(Ok(stream)) => Ok(Connection { address, stream }),
        Ok(Err(DialError::Tls { source, address, .. })) if is_other_authority(&source) => {
            Err(AskError::OtherAuthority { address })
        }
        Ok(Err(error)) => Err(AskError::Dial(error)),
        Err(_elapsed) => Err(AskError::Silent { address, after: CONNECT_MAX }),
    }
}

fn is_other_authority(error: &io::Error) -> bool {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>());

    tls == Some(&pin::OTHER_AUTHORITY)
}

impl Connection {
    /// Asks to join.
    pub async fn join(self, request: &JoinRequest<'_>) -> Result<Joined, AskError> {
        let Self { address, stream } = self;
        let body = serde_json::to_vec(request).expect("strings are always JSON").into();
        match post(stream, "/v1/join", "application/json", body, ANSWER_MAX).await {
            Ok((status, body)) => {
                read(status, &body).unwrap_or(Err(AskError::Answer { address, status }))
            }
            Err(PostError::Silent(after)) => Err(AskError::Silent { address, after }),
            Err(PostError::Broken(source)) => Err(AskError::Broken { address, source }),
            Err(PostError::Answer(status)) => Err(AskError::Answer { address, status }),
        }
    }
}

/// Whether it is an answer to a request to join, good or bad: for [`crate::inputs`].
pub(crate) fn is_answer(status: StatusCode, body: &[u8]) -> bool {
    read(status, body).is_some()
}

fn read(status: StatusCode, body: &[u8]) -> Option<Result<Joined, AskError>> {
    if status == StatusCode::OK {
        return serde_json::from_slice(body).ok().map(Ok);
    }
    let Refused { reason, error } = serde_json::from_slice(body).ok()?;

    Some(Err(AskError::Refused { reason, error }))
}
