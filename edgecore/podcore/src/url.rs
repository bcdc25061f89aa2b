//! URLs of probes and hooks: read, resolved and written as a kubelet does it by Go's `net/url`, so that
//! a path or a redirect leads here where it leads there.

use std::fmt;
use std::net::Ipv6Addr;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// TLS.
    pub https: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Unless it is the scheme's own.
    pub port: Option<u16>,
    /// Path and query as they are sent.
    pub target: String,
}

/// Why a redirect leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is no URL.
    #[error("failed to parse Location header {location:?}")]
    Location {
        /// What was told.
        location: String,
    },
    /// Not HTTP.
    #[error("unsupported protocol scheme {scheme:?}")]
    Scheme {
        /// Which.
        scheme: String,
    },
}

/// A URL or a part of one, in escaped form.
struct Reference<'a> {
    scheme: Option<String>,
    /// Name or address, without brackets, and port.
    host: Option<(&'a str, Option<u16>)>,
    /// It has a scheme and no slash after it.
    is_opaque: bool,
    path: String,
    query: Option<String>,
}

impl Url {
    /// The URL of an HTTPGetAction (kubelet: `formatURL`): of the path only path and query count, and
    /// what cannot be read is a path as it is.
    pub fn of(https: bool, host: &str, port: u16, path: &str) -> Self {
        let (path, query) = match read(path) {
            Some(Reference { path, query, is_opaque: false, .. }) => (path, query),
            Some(_) | None => (escape(path.as_bytes()), None),
        };
        let path = if path.starts_with('/') { path } else { format!("/{path}") };

        Self { https, host: host.to_owned(), port: Some(port), target: target(&path, query) }
    }

    /// Where a redirect leads (RFC 3986, 5.2), if it stays on the host.
    pub fn redirected(&self, location: &str) -> Result<Option<Self>, UrlError> {
        let wrong = || UrlError::Location { location: location.to_owned() };
        let Reference { scheme, host, path, query, .. } = read(location).ok_or_else(wrong)?;
        let is_complete = host.is_some() || scheme.is_some();
        let own = (self.host.as_str(), self.port);
        let (host, port) = host.unwrap_or(if is_complete { ("", None) } else { own });
        if host != self.host {
            return Ok(None);
        }
        let https = match scheme.as_deref() {
            None => self.https,
            Some("http") => false,
            Some("https") => true,
            Some(other) => return Err(UrlError::Scheme { scheme: other.to_owned() }),
        };
        let target = if is_complete {
            target(&without_dots(&path), query)
        } else {
            self.resolved(path, query)
        };

        Ok(Some(Self { https, host: host.to_owned(), port, target }))
    }

    /// Path and query of a reference, which begin here if they are not complete.
    fn resolved(&self, path: String, query: Option<String>) -> String {
        let (base, own) = cut_query(&self.target);
        let query = if path.is_empty() { query.or_else(|| own.map(str::to_owned)) } else { query };
        let whole = if path.is_empty() {
            base.to_owned()
        } else if path.starts_with('/') {
            path
        } else {
            let folder = base.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{path}")
        };

        target(&without_dots(&whole), query)
    }

    /// Host and port, as the Host header names them.
    pub fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };

        self.port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"))
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(if self.https { 443 } else { 80 })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };

        write!(out, "{scheme}://{}{}", self.authority(), self.target)
    }
}

/// Whether a redirect names a scheme, and so the host that it means.
pub fn is_absolute(location: &str) -> bool {
    scheme(location).is_some_and(|(scheme, _)| !scheme.is_empty())
}

fn target(path: &str, query: Option<String>) -> String {
    query.map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"))
}

fn cut_query(text: &str) -> (&str, Option<&str>) {
    text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)))
}

