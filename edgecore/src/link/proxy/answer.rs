//! What a proxy is asked, and what its answer means. Of an answer only the head is looked at.

/// Longest head of an answer.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Kinds of credentials that are told.
const SCHEMES_MAX: usize = 4;
/// Longest name of one.
const SCHEME_LEN_MAX: usize = 16;

/// What came so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// A part.
    Partial,
    /// It is no answer of a proxy.
    Foreign,
    /// All of it.
    Whole {
        /// HTTP.
        status: u16,
        /// How it takes credentials.
        schemes: String,
        /// What follows is of the tunnel.
        is_more: bool,
    },
}

/// Asks for a tunnel to HOST:PORT.
pub fn request(to: &str, authorization: Option<&str>) -> String {
    let authorization =
        authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();

    format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{authorization}\r\n")
}

/// Reads the head of an answer.
pub fn read(bytes: &[u8]) -> Head {
    const START: &[u8] = b"HTTP/1.";
    let common = bytes.len().min(START.len());
    if bytes[..common] != START[..common] {
        return Head::Foreign;
    }
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_BYTES_MAX { Head::Foreign } else { Head::Partial };
    };
    let text = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = text.split("\r\n");
    let status: Option<u16> = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let Some(status) = status.filter(|status| (100..1000).contains(status)) else {
        return Head::Foreign;
    };
    let schemes: Vec<_> = lines.filter_map(scheme).take(SCHEMES_MAX).collect();

    Head::Whole { status, schemes: schemes.join(", "), is_more: bytes.len() > end + 4 }
}

/// The kind of credentials that a line of the head asks for.
fn scheme(line: &str) -> Option<String> {
    let (name, value) = line.split_once(':')?;
    let scheme = value.split_whitespace().next()?;
    let is_one = scheme.len() <= SCHEME_LEN_MAX
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');

    (name.eq_ignore_ascii_case("proxy-authenticate") && is_one).then(|| scheme.to_owned())
}

/// What a refusal means most often.
pub(super) fn meaning(status: u16) -> &'static str {
    match status {
        400 | 405 | 501 => "it gives no tunnels (CONNECT); is it a proxy?",
        403 => "it does not allow tunnels to that address or port; have it allow cloudcore",
        502..=504 => "it cannot reach cloudcore; check the address, and the way from the proxy",
        200..300 => "it speaks before cloudcore does; is it a proxy?",
        _other => "ask who runs it",
    }
}

/// What is wrong with credentials, and what to do.
pub(super) fn credentials(are_given: bool, schemes: &str) -> String {
    let takes_basic = schemes.is_empty()
        || schemes.split(", ").any(|scheme| scheme.eq_ignore_ascii_case("basic"));
    if !takes_basic {
        return format!(
            "takes credentials only by {schemes}, which this agent cannot give (407): have it take \
             Basic ones, or let this machine pass without"
        );
    }
    if are_given {
        return "does not take the credentials (407): check user and password in its address"
            .into();
    }

    "wants credentials (407): write http://USER:PASSWORD@HOST:PORT as its address".into()
}
