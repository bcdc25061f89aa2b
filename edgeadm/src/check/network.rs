//! The way to cloudcore, stage by stage, so that what is wrong is told at the stage where it is: names,
//! route, who answers there, large packets, clocks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edgecore::link::dial::SERVER_NAME;
use edgecore::{Config, blocking, clock, identity};
use http::header::{DATE, HOST};
use http::{HeaderValue, Request};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError};

use super::Finding;
use crate::token::Token;
use crate::{pin, ui};

/// For each stage: three SYNs of a bad mobile link.
const STAGE_MAX: Duration = Duration::from_secs(8);
/// More than what one packet holds on any path.
const LARGE_BYTES: usize = 4000;
/// Clocks that differ by less are of no consequence.
const CLOCK_MAX_S: u64 = 60;
/// Then certificates are not yet, or no more, valid.
const CLOCK_FAR_S: u64 = 3600;
/// Where programs find their proxy.
const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

pub(super) async fn look(config: &Config, token: Option<&Token>) -> Vec<Finding> {
    let address = config.cloudcore.to_string();
    let proxy = PROXIES.iter().find_map(|name| Some((*name, std::env::var(name).ok()?)));
    let mut findings = vec![self::proxy(proxy.map(|(name, _)| name))];
    let resolved =
        timeout(STAGE_MAX, blocking::resolve(&address)).await.unwrap_or_else(|_| silent());
    findings.push(names(&config.cloudcore.host, &resolved));
    let Ok(addresses) = resolved else { return findings };
    let (socket, finding) = route(&address, &addresses).await;
    findings.push(finding);
    let Some(socket) = socket else { return findings };
    findings.extend(rustix::net::sockopt::ip_mtu(&socket).ok().map(path_mtu));
    let Some(tls) = known(config, token) else {
        let how = "give --token, or join this machine: without either nobody can tell who answers";
        findings.push(Finding::warn(
            "cloudcore",
            "answers; whether it is the right one is not known",
            how,
        ));
        return findings;
    };
    let (stream, finding) = encrypt(&address, socket, tls).await;
    findings.push(finding);
    if let Some(stream) = stream {
        findings.extend(ask(&address, stream).await);
    }

    findings
}

fn silent<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
}

fn proxy(name: Option<&'static str>) -> Finding {
    match name {
        None => Finding::ok("proxy", "none is set"),
        Some(name) => Finding::warn(
            "proxy",
            format!("{name} is set, and the agent goes to cloudcore without it"),
            "let this machine reach cloudcore's port directly; only the runtime pulls through proxies",
        ),
    }
}

fn names(host: &str, resolved: &io::Result<Vec<SocketAddr>>) -> Finding {
    match resolved {
        Ok(addresses) => {
            let ips: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            if ips.iter().any(|ip| ip == host) {
                return Finding::ok("DNS", "not needed: cloudcore is given by its address");
            }
            Finding::ok("DNS", format!("{host} is {}", ips.join(", ")))
        }
        // getaddrinfo has words of its own for a server that does not answer.
        Err(error) if is_no_server(error) => Finding::fail(
            "DNS",
            format!("no name server answers for {host}: {error}"),
            "check the nameserver lines of /etc/resolv.conf and the way to them (UDP port 53)",
        ),
        Err(error) => Finding::fail(
            "DNS",
            format!("{host} has no address: {error}"),
            "check the name for typing errors, and whether this network's name servers know it",
        ),
    }
}

fn is_no_server(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut || error.to_string().contains("Temporary failure")
}

