//! Answers packed with gzip for callers that take it, as Prometheus and metrics-server do: metrics say
//! much the same again and again, and links are narrow or paid by the byte.

use std::io::{self, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;

use super::answer::{self, Answer};
use crate::blocking;

/// Less is not worth it: it is one frame of the link in any case.
const BYTES_MIN: u64 = 1024;

/// Whether the caller says that it takes gzip.
pub(super) fn is_taken(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());

    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight: String = weight.split_whitespace().collect();
        let is_refused = weight.strip_prefix("q=").and_then(|q| q.parse().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}

/// Packs an answer that is there as a whole. Logs are not: they go on as they come.
pub(super) async fn pack(answer: Answer) -> Answer {
    if answer.body().size_hint().exact().is_none_or(|size| size < BYTES_MIN) {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let packed = match body.collect().await {
        Ok(body) => blocking::run(move || gzip(&body.to_bytes())).await,
        Err(error) => Err(error),
    };
    match packed {
        Ok(packed) => {
            head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            let (_, body) = answer::bytes(head.status, packed).into_parts();
            Response::from_parts(head, body)
        }
        Err(error) => {
            let text = format!("cannot pack the answer: {error}");
            answer::text(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    }
}

fn gzip(bytes: &[u8]) -> io::Result<Bytes> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes)?;

    packer.finish().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    #[test]
    fn only_who_takes_gzip_gets_it() {
        for (accepts, expected) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.8", true),
            ("gzip; q=0", false),
            ("gzip;q=0.0", false),
            ("identity", false),
            ("zstd, x-gzip2", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(accepts));
            assert_eq!(is_taken(&headers), expected, "{accepts:?}");
        }
        assert!(!is_taken(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn what_is_packed_is_the_same_and_far_shorter() {
        let line =
            "container_memory_rss{container=\"main\",namespace=\"shop\",pod=\"web\"} 1234567\n";
        let text = line.repeat(1000);
        let packed = pack(answer::text(StatusCode::OK, text.clone())).await;
        assert_eq!(packed.headers()[CONTENT_ENCODING], "gzip");
        let bytes = packed.into_body().collect().await.unwrap().to_bytes();
        assert!(bytes.len() < text.len() / 10, "{} of {} bytes", bytes.len(), text.len());
        let mut unpacked = String::new();
        GzDecoder::new(&*bytes).read_to_string(&mut unpacked).unwrap();
        assert_eq!(unpacked, text);

        let short = pack(answer::text(StatusCode::OK, "ok")).await;
        assert!(!short.headers().contains_key(CONTENT_ENCODING));
    }
}
