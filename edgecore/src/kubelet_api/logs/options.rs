//! The options of a log request (`PodLogOptions`), checked as the kubelet checks them.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use crate::kubelet_api::answer::Refusal;
use crate::kubelet_api::query::Query;

/// Which of a container's streams are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streams {
    All,
    Stdout,
    Stderr,
}

/// What of a log is wanted, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LogOptions {
    pub(super) follow: bool,
    pub(super) previous: bool,
    pub(super) timestamps: bool,
    pub(super) tail_lines: Option<u64>,
    pub(super) limit_bytes: Option<u64>,
    pub(super) since: Option<Timestamp>,
    pub(super) streams: Streams,
}

fn undecodable() -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#)
}

fn invalid() -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#)
}

fn integer(query: &Query, name: &str) -> Result<Option<i64>, Refusal> {
    query.first(name).map(|text| text.parse().map_err(|_| undecodable())).transpose()
}

/// A number of at least `least`.
fn at_least(least: u64, number: Option<i64>) -> Result<Option<u64>, Refusal> {
    number
        .map(|number| u64::try_from(number).ok().filter(|n| *n >= least).ok_or_else(invalid))
        .transpose()
}

fn time(query: &Query, name: &str) -> Result<Option<Timestamp>, Refusal> {
    let given = query.first(name).filter(|text| !text.is_empty());

    given.map(|text| text.parse().map_err(|_| undecodable())).transpose()
}

impl LogOptions {
    pub(super) fn parse(query: &Query, now: Timestamp) -> Result<Self, Refusal> {
        // The parameter from before there were options.
        let tail = match query.first("tail").filter(|tail| !tail.is_empty()) {
            Some("all") => None,
            Some(tail) => Some(tail.parse().map_err(|_| undecodable())?),
            None => integer(query, "tailLines")?,
        };
        let limit = integer(query, "limitBytes")?;
        let since_seconds = integer(query, "sinceSeconds")?;
        let since_time = time(query, "sinceTime")?;

        let tail_lines = at_least(0, tail)?;
        let limit_bytes = at_least(1, limit)?;
        let since_seconds = at_least(1, since_seconds)?;
        if since_seconds.is_some() && since_time.is_some() {
            return Err(invalid());
        }
        let streams = match query.first("stream") {
            None | Some("All") => Streams::All,
            Some("Stdout") => Streams::Stdout,
            Some("Stderr") => Streams::Stderr,
            Some(_) => return Err(invalid()),
        };
        if streams != Streams::All && tail_lines.is_some() {
            return Err(invalid());
        }

        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail_lines,
            limit_bytes,
            since: since_time.or_else(|| since_seconds.map(|seconds| before(now, seconds))),
            streams,
        })
    }
}

/// `now` less so many seconds; the beginning of time if that is too far back to write down.
fn before(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));

    now.checked_sub(seconds).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().unwrap()
    }

    fn parse(query: &str) -> Result<LogOptions, Refusal> {
        LogOptions::parse(&Query::parse(query), now())
    }

    fn refused(query: &str, status: u16, message: &str) {
        let expected = Refusal::new(
            StatusCode::from_u16(status).unwrap(),
            format!(r#"{{"message": "{message}"}}"#),
        );
        assert_eq!(parse(query), Err(expected), "{query}");
    }

    #[test]
    fn nothing_asked_is_everything() {
        let everything = LogOptions {
            follow: false,
            previous: false,
            timestamps: false,
            tail_lines: None,
            limit_bytes: None,
            since: None,
            streams: Streams::All,
        };
        assert_eq!(parse(""), Ok(everything.clone()));
        assert_eq!(parse("tail=all&tailLines=3&insecureSkipTLSVerifyBackend=true"), Ok(everything));
    }

    #[test]
    fn every_option_is_understood() {
        let options = parse(
            "follow=true&previous=1&timestamps&tailLines=0&limitBytes=1&sinceSeconds=5&stream=All",
        )
        .unwrap();
        assert!(options.follow && options.previous && options.timestamps);
        assert_eq!((options.tail_lines, options.limit_bytes), (Some(0), Some(1)));
        assert_eq!(options.since, Some("2026-01-02T03:04:00Z".parse().unwrap()));
        let options = parse("sinceTime=2026-01-02T03:04:00%2B01:00&stream=Stderr").unwrap();
        assert_eq!(options.since, Some("2026-01-02T02:04:00Z".parse().unwrap()));
        assert_eq!(options.streams, Streams::Stderr);
        assert_eq!(parse("tail=7").unwrap().tail_lines, Some(7));
        assert_eq!(parse("sinceTime=").unwrap().since, None);
        let long_ago = parse("sinceSeconds=9223372036854775807").unwrap();
        assert_eq!(long_ago.since, Some(Timestamp::MIN));
    }

    #[test]
    fn wrong_options_are_refused_as_the_kubelet_does() {
        for query in ["tailLines=x", "tail=x", "limitBytes=1.5", "sinceTime=yesterday"] {
            refused(query, 400, "Unable to decode query.");
        }
        for query in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=1&sinceTime=2026-01-02T03:04:00Z",
            "stream=stdout",
            "stream=Stdout&tailLines=1",
        ] {
            refused(query, 422, "Invalid request.");
        }
    }
}
