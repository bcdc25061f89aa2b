//! A client that counts what the API server answers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use tower::{BoxError, Service};

use super::Metrics;

struct Counting {
    metrics: Metrics,
    inner: Client,
}

impl Service<Request<Body>> for Counting {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (metrics, client) = (self.metrics.clone(), self.inner.clone());

        Box::pin(async move {
            let answer = client.send(request).await;
            metrics.api_request(answer.as_ref().ok().map(Response::status));

            Ok(answer?)
        })
    }
}

/// `client`, with every answer counted.
pub fn counted(client: Client, metrics: Metrics) -> Client {
    let namespace = client.default_namespace().to_owned();

    Client::new(Counting { metrics, inner: client }, namespace)
}