async fn route(address: &str, addresses: &[SocketAddr]) -> (Option<TcpStream>, Finding) {
    let mut last = None;
    for target in addresses {
        let began = clock::instant();
        match timeout(STAGE_MAX, TcpStream::connect(target)).await.unwrap_or_else(|_| silent()) {
            Ok(socket) => {
                let from = socket.local_addr().map(|local| format!(" from {}", local.ip()));
                let (from, millis) = (from.unwrap_or_default(), began.elapsed().as_millis());
                let finding =
                    Finding::ok("route", format!("{target} answers{from} in {millis} ms"));
                return (Some(socket), finding);
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| io::ErrorKind::NotFound.into());

    (None, no_route(address, &error))
}

fn no_route(address: &str, error: &io::Error) -> Finding {
    let is = |kinds: &[io::ErrorKind]| kinds.contains(&error.kind());
    let remedy = if is(&[io::ErrorKind::ConnectionRefused]) {
        "nothing listens at that port: check the port, and whether cloudcore runs"
    } else if is(&[io::ErrorKind::NetworkUnreachable, io::ErrorKind::HostUnreachable]) {
        "this machine has no way there: check its address, its default route and its cable"
    } else {
        "packets get lost on the way: check the address, and firewalls for TCP to that port"
    };

    Finding::fail("route", format!("cannot connect to {address}: {error}"), remedy)
}

fn path_mtu(mtu: u32) -> Finding {
    if mtu < 1280 {
        let remedy = "raise the MTU of the interface to 1280 or more";
        return Finding::warn("MTU", format!("{mtu} bytes on the way to cloudcore"), remedy);
    }

    Finding::ok("MTU", format!("{mtu} bytes on the way to cloudcore, as far as known"))
}

/// What cloudcore is known by.
fn known(config: &Config, token: Option<&Token>) -> Option<Arc<ClientConfig>> {
    match token {
        Some(token) => pin::tls(token).ok(),
        None => Some(identity::load(&config.identity_dir, clock::since_1970()).ok()?.tls),
    }
}

async fn encrypt(
    address: &str,
    socket: TcpStream,
    tls: Arc<ClientConfig>,
) -> (Option<TlsStream<TcpStream>>, Finding) {
    let name = ServerName::try_from(SERVER_NAME).expect("the name is a DNS name");
    let connected = timeout(STAGE_MAX, TlsConnector::from(tls).connect(name, socket));
    match connected.await.unwrap_or_else(|_| silent()) {
        Ok(stream) => {
            (Some(stream), Finding::ok("cloudcore", format!("the right one answers at {address}")))
        }
        Err(error) => (None, no_tls(address, &error)),
    }
}

fn no_tls(address: &str, error: &io::Error) -> Finding {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>());
    let (found, remedy) = match tls {
        Some(TlsError::InvalidMessage(_)) => (
            format!("what answers at {address} does not speak TLS"),
            "it is another service or a captive portal of this network: log in to the network, or \
             check address and port",
        ),
        Some(TlsError::InvalidCertificate(_)) => (
            format!("what answers at {address} is not the cloudcore that this node knows: {error}"),
            "check the address; a wrong answer of a name server, a captive portal or a proxy that \
             opens TLS look like this too, and so does a clock that is wrong by months",
        ),
        Some(_) | None if error.kind() == io::ErrorKind::TimedOut => (
            format!("{address} takes the connection and then says nothing"),
            "large packets may get lost (MTU), or a firewall lets only the first packets pass: try \
             sysctl -w net.ipv4.tcp_mtu_probing=1",
        ),
        Some(_) | None => (
            format!("no TLS with {address}: {error}"),
            "check that cloudcore listens there and nothing in between ends connections",
        ),
    };

    Finding::fail("cloudcore", found, remedy)
}

/// Asks for something with a head that needs several packets, and looks at the time of the answer.
async fn ask(address: &str, stream: TlsStream<TcpStream>) -> Vec<Finding> {
    let asking = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let filler = HeaderValue::from_bytes(&[b'x'; LARGE_BYTES]).expect("it is text");
        let request = Request::get("/healthz")
            .header(HOST, SERVER_NAME)
            .header("x-filler", filler)
            .body(Empty::<Bytes>::new())
            .expect("the parts are constant");
        let mut connection = std::pin::pin!(connection);
        let answer = tokio::select! {
            answer = sender.send_request(request) => answer,
            Err(error) = &mut connection => Err(error),
        };
        answer.map(|answer| answer.headers().get(DATE).cloned())
    };
    match timeout(STAGE_MAX, asking).await {
        Err(_elapsed) => vec![Finding::fail(
            "large packets",
            format!("{address} took small packets, and never answered large ones"),
            "the MTU on the way is smaller than this machine believes, and nobody says so: lower that \
             of the interface, or sysctl -w net.ipv4.tcp_mtu_probing=1",
        )],
        Ok(Err(error)) => vec![Finding::fail(
            "cloudcore",
            format!("{address} broke off: {}", ui::chain(&error)),
            "if this node has joined, its certificate may have expired or been revoked: join it anew",
        )],
        Ok(Ok(date)) => {
            let theirs = date.and_then(|date| http_date(date.to_str().ok()?));
            vec![Finding::ok("large packets", "they arrive"), clocks(theirs, crate::clock::now())]
        }
    }
}

