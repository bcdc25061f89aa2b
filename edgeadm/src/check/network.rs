//! The way to cloudcore, stage by stage, so that what is wrong is told at the stage where it is: proxy, names,
//! route, who answers there, clocks, large packets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use edgecore::link::dial::blame::{self, NoTls};
use edgecore::link::dial::carrier::Carrier;
use edgecore::link::dial::{self, DialError, SERVER_NAME, Stream};
use edgecore::link::proxy::{Choice, VariableMalformed, Way};
use edgecore::{Config, blocking, clock, identity};
use http::header::{DATE, HOST};
use http::{HeaderValue, Request};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustix::net::sockopt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Finding;
use crate::token::Token;
use crate::{pin, ui};

/// For each stage: three SYNs of a bad mobile link.
const STAGE_MAX: Duration = Duration::from_secs(8);
/// For what small packets did in a moment: shorter than any patience of kernels, which would break it off.
const LARGE_MAX: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// More than what one packet holds on any path.
const LARGE_BYTES: usize = 4000;
/// Clocks that differ by less are of no consequence.
const CLOCK_MAX_S: u64 = 60;
/// Then certificates are not yet, or no more, valid.
const CLOCK_FAR_S: u64 = 3600;

pub(super) async fn look(config: &Config, token: Option<&Token>) -> Vec<Finding> {
    let way = Way::of(config);
    let mut findings = vec![proxy(&config.proxy, &way)];
    let Ok(way) = way else { return findings };
    let socket = match &way.proxy {
        Some(_) => {
            let began = clock::instant();
            let opened = dial::open(&way).await.map(drop);
            findings.push(tunnel(&way, opened, began.elapsed()));
            None
        }
        None => straight(config, &way.address, &mut findings).await,
    };
    let is_reached = findings.iter().all(|finding| finding.verdict != super::Verdict::Fail);
    if !is_reached {
        return findings;
    }
    let Some(tls) = known(config, token) else {
        findings.push(somebody(&way).await);
        return findings;
    };
    match dial::connect(&way, Arc::clone(&tls)).await {
        Ok(stream) => {
            let found = format!("the right one answers at {}", way.address);
            findings.push(Finding::ok("cloudcore", found));
            findings.push(asked(&way.address, ask(stream, 0).await));
            if let Some(socket) = socket {
                findings.push(large_packets(socket, tls).await);
            }
        }
        Err(error) => findings.push(no_cloudcore(&error)),
    }

    findings
}

fn silent<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
}

fn proxy(choice: &Choice, way: &Result<Way, VariableMalformed>) -> Finding {
    let proxy = match way {
        Ok(way) => way.proxy.as_ref(),
        Err(problem) => {
            let remedy = "correct it, or set proxy in the configuration of the agent";
            return Finding::fail("proxy", problem.to_string(), remedy);
        }
    };
    match (proxy, choice) {
        (None, Choice::Direct) => Finding::ok("proxy", "none, as is said"),
        (None, Choice::Environment | Choice::Through(_)) => Finding::ok("proxy", "none is set"),
        (Some(proxy), Choice::Environment) => Finding::warn(
            "proxy",
            format!("{proxy}, by the environment of this command"),
            "the agent has an environment of its own: edgeadm join writes this proxy into the \
             configuration, and on a node that has joined it is to be written there",
        ),
        (Some(proxy), Choice::Direct | Choice::Through(_)) => {
            Finding::ok("proxy", proxy.to_string())
        }
    }
}

fn tunnel(way: &Way, opened: Result<(), DialError>, took: Duration) -> Finding {
    match opened {
        Ok(()) => {
            let found = format!("the proxy leads to {} in {} ms", way.address, took.as_millis());
            Finding::ok("route", found)
        }
        Err(error) => Finding::fail(
            "route",
            ui::chain(&error),
            "see what the proxy says, and who runs it; --proxy none tries without it",
        ),
    }
}

/// Names and route without a proxy. A connection, if there is one.
async fn straight(
    config: &Config,
    address: &str,
    findings: &mut Vec<Finding>,
) -> Option<TcpStream> {
    let resolved = timeout(STAGE_MAX, blocking::resolve(address)).await;
    let resolved = resolved.unwrap_or_else(|_| silent());
    findings.push(names(&config.cloudcore.host, &resolved));
    let addresses = resolved.ok().filter(|addresses| !blame::are_impossible(addresses))?;
    let (socket, finding) = route(address, addresses).await;
    findings.push(finding);
    let socket = socket?;
    let mtu = sockopt::ip_mtu(&socket).or_else(|_| sockopt::ipv6_mtu(&socket));
    findings.extend(mtu.ok().map(path_mtu));

    Some(socket)
}

