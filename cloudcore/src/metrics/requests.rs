//! A client that counts what the API server answers.

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use tower::{BoxError, service_fn};

use super::Metrics;

/// `client`, with every answer counted.
pub fn counted(client: Client, metrics: Metrics) -> Client {
    let namespace = client.default_namespace().to_owned();
    let counting = service_fn(move |request: Request<Body>| {
        let (metrics, client) = (metrics.clone(), client.clone());
        async move {
            let answer = client.send(request).await;
            metrics.api_request(answer.as_ref().ok().map(Response::status));

            Ok::<_, BoxError>(answer?)
        }
    });

    Client::new(counting, namespace)
}
