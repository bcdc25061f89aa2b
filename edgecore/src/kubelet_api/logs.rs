//! `GET /containerLogs/{namespace}/{pod}/{container}`.
//!
//! As the kubelet does, only the current log file is read; a file that is rotated while it is
//! followed is read to its end before the next.

mod line;
mod options;
mod reading;
mod tail;
#[cfg(test)]
mod tests;
mod watch;

use std::fs::File;

use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

use super::answer::{Answer, Refusal, refuse};
use super::query::Query;
use super::{ContainerState, Context, Incarnation, PodRef};
use crate::{blocking, clock};
use jiff::Timestamp;
use line::{Printer, Want};
use options::LogOptions;
use reading::Reading;

/// What of the lines of a log file a query wants; `None` if it is refused. For [`crate::inputs`].
pub(crate) fn printed(query: &Query, file: &[u8]) -> Option<Vec<u8>> {
    let options = LogOptions::parse(query, Timestamp::UNIX_EPOCH).ok()?;
    let (mut printer, mut out) = (Printer::new(&options), Vec::new());
    let mut lines = file.split_inclusive(|byte| *byte == b'\n');
    while printer.wants() == Want::More
        && let Some(line) = lines.next()
    {
        printer.print(line, &mut out);
    }

    Some(out)
}

pub(super) async fn answer(context: &Context, path: [&str; 3], query: &Query) -> Answer {
    match open(context, path, query).await {
        Ok(reading) => stream_of(reading),
        Err(refusal) => refuse(refusal),
    }
}

async fn open(
    context: &Context,
    [namespace, pod, container]: [&str; 3],
    query: &Query,
) -> Result<Reading, Refusal> {
    let options = LogOptions::parse(query, clock::now())?;
    let found = context.pods.find(namespace, pod).ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("pod {pod:?} does not exist"))
    })?;
    let (incarnation, running) = choose(&found, pod, container, options.previous)?;
    let path = incarnation.log.clone();
    let tail = options.tail_lines;
    let opened = blocking::run(move || {
        let file = File::open(&path)?;
        let start = tail::start_of_last_lines(&file, tail)?;
        Ok::<_, std::io::Error>((file, start))
    })
    .await;
    let (file, start) = opened.map_err(|error| {
        let path = incarnation.log.display();
        let message = format!("failed to open log file {path:?}: {error}");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;

    let runtime = running.then(|| context.runtime.clone());

    Ok(Reading::new(file, start, incarnation, &options, runtime))
}

/// Whose log is wanted, and whether that container runs. The messages are the kubelet's.
fn choose(
    found: &PodRef,
    pod: &str,
    container: &str,
    previous: bool,
) -> Result<(Incarnation, bool), Refusal> {
    let Some(found) = found.containers.iter().find(|found| found.name == container) else {
        let message = format!("container {container:?} not found in pod {pod:?}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    };
    let unavailable = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    if previous {
        let message =
            format!("previous terminated container {container:?} in pod {pod:?} not found");
        let previous = found.previous.clone().ok_or_else(|| unavailable(message))?;
        return Ok((previous, false));
    }
    match (&found.state, &found.previous) {
        (ContainerState::Running(current), _) => Ok((current.clone(), true)),
        (ContainerState::Terminated(current), _) => Ok((current.clone(), false)),
        (ContainerState::Waiting { .. }, Some(previous)) => Ok((previous.clone(), false)),
        (ContainerState::Waiting { reason }, None) => {
            let why = match reason.as_str() {
                "ErrImagePull" => "image can't be pulled",
                "ImagePullBackOff" => "trying and failing to pull image",
                other => other,
            };
            let message =
                format!("container {container:?} in pod {pod:?} is waiting to start: {why}");
            Err(unavailable(message))
        }
    }
}

fn stream_of(reading: Reading) -> Answer {
    let frames = stream::unfold(reading, |mut reading| async {
        let bytes = reading.next().await?;
        Some((bytes.map(Frame::data), reading))
    });
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));

    answer
}
