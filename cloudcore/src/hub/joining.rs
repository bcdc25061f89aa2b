//! A machine joins: token, certificate request and name are all right before anything is changed.

use http::StatusCode;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use proto::ids::{NameError, NodeName};
use serde::{Deserialize, Serialize};

use super::{Shared, admission};
use crate::clock;
use crate::nodes::PROVIDER_PREFIX;
use crate::pki::token::{self, TokenError};
use crate::pki::{NodeRequest, PkiError};

/// The body of a request to join.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct JoinRequest {
    token: String,
    node_name: String,
    csr: String,
}

/// Why a machine was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    /// Too many ask.
    #[error("too many machines ask to join at once; ask again in a few seconds")]
    Busy,
    /// The body cannot be had.
    #[error("{0}")]
    Body(String),
    /// It is not what edgeadm sends.
    #[error("the body is not understood")]
    Json(#[source] serde_json::Error),
    /// No name of a node.
    #[error(transparent)]
    Name(NameError),
    /// No certificate for such a request.
    #[error(transparent)]
    Request(PkiError),
    /// The token lets nobody in.
    #[error(transparent)]
    Token(TokenError),
    /// Another machine has the name.
    #[error(
        "{what}; if this machine shall be {node} from now on, make a token for that name: \
         edgeadm token create --node-name {node}"
    )]
    NameTaken {
        /// The name.
        node: NodeName,
        /// By whom.
        what: String,
    },
    /// The cluster has a node of that name, which is no edge node.
    #[error("node {node} exists and is no edge node ({provider}); join under another name")]
    NoEdgeNode {
        /// The name.
        node: NodeName,
        /// Its providerID.
        provider: String,
    },
    /// The API server does not answer, or refuses.
    #[error("cannot {verb} {what}")]
    Api {
        /// What cloudcore tried.
        verb: &'static str,
        /// With what.
        what: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

impl JoinError {
    /// The status of the answer.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Body(_) | Self::Json(_) | Self::Name(_) | Self::Request(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Token(TokenError::Store { .. }) | Self::Api { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Token(_) => StatusCode::FORBIDDEN,
            Self::NameTaken { .. } | Self::NoEdgeNode { .. } => StatusCode::CONFLICT,
        }
    }

    /// The word for programs in the answer.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Body(_) | Self::Json(_) | Self::Name(_) | Self::Request(_) => "BadRequest",
            Self::Token(error) => error.reason(),
            Self::NameTaken { .. } | Self::NoEdgeNode { .. } => "NameTaken",
            Self::Busy | Self::Api { .. } => "NotReady",
        }
    }
}

/// What a machine that was let in gets, PEM.
#[derive(Debug, Serialize)]
pub(super) struct Joined {
    certificate: String,
    /// All authorities to believe.
    ca: String,
}

/// Lets a machine in.
pub(super) async fn join(shared: &Shared, body: &[u8]) -> Result<Joined, JoinError> {
    let (node, request, token) = understood(body)?;
    let key = request.key_hash();
    let (client, namespace) = (shared.client.clone(), shared.namespace.as_str());
    let now = clock::timestamp();
    let shown = token::check(client.clone(), namespace, &token, &node, &key, now)
        .await
        .map_err(JoinError::Token)?;
    let record = |verb| {
        let what = format!("the session record of {node}");
        move |source| JoinError::Api { verb, what, source }
    };
    let is_named = shown.names_its_node();
    if !is_named && admission::is_of_another(shared, &node, &key).await.map_err(record("get"))? {
        let what = format!("another machine has joined as {node}");
        return Err(JoinError::NameTaken { node, what });
    }
    check_node(shared, &node, is_named).await?;
    shown.spend(client, namespace, &key).await.map_err(JoinError::Token)?;
    let authority = shared.authority.now();
    let issuer = authority.signer();
    admission::joined(shared, &node, &key, issuer).await.map_err(record("write"))?;
    let certificate = authority.sign(request, shared.node_life).map_err(JoinError::Request)?;

    Ok(Joined { certificate: certificate.pem(), ca: authority.ca_pem().to_owned() })
}

/// What is asked: a name, a request for a certificate, and the token that is to allow it.
fn understood(body: &[u8]) -> Result<(NodeName, NodeRequest, String), JoinError> {
    let asked: JoinRequest = serde_json::from_slice(body).map_err(JoinError::Json)?;
    let node = NodeName::new(asked.node_name).map_err(JoinError::Name)?;
    let request = NodeRequest::parse(&node, &asked.csr).map_err(JoinError::Request)?;

    Ok((node, request, asked.token))
}

/// Whether a body asks to join, whatever becomes of it: for [`crate::inputs`].
pub(crate) fn is_understood(body: &[u8]) -> bool {
    understood(body).is_ok_and(|(_, _, token)| token::is_whole(&token))
}

/// The name may be that of a node which is not ours.
async fn check_node(shared: &Shared, node: &NodeName, is_named: bool) -> Result<(), JoinError> {
    let nodes: Api<Node> = Api::all(shared.client.clone());
    let failed = |source| JoinError::Api { verb: "get", what: format!("node {node}"), source };
    let Some(kept) = nodes.get_opt(node.as_str()).await.map_err(failed)? else { return Ok(()) };
    let provider = kept.spec.and_then(|spec| spec.provider_id).unwrap_or_default();
    let node = node.clone();
    if provider.starts_with(PROVIDER_PREFIX) {
        Ok(())
    } else if !provider.is_empty() {
        Err(JoinError::NoEdgeNode { node, provider })
    } else if is_named {
        Ok(())
    } else {
        let what = format!("node {node} exists and did not join here");
        Err(JoinError::NameTaken { node, what })
    }
}