/// `None`: it is no URL.
fn read(text: &str) -> Option<Reference<'_>> {
    let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return None;
    }
    decode(fragment)?;
    let (scheme, rest) = scheme(text)?;
    let scheme = (!scheme.is_empty()).then(|| scheme.to_ascii_lowercase());
    let (rest, query) = cut_query(rest);
    let query = query.map(sendable);
    let is_opaque = scheme.is_some() && !rest.starts_with('/');
    if scheme.is_none() && rest.split('/').next().is_some_and(|first| first.contains(':')) {
        return None;
    }
    let has_host = rest.starts_with("//") && (scheme.is_some() || !rest.starts_with("///"));
    let (host, path) = match rest.strip_prefix("//").filter(|_| has_host) {
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (Some(host(authority)?), path)
        }
        None => (None, rest),
    };

    Some(Reference { scheme, host, is_opaque, path: escaped_path(path)?, query })
}

/// Scheme, which may be empty, and the rest; `None` if the scheme is missing before its colon.
fn scheme(text: &str) -> Option<(&str, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    match text.split_once(':') {
        Some(("", _)) => None,
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(is_part) =>
        {
            Some((scheme, rest))
        }
        Some(_) | None => Some(("", text)),
    }
}

/// Host and port of an authority, without its user.
fn host(authority: &str) -> Option<(&str, Option<u16>)> {
    let authority = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    let (host, rest) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.rsplit_once(']')?;
            host.split('%').next()?.parse::<Ipv6Addr>().ok()?;
            (host, port)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_of_host =
        |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:%<>\"".contains(c);
    if !host.chars().all(is_of_host) {
        return None;
    }
    let port = match rest {
        "" | ":" => None,
        port => Some(port.strip_prefix(':')?.parse().ok()?),
    };

    Some((host, port))
}

/// The path as it is sent: as it is if that is allowed, else escaped anew (Go: `EscapedPath`).
fn escaped_path(path: &str) -> Option<String> {
    let decoded = decode(path)?;
    let is_allowed = |byte: u8| is_plain(byte) || b"!'()*[]%".contains(&byte);

    Some(if path.bytes().all(is_allowed) { path.to_owned() } else { escape(&decoded) })
}

/// Whether a byte stands for itself in a path (Go: `shouldEscape`).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte)
}

fn escape(bytes: &[u8]) -> String {
    let written = |byte: &u8| match *byte {
        byte if is_plain(byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };

    bytes.iter().map(written).collect()
}

/// A query is sent as it is told, but for what ends a word of the request's first line or may not be in it.
fn sendable(query: &str) -> String {
    query
        .chars()
        .map(|c| match c {
            ' ' | '"' | '<' | '>' => format!("%{:02X}", u32::from(c)),
            other => other.to_string(),
        })
        .collect()
}

/// What escapes stand for; `None` if one is wrong.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        bytes.push(match (first, tail) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digit = |byte: u8| char::from(byte).to_digit(16);
                u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?
            }
            (b'%', _) => return None,
            (plain, _) => plain,
        });
    }

    Some(bytes)
}

