//! Join tokens: what `edgeadm token create` makes and `edgeadm join` shows.
//!
//! `hf1.<SHA-256 of the CA certificate, hex>.<id>.<secret>`: the hash lets the node know cloudcore
//! before cloudcore knows the node. The cluster keeps only the hash of the secret.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use kube::{Api, Client};
use proto::ids::NodeName;
use proto::object::hex;

/// Prefix of the name of a token's Secret.
pub const SECRET_PREFIX: &str = "holdfast-join-";

const VERSION: &str = "hf1";
const ID_LEN: usize = 8;
/// Base64url of 32 bytes without padding.
const SECRET_LEN: usize = 43;

/// Why a token lets nobody in.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not of the form of a token.
    #[error(
        "the token is malformed: it must be hf1.<64 hex digits>.<8 hex digits>.<43 characters>, as `edgeadm token create` prints it"
    )]
    Malformed,
    /// No such token, or its secret is wrong.
    #[error(
        "the token is unknown: it was deleted, used up, or is for another installation; make a new one: edgeadm token create"
    )]
    Unknown,
    /// Too old.
    #[error("the token expired at {0}; make a new one: edgeadm token create")]
    Expired(String),
    /// For another node.
    #[error("the token is for node {0}")]
    OtherNode(String),
    /// The API server does not answer.
    #[error("cannot read the token's secret {name}")]
    Read {
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
            Self::Malformed => "TokenMalformed",
            Self::Unknown => "TokenUnknown",
            Self::Expired(_) => "TokenExpired",
            Self::OtherNode(_) => "TokenForOtherNode",
            Self::Read { .. } => "NotReady",
        }
    }
}

/// Checks a token that a node shows.
pub async fn check(
    client: Client,
    namespace: &str,
    token: &str,
    node: &NodeName,
    now: Timestamp,
) -> Result<(), TokenError> {
    let (id, secret) = parts(token).ok_or(TokenError::Malformed)?;
    let name = format!("{SECRET_PREFIX}{id}");
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let kept = secrets
        .get_opt(&name)
        .await
        .map_err(|source| TokenError::Read { name: name.clone(), source })?
        .ok_or(TokenError::Unknown)?;
    let field = |key: &str| {
        let bytes = kept.data.as_ref().and_then(|data| data.get(key));
        bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
    };
    let hash = ring::digest::digest(&ring::digest::SHA256, &secret);
    let shown = hex(hash.as_ref());
    // Both are hashes: where they first differ tells nothing of the secret.
    if field("secretHash").as_deref() != Some(shown.as_str()) {
        return Err(TokenError::Unknown);
    }
    let expires = field("expires").ok_or(TokenError::Unknown)?;
    let until: Timestamp = expires.parse().map_err(|_| TokenError::Unknown)?;
    if now >= until {
        return Err(TokenError::Expired(expires));
    }
    match field("nodeName").filter(|name| !name.is_empty()) {
        Some(other) if other != node.as_str() => return Err(TokenError::OtherNode(other)),
        Some(_) | None => {}
    }
    if field("singleUse").as_deref() == Some("true") {
        let deleted = secrets.delete(&name, &DeleteParams::default()).await;
        deleted.map_err(|source| TokenError::Read { name, source })?;
    }

    Ok(())
}

fn parts(token: &str) -> Option<(&str, Vec<u8>)> {
    use base64::Engine as _;

    let mut parts = token.split('.');
    let (version, _ca, id, secret) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let id_is_hex = id.len() == ID_LEN && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if version != VERSION || !id_is_hex || secret.len() != SECRET_LEN || parts.next().is_some() {
        return None;
    }
    let secret = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(secret).ok()?;

    Some((id, secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_have_parts() {
        let ca = "a".repeat(64);
        let secret = "A".repeat(43);
        for (token, good) in [
            (format!("hf1.{ca}.0123abcd.{secret}"), true),
            (format!("hf2.{ca}.0123abcd.{secret}"), false),
            (format!("hf1.{ca}.0123abcd.{secret}.x"), false),
            (format!("hf1.{ca}.../../x.{secret}"), false),
            (format!("hf1.{ca}.0123abcd.short"), false),
            (String::new(), false),
        ] {
            assert_eq!(parts(&token).is_some(), good, "{token}");
        }
    }
}
