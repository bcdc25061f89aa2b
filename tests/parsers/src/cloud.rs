//! What nodes and strangers send to cloudcore, and what it watches.

use std::path::Path;

use bytes::Bytes;
use cloudcore::config::{Config, Given};
use cloudcore::{inputs, pki};
use index::Index;
use proto::ids::{Kind, NodeName};
use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::Fed;

/// The node that the corpora speak of, and the UID of its pod.
const NODE: &str = "edge-1";
const POD: &str = "6f2c1a34-0d7e-4b7b-9f53-5f3c1d2e4a5b";

fn node() -> NodeName {
    NodeName::new(NODE).expect("it is a name")
}

/// A report about the node.
pub(crate) fn node_status(bytes: &[u8]) -> Fed {
    if let Some((status, events)) = inputs::node_status_of(&node(), bytes) {
        let address = &status["addresses"][0]["address"];
        assert_eq!(address, "127.0.0.1", "a node says where its kubelet API is");
        assert!(events.iter().all(|event| event["involvedObject"]["name"] == NODE));
    }

    Fed::tree(bytes)
}

/// A report about a pod.
pub(crate) fn pod_status(bytes: &[u8]) -> Fed {
    if let Ok(report) = serde_json::from_slice::<Value>(bytes) {
        let (patch, _) = inputs::pod_status_of(POD, &report, &json!({ "phase": "Running" }));
        let fields: Vec<_> =
            patch.as_object().into_iter().flatten().map(|(name, _)| name).collect();
        assert_eq!(fields, ["metadata", "status"]);
        assert_eq!(patch["metadata"], json!({ "uid": POD }), "nothing else of a pod is changed");
    }

    Fed::tree(bytes)
}

/// A report of static pods.
pub(crate) fn static_pods(bytes: &[u8]) -> Fed {
    for pod in inputs::mirrors_of(&node(), bytes) {
        assert_eq!(pod["spec"]["nodeName"], NODE, "a mirror of another node's");
        let name = pod["metadata"]["name"].as_str().expect("a mirror has a name");
        assert!(name.ends_with(NODE), "a mirror is called {name}");
        assert!(pod["metadata"]["finalizers"].is_null(), "a mirror that nobody can remove");
    }

    Fed::tree(bytes)
}

/// An Event of the node.
pub(crate) fn event(bytes: &[u8]) -> Fed {
    if let Some(event) = inputs::event_of(&node(), bytes, POD) {
        let subject = &event["involvedObject"];
        assert!(subject["uid"] == POD || subject["name"] == NODE, "about another's: {subject}");
        assert_eq!(event["source"]["host"], NODE, "in the name of another");
        let space = subject["namespace"].as_str().unwrap_or("default");
        assert_eq!(event["metadata"]["namespace"], space, "in another namespace");
    }

    Fed::tree(bytes)
}

/// The body of a request to join.
pub(crate) fn join(bytes: &[u8]) -> Fed {
    inputs::is_join_request(bytes);

    Fed::tree(bytes)
}

/// A certificate request on the link.
pub(crate) fn request(bytes: &[u8]) -> Fed {
    if let Ok(request) = pki::NodeRequest::parse_der(&node(), bytes) {
        assert_eq!(request.key_hash().as_str().len(), 64);
    }

    Fed::tree(bytes)
}

/// A certificate that somebody shows.
pub(crate) fn certificate(bytes: &[u8]) -> Fed {
    if let Some(holder) = pki::holder_of(&CertificateDer::from(bytes.to_vec())) {
        assert!(!holder.has_signed(b"nothing", b"no signature"));
    }

    Fed::tree(bytes)
}

/// Objects that users made.
pub(crate) fn object(bytes: &[u8]) -> Fed {
    let bytes = Bytes::copy_from_slice(bytes);
    let mut index = Index::new(1);
    index.serve(&node());
    // Tokens are not watched.
    let kinds = || Kind::ALL.into_iter().filter(|kind| *kind != Kind::Token);
    for kind in kinds() {
        drop(index.apply(kind, bytes.clone()));
    }
    drop(index.desired(&node()));
    for kind in kinds() {
        drop(index.delete(kind, &bytes));
    }
    assert!(index.pods_on(&node()).is_empty(), "a pod that was deleted is still there");

    // Each kind reads it anew, and pods are kept.
    Fed { allowed: Kind::ALL.len() * Fed::tree(&bytes).allowed, check: None }
}

/// cloudcore's config file.
pub(crate) fn config(text: &str) {
    drop(Config::parse(Path::new("fed"), text, &Given::default()));
}

/// Whether cloudcore's view of a join token is that of edgeadm, which made it.
pub(crate) fn takes_token(token: &str) -> bool {
    let body = json!({ "token": token, "nodeName": NODE, "csr": CSR }).to_string();

    inputs::is_join_request(body.as_bytes())
}

/// A request for a certificate of [`NODE`].
const CSR: &str = include_str!("request.pem");