/// A time as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::strtime::parse("%a, %d %b %Y %H:%M:%S GMT", text)
        .ok()?
        .to_datetime()
        .ok()?
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .map(|zoned| zoned.timestamp())
}

fn clocks(theirs: Option<Timestamp>, ours: Timestamp) -> Finding {
    let Some(theirs) = theirs else {
        return Finding::warn("clock", "cloudcore did not say its time", "compare it by hand");
    };
    let differs = ours.duration_since(theirs).as_secs();
    let found = match differs {
        0 => "as cloudcore's".to_owned(),
        1.. => format!("{differs} s ahead of cloudcore's"),
        _ => format!("{} s behind cloudcore's", -differs),
    };
    let remedy = "set it, and have it kept by an NTP client such as systemd-timesyncd or chrony";
    match differs.unsigned_abs() {
        CLOCK_FAR_S.. => Finding::fail("clock", found, remedy),
        CLOCK_MAX_S.. => Finding::warn("clock", found, remedy),
        _ => Finding::ok("clock", found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn names_that_are_unknown_are_told_from_servers_that_are_away() {
        let failed = |text: &str| {
            Err(io::Error::other(format!("failed to lookup address information: {text}")))
        };
        let finding = names("cloud", &failed("Name or service not known"));
        assert!(finding.remedy.contains("typing errors"), "{finding:?}");
        let finding = names("cloud", &failed("Temporary failure in name resolution"));
        assert!(finding.remedy.contains("resolv.conf"), "{finding:?}");
        assert!(names("cloud", &silent()).remedy.contains("resolv.conf"));
        let found = Ok(vec!["192.0.2.1:1".parse().unwrap()]);
        assert_eq!(names("cloud", &found).found, "cloud is 192.0.2.1");
        assert!(names("192.0.2.1", &found).found.contains("not needed"));
    }

    #[test]
    fn who_answers_is_told_apart() {
        let tls = |error: TlsError| io::Error::new(io::ErrorKind::InvalidData, error);
        let portal =
            tls(TlsError::InvalidMessage(tokio_rustls::rustls::InvalidMessage::InvalidContentType));
        assert!(no_tls("c:1", &portal).remedy.contains("captive portal"));
        assert!(no_tls("c:1", &tls(pin::OTHER_AUTHORITY)).found.contains("is not the cloudcore"));
        let silent = silent::<()>().unwrap_err();
        assert!(no_tls("c:1", &silent).remedy.contains("MTU"));
        assert!(no_route("c:1", &io::ErrorKind::ConnectionRefused.into()).remedy.contains("port"));
        assert!(no_route("c:1", &silent).remedy.contains("firewalls"));
    }

    #[test]
    fn clocks_are_compared() {
        let ours = "1994-11-06T08:49:37Z".parse().unwrap();
        let at = |text: &str| clocks(http_date(text), ours);
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT").verdict, Verdict::Ok);
        assert_eq!(at("Sun, 06 Nov 1994 08:47:37 GMT").found, "120 s ahead of cloudcore's");
        assert_eq!(at("Sun, 06 Nov 1994 08:47:37 GMT").verdict, Verdict::Warn);
        assert_eq!(at("Mon, 07 Nov 1994 08:49:37 GMT").verdict, Verdict::Fail);
        assert_eq!(at("odd").verdict, Verdict::Warn);
        assert_eq!(path_mtu(1000).verdict, Verdict::Warn);
        assert_eq!(path_mtu(1500).verdict, Verdict::Ok);
    }
}
