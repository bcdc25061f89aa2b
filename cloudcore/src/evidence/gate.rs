//! A client that lets nothing out to an API server that may be of another cluster.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use tower::{BoxError, Service};

use super::Evidence;

struct Gate {
    evidence: Evidence,
    inner: Client,
}

impl Service<Request<Body>> for Gate {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (evidence, client) = (self.evidence.clone(), self.inner.clone());

        Box::pin(async move {
            evidence.require().await?;
            Ok(client.send(request).await?)
        })
    }
}

/// `client`, but each request waits until the API server is known to be ours, and fails if it is not.
pub fn gated(client: Client, evidence: Evidence) -> Client {
    let namespace = client.default_namespace().to_owned();

    Client::new(Gate { evidence, inner: client }, namespace)
}
