//! Which proxy the way to cloudcore leads through, if any: from the configuration, else from the variables
//! that other programs take theirs from.

pub mod answer;
mod exempt;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::dial::DialError;
use crate::Config;
use crate::config::CloudAddress;

/// Where other programs find the proxy for what is encrypted, in their order.
pub const VARIABLES: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
/// Where they find what needs none.
pub const EXEMPT_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Longest address of a proxy.
const ADDRESS_LEN_MAX: usize = 2048;

/// A proxy that is asked for a tunnel. Neither [`fmt::Debug`] nor [`fmt::Display`] shows credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    is_encrypted: bool,
    host: String,
    port: u16,
    /// As in the header: Basic and Base64.
    authorization: Option<String>,
}

/// Which one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// That of the environment, if it has one.
    #[default]
    Environment,
    /// None, whatever the environment says.
    Direct,
    /// This one.
    Through(Proxy),
}

/// What is wrong with the address of a proxy. The address is not shown: it may have a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyMalformed {
    /// Of another form.
    #[error("is not of the form http://[USER:PASSWORD@]HOST:PORT or https://...")]
    Form,
    /// Of another kind.
    #[error("is neither an http:// nor an https:// proxy: others cannot be used")]
    Scheme,
    /// In the credentials.
    #[error(
        "has a character in user or password that is to be written as % and two hexadecimal digits, or a % \
         without these"
    )]
    Encoding,
}

/// What is wrong with a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} of the environment {problem}")]
pub struct VariableMalformed {
    /// Which.
    pub name: &'static str,
    /// What.
    pub problem: ProxyMalformed,
}

/// Why a proxy gives no way.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Nobody is there.
    #[error("the proxy is not reached; check its address, or say `proxy: none` to go without it")]
    Unreachable(#[source] Box<DialError>),
    /// The authorities that it is known by are not to be had.
    #[error("cannot read {}, by which an https:// proxy is known; say another with proxyAuthorities", path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its certificate is not trusted, or it does not encrypt.
    #[error(
        "no TLS with the proxy: is it an http:// one, or is its authority missing in proxyAuthorities?"
    )]
    Tls(#[source] io::Error),
    /// The connection broke, or nothing came.
    #[error("the proxy does not answer")]
    Broken(#[source] io::Error),
    /// Another kind of server.
    #[error("what answers there is no HTTP proxy: check its address")]
    NoProxy,
    /// It is to be told who asks.
    #[error("the proxy {}", answer::credentials(*are_given, schemes))]
    Credentials {
        /// Some were told.
        are_given: bool,
        /// How it takes them.
        schemes: String,
    },
    /// It said no.
    #[error("the proxy refuses with {status}: {}", answer::meaning(*status))]
    Refused {
        /// HTTP.
        status: u16,
    },
}

impl Proxy {
    /// Reads `[http[s]://][USER:PASSWORD@]HOST[:PORT][/]`.
    pub fn parse(text: &str) -> Result<Self, ProxyMalformed> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (is_encrypted, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (false, 80),
            "https" => (true, 443),
            _other => return Err(ProxyMalformed::Scheme),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (credentials, place) = match authority.rsplit_once('@') {
            Some((credentials, place)) => (Some(credentials), place),
            None => (None, authority),
        };
        let (host, port) = host_and_port(place, default_port).ok_or(ProxyMalformed::Form)?;
        if text.len() > ADDRESS_LEN_MAX {
            return Err(ProxyMalformed::Form);
        }
        let authorization = credentials.map(basic).transpose()?;

        Ok(Self { is_encrypted, host, port, authorization })
    }

    /// Whether the way to the proxy is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Its name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// HOST:PORT.
    pub fn address(&self) -> String {
        CloudAddress { host: self.host.clone(), port: self.port }.to_string()
    }

    /// Whether it is told who asks.
    pub fn has_credentials(&self) -> bool {
        self.authorization.is_some()
    }

    /// Value of the header that says who asks. A secret.
    pub(super) fn authorization(&self) -> Option<&str> {
        self.authorization.as_deref()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };

        write!(f, "{scheme}://{}", self.address())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

fn host_and_port(text: &str, default_port: u16) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        let _v6: std::net::Ipv6Addr = host.parse().ok()?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let is_of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        (!host.is_empty() && host.bytes().all(is_of_name)).then_some((host, port))?
    };
    let port = match port {
        None => default_port,
        Some(port) => port.parse::<u16>().ok().filter(|port| *port != 0)?,
    };

    Some((host.to_owned(), port))
}