fn names(host: &str, resolved: &io::Result<Vec<SocketAddr>>) -> Finding {
    match resolved {
        Ok(addresses) => {
            let ips: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
            if ips.iter().any(|ip| ip == host) {
                return Finding::ok("DNS", "not needed: cloudcore is given by its address");
            }
            let found = format!("{host} is {}", ips.join(", "));
            if blame::are_impossible(addresses) {
                let remedy = "no server can be there: the name servers of this network filter names, or a \
                              captive portal answers for them; log in to the network, or use others";
                return Finding::fail("DNS", found, remedy);
            }
            if addresses.iter().all(|address| address.ip().is_loopback()) {
                let remedy = "that is this machine: if cloudcore is elsewhere, the name servers of this \
                              network, or /etc/hosts, are wrong";
                return Finding::warn("DNS", found, remedy);
            }
            Finding::ok("DNS", found)
        }
        Err(error) if blame::is_no_server(error) => Finding::fail(
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

/// Tries all addresses at once: where families differ, both are told.
async fn route(address: &str, addresses: Vec<SocketAddr>) -> (Option<TcpStream>, Finding) {
    let began = clock::instant();
    let mut tries = JoinSet::new();
    for (index, target) in addresses.into_iter().take(ADDRESSES_MAX).enumerate() {
        tries.spawn(async move {
            let tried = timeout(STAGE_MAX, TcpStream::connect(target)).await;
            (index, target, tried.unwrap_or_else(|_| silent()), began.elapsed())
        });
    }
    let mut tried = tries.join_all().await;
    tried.sort_by_key(|(index, ..)| *index);
    let (mut answering, mut failed) = (None, Vec::new());
    for (_, target, outcome, took) in tried {
        match outcome {
            Ok(socket) if answering.is_none() => answering = Some((socket, target, took)),
            Ok(_) => {}
            Err(error) => failed.push((target, error)),
        }
    }
    let Some((socket, target, took)) = answering else {
        let error = failed.pop().map_or_else(|| io::ErrorKind::NotFound.into(), |(_, error)| error);
        return (None, no_route(address, &error));
    };
    let from = socket.local_addr().map(|local| format!(" from {}", local.ip())).unwrap_or_default();
    let found = format!("{target} answers{from} in {} ms", took.as_millis());

    (Some(socket), some_route(found, &failed))
}

/// Another address than the first may be a family without a route.
fn some_route(found: String, failed: &[(SocketAddr, io::Error)]) -> Finding {
    if failed.is_empty() {
        return Finding::ok("route", found);
    }
    let failed: Vec<_> =
        failed.iter().map(|(target, error)| format!("{}: {error}", target.ip())).collect();

    Finding::warn(
        "route",
        format!("{found}, but {}", failed.join("; ")),
        "the link takes the address that answers; other programs may wait for the one that does not",
    )
}

fn no_route(address: &str, error: &io::Error) -> Finding {
    let is = |kinds: &[io::ErrorKind]| kinds.contains(&error.kind());
    let remedy = if is(&[io::ErrorKind::ConnectionRefused]) {
        "nothing listens at that port: check the port, and whether cloudcore runs"
    } else if is(&[io::ErrorKind::NetworkUnreachable, io::ErrorKind::HostUnreachable]) {
        "this machine has no way there: check its address, its default route and its cable"
    } else {
        "packets get lost on the way: check the address, and firewalls for TCP to that port; where only a \
         proxy leads out, give --proxy"
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

/// Who answers, as far as that can be told without knowing cloudcore.
async fn somebody(way: &Way) -> Finding {
    let how = "give --token, or join this machine: without either nobody can tell who answers";
    let unknown =
        || Finding::warn("cloudcore", "answers; whether it is the right one is not known", how);
    let Ok(tls) = pin::nobody() else { return unknown() };
    match dial::connect(way, tls).await {
        Ok(_) | Err(DialError::Tls { problem: NoTls::Stranger | NoTls::Clock, .. }) => unknown(),
        Err(error) => no_cloudcore(&error),
    }
}

fn no_cloudcore(error: &DialError) -> Finding {
    if let DialError::Tls { address, problem, source } = error {
        return no_tls(address, *problem, source);
    }

    Finding::fail("cloudcore", ui::chain(error), "see the checks above")
}

fn no_tls(address: &str, problem: NoTls, error: &io::Error) -> Finding {
    Finding::fail("cloudcore", format!("{address}: {}: {error}", problem.found()), problem.remedy())
}

/// Whether packets pass that are as large as this machine believes they may be. The link's are small.
async fn large_packets(socket: TcpStream, tls: Arc<ClientConfig>) -> Finding {
    let name = ServerName::try_from(SERVER_NAME).expect("the name is a DNS name");
    let asking = async {
        let stream = TlsConnector::from(tls).connect(name, Carrier::from(socket)).await;

        ask(stream.map_err(Broken::Tls)?, LARGE_BYTES).await
    };
    match timeout(LARGE_MAX, asking).await {
        Err(_) | Ok(Err(Broken::Silent)) => Finding::warn(
            "large packets",
            "they get lost, and nobody says so: the MTU on the way is smaller than this machine believes",
            "the link takes small ones, but pulling images and what pods do may hang: lower the MTU of the \
             interface, or sysctl -w net.ipv4.tcp_mtu_probing=1",
        ),
        Ok(Err(error)) => Finding::warn("large packets", ui::chain(&error), "check again"),
        Ok(Ok(_)) => Finding::ok("large packets", "they arrive"),
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
enum Broken {
    /// Nothing came.
    #[error("there is no answer")]
    Silent,
    /// There is no TLS.
    #[error("no TLS")]
    Tls(#[source] io::Error),
    /// The connection broke.
    #[error("the connection broke")]
    Http(#[source] hyper::Error),
}

/// Asks for something with a head of at least so many bytes; when the answer was made, as it says.
async fn ask(stream: Stream, filler: usize) -> Result<Option<HeaderValue>, Broken> {
    let asking = async {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let filler = HeaderValue::from_bytes(&vec![b'x'; filler]).expect("it is text");
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

    timeout(STAGE_MAX, asking)
        .await
        .map_or(Err(Broken::Silent), |asked| asked.map_err(Broken::Http))
}

fn asked(address: &str, answer: Result<Option<HeaderValue>, Broken>) -> Finding {
    match answer {
        Ok(date) => {
            let theirs = date.and_then(|date| http_date(date.to_str().ok()?));
            clocks(theirs, crate::clock::now())
        }
        Err(error) => Finding::fail(
            "cloudcore",
            format!("{address} broke off: {}", ui::chain(&error)),
            "if this node has joined, its certificate may have expired or been revoked: join it anew",
        ),
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
    use edgecore::link::proxy::Proxy;

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
        for (ip, verdict) in [
            ("0.0.0.0:1", Verdict::Fail),
            ("127.0.0.1:1", Verdict::Warn),
            ("10.0.0.1:1", Verdict::Ok),
        ] {
            assert_eq!(names("cloud", &Ok(vec![ip.parse().unwrap()])).verdict, verdict, "{ip}");
        }
        assert!(names("192.0.2.1", &found).found.contains("not needed"));
    }

    #[test]
    fn who_answers_is_told_apart() {
        let silent = silent::<()>().unwrap_err();
        assert!(no_tls("c:1", NoTls::Http, &silent).remedy.contains("captive portal"));
        assert!(no_tls("c:1", NoTls::Stranger, &silent).found.contains("is not the cloudcore"));
        assert!(no_tls("c:1", NoTls::Silent, &silent).remedy.contains("MTU"));
        assert!(no_route("c:1", &io::ErrorKind::ConnectionRefused.into()).remedy.contains("port"));
        assert!(no_route("c:1", &silent).remedy.contains("firewalls"));
        let failed = [("[2001:db8::1]:1".parse().unwrap(), silent)];
        let finding = some_route("10.0.0.1:1 answers".to_owned(), &failed);
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.found.contains("but 2001:db8::1: no answer in time"), "{finding:?}");
    }

    #[test]
    fn which_proxy_is_taken_is_said() {
        let chosen = Proxy::parse("http://me:secret@proxy:3128").unwrap();
        let way = |proxy: Option<&Proxy>| {
            Ok(Way { proxy: proxy.cloned(), ..Way::straight("c:1".to_owned()) })
        };
        let through = Choice::Through(chosen.clone());
        for (choice, found, expected, verdict) in [
            (&Choice::Environment, None, "none is set", Verdict::Ok),
            (&Choice::Direct, None, "none, as is said", Verdict::Ok),
            (&through, Some(&chosen), "http://proxy:3128", Verdict::Ok),
            (&Choice::Environment, Some(&chosen), "by the environment", Verdict::Warn),
        ] {
            let finding = proxy(choice, &way(found));
            assert!(finding.found.contains(expected), "{finding:?}");
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(!finding.found.contains("secret"), "{finding:?}");
        }
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