/// The path without `.` and `..` (RFC 3986, 5.2.4).
fn without_dots(path: &str) -> String {
    let Some(rooted) = path.strip_prefix('/') else { return "/".to_owned() };
    let mut kept = Vec::new();
    for part in rooted.split('/') {
        match part {
            "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    if matches!(rooted.rsplit('/').next(), Some("." | "..")) {
        kept.push("");
    }

    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str) -> Url {
        Url::of(false, "10.1.2.3", 8080, path)
    }

    #[test]
    fn a_path_of_a_pod_is_escaped_as_by_a_kubelet() {
        for (path, expected) in [
            ("", "/"),
            ("/", "/"),
            ("healthz", "/healthz"),
            ("/a b", "/a%20b"),
            ("/<a>`\"\\^{|}", "/%3Ca%3E%60%22%5C%5E%7B%7C%7D"),
            ("/\u{e9}?\u{e9}", "/%C3%A9?\u{e9}"),
            // What is escaped and allowed stays, also where it need not be escaped.
            ("/a%2fb/%7Ea/[1]!'()*", "/a%2fb/%7Ea/[1]!'()*"),
            ("/a%2fb c", "/a/b%20c"),
            ("/a?b=c&d=e%20f", "/a?b=c&d=e%20f"),
            ("/a?b=c d?e", "/a?b=c%20d?e"),
            ("/a?", "/a?"),
            ("/a#part", "/a"),
            // Whole URLs give their path.
            ("http://other:1/a?b", "/a?b"),
            ("//other/a", "/a"),
            ("///a", "///a"),
            // What cannot be read is a path.
            ("/100%?a", "/100%25%3Fa"),
            ("/a#%", "/a%23%25"),
            ("/a\tb", "/a%09b"),
            ("1:a", "/1:a"),
            (":a", "/:a"),
            ("//a b/c", "//a%20b/c"),
            ("//[a]/c", "//%5Ba%5D/c"),
            ("//a:b/c", "//a:b/c"),
        ] {
            assert_eq!(of(path).target, expected, "{path}");
        }
        assert_eq!(of("/a b").to_string(), "http://10.1.2.3:8080/a%20b");
        assert_eq!(Url::of(true, "fd00::1", 443, "a").to_string(), "https://[fd00::1]:443/a");
    }

    /// From `/b/c/d;p?q`, the example of RFC 3986, 5.4.
    #[test]
    fn a_redirect_leads_where_the_rfc_says() {
        let base = of("/b/c/d;p?q");
        for (location, expected) in [
            ("g", "/b/c/g"),
            ("./g", "/b/c/g"),
            ("g/", "/b/c/g/"),
            ("/g", "/g"),
            ("?y", "/b/c/d;p?y"),
            ("g?y", "/b/c/g?y"),
            ("#s", "/b/c/d;p?q"),
            ("g#s", "/b/c/g"),
            (";x", "/b/c/;x"),
            ("", "/b/c/d;p?q"),
            (".", "/b/c/"),
            ("./", "/b/c/"),
            ("..", "/b/"),
            ("../", "/b/"),
            ("../g", "/b/g"),
            ("../..", "/"),
            ("../../../g", "/g"),
            ("/./g", "/g"),
            ("/../g", "/g"),
            ("g.", "/b/c/g."),
            ("..g", "/b/c/..g"),
            ("./g/.", "/b/c/g/"),
            ("g/../h", "/b/c/h"),
            ("g;x=1/../y", "/b/c/y"),
            ("g?y/../x", "/b/c/g?y/../x"),
            ("a%2f../g h", "/b/c/g%20h"),
            ("///g", "///g"),
        ] {
            let expected = Some(Url { target: expected.to_owned(), ..base.clone() });
            assert_eq!(base.redirected(location), Ok(expected), "{location}");
        }
    }

    #[test]
    fn a_redirect_stays_on_its_host() {
        let check = |location: &str, expected: &str| {
            let told = match of("/b?q").redirected(location) {
                Ok(Some(url)) => format!("{url} {}", url.port()),
                Ok(None) => "elsewhere".to_owned(),
                Err(error) => error.to_string(),
            };
            assert_eq!(told, expected, "{location}");
        };
        check("http://10.1.2.3:8080/a/../g", "http://10.1.2.3:8080/g 8080");
        check("//10.1.2.3:9", "http://10.1.2.3:9/ 9");
        check("HTTPS://u:p@10.1.2.3?x", "https://10.1.2.3/?x 443");
        check("http://10.1.2.3:", "http://10.1.2.3/ 80");
        for elsewhere in ["http://10.1.2.4/", "//other/", "https:///a", "http:g", "mailto:a"] {
            check(elsewhere, "elsewhere");
        }
        check("ftp://10.1.2.3/", "unsupported protocol scheme \"ftp\"");
        for wrong in ["/%zz", "1:a", "http://a:b/", "http://[::1/"] {
            check(wrong, &format!("failed to parse Location header {wrong:?}"));
        }

        let six = Url::of(true, "fd00::1", 443, "/a");
        let next = six.redirected("https://[fd00::1]/b").unwrap().unwrap();
        assert_eq!(next.to_string(), "https://[fd00::1]/b");
        assert!(is_absolute("http:/a") && !is_absolute("//a/b") && !is_absolute("a/b:c"));
    }
}
