//! A client that lets nothing out to an API server that may be of another cluster.

use http::Request;
use kube::Client;
use kube::client::Body;
use tower::{BoxError, service_fn};

use super::Evidence;

/// `client`, but each request waits until the API server is known to be ours, and fails if it is not.
pub fn gated(client: Client, evidence: Evidence) -> Client {
    let namespace = client.default_namespace().to_owned();
    let gate = service_fn(move |request: Request<Body>| {
        let (evidence, client) = (evidence.clone(), client.clone());
        async move {
            evidence.require().await?;

            Ok::<_, BoxError>(client.send(request).await?)
        }
    });

    Client::new(gate, namespace)
}
