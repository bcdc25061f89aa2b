//! Answers and refusals.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};

/// An error ends a body early, which the other side sees.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(crate) type Answer = Response<Body>;

/// Why a request is not served, as the caller is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// There is no such path.
    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "404: Page Not Found")
    }
}

/// How long the runtime keeps a prepared stream that nobody comes for.
const PREPARED_STREAMS_EXPIRE_S: HeaderValue = HeaderValue::from_static("60");

pub(crate) fn bytes(status: StatusCode, bytes: Bytes) -> Answer {
    let body = Full::new(bytes).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;

    answer
}

pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = bytes(status, Bytes::from(text.into()));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);

    answer
}

pub(crate) fn refuse(refusal: Refusal) -> Answer {
    let mut answer = text(refusal.status, refusal.message);
    if refusal.status == StatusCode::TOO_MANY_REQUESTS {
        answer.headers_mut().insert(RETRY_AFTER, PREPARED_STREAMS_EXPIRE_S);
    }

    answer
}
