//! One POST to cloudcore over a connection of its own.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::dial::{SERVER_NAME, Stream};

/// Two certificates have 2 KiB.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// Nothing came.
    #[error("there is no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] hyper::Error),
    /// More than cloudcore would say.
    #[error("the answer ({0}) is cut off, or longer than any of cloudcore")]
    Answer(StatusCode),
}

/// Asks, and waits for the answer at most `limit`.
pub async fn post(
    stream: Stream,
    path: &str,
    content_type: &str,
    body: Bytes,
    limit: Duration,
) -> Result<(StatusCode, Bytes), PostError> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, SERVER_NAME)
        .header(CONTENT_TYPE, content_type)
        .body(Full::new(body))
        .expect("the parts are constant");
    let exchange = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(PostError::Broken)?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(PostError::Broken)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;

            Ok((status, body.map_err(|_| PostError::Answer(status))?.to_bytes()))
        };
        let mut exchange = std::pin::pin!(exchange);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            answer = &mut exchange => answer,
            // When the connection is done, what was received is still to be had.
            _ = &mut connection => exchange.await,
        }
    };

    timeout(limit, exchange).await.unwrap_or(Err(PostError::Silent(limit)))
}
