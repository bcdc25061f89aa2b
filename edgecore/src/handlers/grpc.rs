//! gRPC's health protocol (`grpc.health.v1`, github.com/grpc/grpc/blob/master/doc/health-checking.md):
//! one call over HTTP/2 whose two messages have one field each.

use std::pin::pin;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::{Answer, OUTPUT_BYTES_MAX, PROBE, dial, join};

/// A message's flag (not compressed) and length.
const PREFIX_BYTES: usize = 5;
/// Key of field 1 as a string, and as a number (protobuf encoding).
const FIELD_1_STRING: u8 = 0x0a;
const FIELD_1_NUMBER: u8 = 0x08;
/// Longest name of a service that fits a length of one byte.
const SERVICE_BYTES_MAX: usize = 127;
/// `grpc-status` of a server without the health service.
const UNIMPLEMENTED: &str = "12";

/// Asks whether the service is serving.
pub(super) async fn check(host: &str, port: u16, service: &str, limit: Duration) -> Answer {
    match timeout(limit, call(host, port, service, limit)).await {
        Ok(answer) => answer.unwrap_or_else(Answer::Failure),
        Err(_late) => {
            Answer::Failure(format!("timeout: health rpc did not complete within {limit:?}"))
        }
    }
}

async fn call(host: &str, port: u16, service: &str, limit: Duration) -> Result<Answer, String> {
    let request = request(&join(host, port), service)?;
    let connecting = |text: String| format!("error: health rpc probe failed: {text}");
    // The kubelet waits for a listener until the time is over; that there is none is known before.
    let stream = dial(host, port).await.map_err(|_refused| {
        let address = join(host, port);
        format!(
            "timeout: failed to connect service {address:?} within {limit:?}: context deadline exceeded"
        )
    })?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| connecting(error.to_string()))?;
    let talk = async {
        let response =
            sender.send_request(request).await.map_err(|error| connecting(error.to_string()))?;
        let (head, body) = response.into_parts();

        read(head.headers, body).await
    };
    let (mut talk, connection) = (pin!(talk), pin!(connection));
    tokio::select! {
        answer = &mut talk => answer,
        _ended = connection => talk.await,
    }
}

fn request(authority: &str, service: &str) -> Result<Request<Full<Bytes>>, String> {
    let uri = format!("http://{authority}/grpc.health.v1.Health/Check");

    Request::post(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", PROBE)
        .body(Full::new(message(service)?))
        .map_err(|error| format!("error: {error}"))
}

/// `HealthCheckRequest { service }`.
fn message(service: &str) -> Result<Bytes, String> {
    let length = u8::try_from(service.len()).ok().filter(|l| usize::from(*l) <= SERVICE_BYTES_MAX);
    let length = length.ok_or_else(|| {
        format!("the name of the service has more than {SERVICE_BYTES_MAX} bytes: {service}")
    })?;
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(if length == 0 { 0 } else { u32::from(length) + 2 });
    if length > 0 {
        message.put_slice(&[FIELD_1_STRING, length]);
        message.put_slice(service.as_bytes());
    }

    Ok(message.freeze())
}

async fn read(head: HeaderMap, mut body: Incoming) -> Result<Answer, String> {
    let (mut data, mut trailers) = (Vec::new(), head);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("error: health rpc probe failed: {error}"))?;
        match frame.into_data() {
            Ok(bytes) if data.len() + bytes.len() <= OUTPUT_BYTES_MAX => data.extend(bytes),
            Ok(_long) => return Err("error: the answer is too long".to_owned()),
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    let text = |name: &str| {
        trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };

    Ok(match text("grpc-status").as_str() {
        "0" => serving(&data),
        UNIMPLEMENTED => Answer::Failure(format!(
            "error: this server does not implement the grpc health protocol \
             (grpc.health.v1.Health): {}",
            text("grpc-message")
        )),
        code => Answer::Failure(format!(
            "error: health rpc probe failed: rpc error: code = {} desc = {}",
            code_name(code),
            text("grpc-message")
        )),
    })
}

/// A code as Go's gRPC names it.
fn code_name(code: &str) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let named = code.parse().ok().and_then(|code: usize| NAMES.get(code));

    named.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}

/// `HealthCheckResponse { status }`.
fn serving(data: &[u8]) -> Answer {
    let status = match data.get(PREFIX_BYTES..) {
        Some([FIELD_1_NUMBER, 1, ..]) => return Answer::Success,
        Some([FIELD_1_NUMBER, 2, ..]) => "NOT_SERVING",
        Some([FIELD_1_NUMBER, 3, ..]) => "SERVICE_UNKNOWN",
        Some(_) | None => "UNKNOWN",
    };

    Answer::Failure(format!("service unhealthy (responded with \"{status}\")"))
}