/// The header's value for `USER:PASSWORD`, in which what has a meaning in addresses is written as `%40`.
fn basic(credentials: &str) -> Result<String, ProxyMalformed> {
    let mut plain = Vec::with_capacity(credentials.len() + 1);
    let mut bytes = credentials.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let value = digit().zip(digit()).map(|(high, low)| high * 16 + low);
            value.and_then(|value| u8::try_from(value).ok()).ok_or(ProxyMalformed::Encoding)?
        } else if byte.is_ascii_whitespace() || b"/?#\"'`,\\".contains(&byte) {
            // Left to themselves they would end the address where others read it.
            return Err(ProxyMalformed::Encoding);
        } else {
            byte
        };
        if byte.is_ascii_control() {
            return Err(ProxyMalformed::Encoding);
        }
        plain.push(byte);
    }
    // A user without a password.
    if !credentials.contains(':') {
        plain.push(b':');
    }

    Ok(format!("Basic {}", STANDARD.encode(plain)))
}

/// What the environment says of a proxy for what goes to `to`, with the name of its variable. A secret.
pub fn text_of_environment(
    to: &CloudAddress,
    variable: impl Fn(&str) -> Option<String>,
) -> Option<(&'static str, String)> {
    let value = |name: &str| variable(name).filter(|value| !value.is_empty());
    let found = VARIABLES.iter().find_map(|name| Some((*name, value(name)?)))?;
    let exempt = EXEMPT_VARIABLES.iter().find_map(|name| value(name)).unwrap_or_default();

    (!exempt::is_exempt(to, &exempt)).then_some(found)
}

/// The proxy of the environment for what goes to `to`, with the name of its variable.
pub fn of_environment(
    to: &CloudAddress,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<(&'static str, Proxy)>, VariableMalformed> {
    let Some((name, text)) = text_of_environment(to, variable) else { return Ok(None) };

    match Proxy::parse(&text) {
        Ok(proxy) => Ok(Some((name, proxy))),
        Err(problem) => Err(VariableMalformed { name, problem }),
    }
}

/// A variable of this process's environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where cloudcore is, and the way there.
#[derive(Clone, Debug)]
pub struct Way {
    /// HOST:PORT of cloudcore.
    pub address: String,
    /// Asked for a tunnel there.
    pub proxy: Option<Proxy>,
    /// Certificates by which an encrypted proxy is known.
    pub authorities: PathBuf,
    /// Where cloudcore answered last, if that was seen: a name that leads elsewhere now may be wrong.
    pub known: Option<IpAddr>,
}

impl Way {
    /// The way of a node with this configuration.
    pub fn of(config: &Config) -> Result<Self, VariableMalformed> {
        let proxy = match &config.proxy {
            Choice::Direct => None,
            Choice::Through(proxy) => Some(proxy.clone()),
            Choice::Environment => {
                of_environment(&config.cloudcore, variable)?.map(|(_, proxy)| proxy)
            }
        };

        Ok(Self { proxy, ..Self::direct(config) })
    }

    /// The same without a proxy.
    pub fn direct(config: &Config) -> Self {
        Self {
            address: config.cloudcore.to_string(),
            proxy: None,
            authorities: config.proxy_authorities.clone(),
            known: None,
        }
    }

    /// Straight to HOST:PORT.
    pub fn straight(address: String) -> Self {
        Self { address, proxy: None, authorities: PathBuf::new(), known: None }
    }
}
