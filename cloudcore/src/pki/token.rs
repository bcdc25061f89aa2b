//! Join tokens: what `edgeadm token create` makes and `edgeadm join` shows.
//!
//! [`proto::token`] knows their text. The cluster keeps only the hash of the secret.

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use proto::ids::NodeName;
use proto::object::hex;
use proto::token::{Malformed, NO_SECRET, Parts};

use super::KeyHash;

/// Prefix of the name of a token's Secret.
pub const SECRET_PREFIX: &str = "holdfast-join-";

/// Keys of the Secret, as `edgeadm token create` writes them; `usedBy` is ours.
const SECRET_HASH: &str = "secretHash";
const EXPIRES: &str = "expires";
const NODE_NAME: &str = "nodeName";
const SINGLE_USE: &str = "singleUse";
const USED_BY: &str = "usedBy";

/// Why a token lets nobody in.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not of the form of a token.
    #[error(transparent)]
    Malformed(Malformed),
    /// No such token, or its secret is wrong.
    #[error(
        "the token is unknown: it was deleted or is for another installation; make a new one: edgeadm token create"
    )]
    Unknown,
    /// Too old.
    #[error("the token expired at {0}; make a new one: edgeadm token create")]
    Expired(String),
    /// For another node.
    #[error("the token is for node {0}")]
    OtherNode(String),
    /// Good once, and another machine has used it.
    #[error("the token was good once and is used up; make a new one: edgeadm token create")]
    Used,
    /// The API server does not answer, or refuses.
    #[error("cannot {verb} the token's secret {name}")]
    Store {
        /// get or update.
        verb: &'static str,
        /// The Secret.
        name: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
}

impl TokenError {
    /// The word for programs in the answer to a join.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "TokenMalformed",
            Self::Unknown => "TokenUnknown",
            Self::Expired(_) => "TokenExpired",
            Self::OtherNode(_) => "TokenForOtherNode",
            Self::Used => "TokenUsed",
            Self::Store { .. } => "NotReady",
        }
    }
}

/// A token that a machine showed and that is right.
#[derive(Debug)]
pub struct Shown {
    secret: Secret,
}

impl Shown {
    /// Whether it was made for one node, by its name.
    pub fn names_its_node(&self) -> bool {
        named(&self.secret).is_some()
    }

    /// Uses up a token that is good once: from now on it is good only for the machine with this
    /// key, which may ask again if it missed the answer.
    pub async fn spend(
        mut self,
        client: Client,
        namespace: &str,
        key: &KeyHash,
    ) -> Result<(), TokenError> {
        if field(&self.secret, SINGLE_USE).as_deref() != Some("true")
            || field(&self.secret, USED_BY).is_some()
        {
            return Ok(());
        }
        let name = self.secret.metadata.name.clone().unwrap_or_default();
        let used = ByteString(key.as_str().as_bytes().to_vec());
        self.secret.data.get_or_insert_default().insert(USED_BY.to_owned(), used);
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        match secrets.replace(&name, &PostParams::default(), &self.secret).await {
            Ok(_) => Ok(()),
            // Another machine was faster, or the token was deleted.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                Err(TokenError::Used)
            }
            Err(source) => Err(TokenError::Store { verb: "update", name, source }),
        }
    }
}

/// Checks a token that the machine with this key shows to join as `node`.
pub async fn check(
    client: Client,
    namespace: &str,
    token: &str,
    node: &NodeName,
    key: &KeyHash,
    now: Timestamp,
) -> Result<Shown, TokenError> {
    let (id, secret) = parts(token).map_err(TokenError::Malformed)?;
    let name = format!("{SECRET_PREFIX}{id}");
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let kept = secrets
        .get_opt(&name)
        .await
        .map_err(|source| TokenError::Store { verb: "get", name, source })?
        .ok_or(TokenError::Unknown)?;
    let hash = ring::digest::digest(&ring::digest::SHA256, &secret);
    let shown = hex(hash.as_ref());
    // Both are hashes: where they first differ tells nothing of the secret.
    if field(&kept, SECRET_HASH).as_deref() != Some(shown.as_str()) {
        return Err(TokenError::Unknown);
    }
    let expires = field(&kept, EXPIRES).ok_or(TokenError::Unknown)?;
    let until: Timestamp = expires.parse().map_err(|_| TokenError::Unknown)?;
    if now >= until {
        return Err(TokenError::Expired(expires));
    }
    if let Some(other) = named(&kept).filter(|name| name != node.as_str()) {
        return Err(TokenError::OtherNode(other));
    }
    if field(&kept, USED_BY).is_some_and(|by| by != key.as_str()) {
        return Err(TokenError::Used);
    }

    Ok(Shown { secret: kept })
}

fn field(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;

    String::from_utf8(bytes.0.clone()).ok()
}

fn named(secret: &Secret) -> Option<String> {
    field(secret, NODE_NAME).filter(|name| !name.is_empty())
}

/// Whether a token has all its parts.
pub(crate) fn is_whole(token: &str) -> bool {
    parts(token).is_ok()
}

/// Id and secret.
fn parts(token: &str) -> Result<(&str, Vec<u8>), Malformed> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let parts = Parts::of(token)?;
    let secret = URL_SAFE_NO_PAD.decode(parts.secret).map_err(|_| NO_SECRET)?;

    Ok((parts.id, secret))
}
