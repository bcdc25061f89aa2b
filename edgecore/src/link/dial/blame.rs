//! What a dial that failed says of the network: who answers instead of cloudcore, and which names are wrong.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio_rustls::rustls::{CertificateError, Error as TlsError};

/// Why there is no TLS with who took the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTls {
    /// It answers as web servers do.
    Http,
    /// It answers otherwise.
    Foreign,
    /// Its certificate is by another authority, or for another name.
    Stranger,
    /// Its certificate is not valid at this time.
    Clock,
    /// It says nothing.
    Silent,
    /// It ends the connection.
    Closed,
    /// For another reason.
    Other,
}

impl NoTls {
    /// Of the error of a handshake, and the first bytes that the peer sent.
    pub fn of(error: &io::Error, first: &[u8]) -> Self {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
        let tls = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>());
        match tls {
            Some(TlsError::InvalidMessage(_)) if first.starts_with(b"HTTP/") => Self::Http,
            Some(TlsError::InvalidMessage(_)) => Self::Foreign,
            Some(TlsError::InvalidCertificate(problem)) if is_of_time(problem) => Self::Clock,
            Some(TlsError::InvalidCertificate(_)) => Self::Stranger,
            None if error.kind() == TimedOut => Self::Silent,
            None if matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted) => {
                Self::Closed
            }
            Some(_) | None => Self::Other,
        }
    }

    /// What is there.
    pub fn found(self) -> &'static str {
        match self {
            Self::Http => "a web server answers there, without TLS",
            Self::Foreign => "what answers there does not speak TLS",
            Self::Stranger => "what answers there is not the cloudcore that this node knows",
            Self::Clock => "the certificate of what answers there is not valid by this clock",
            Self::Silent => "it takes the connection and then says nothing",
            Self::Closed => "it takes the connection and ends it at once",
            Self::Other => "it does not agree",
        }
    }

    /// What to do.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Http => {
                "it is a captive portal of this network or another service: log in to the network, or \
                 check address and port"
            }
            Self::Foreign => "it is another service: check address and port",
            Self::Stranger => {
                "check the address; a wrong answer of a name server, a captive portal and a proxy that \
                 opens TLS look like this"
            }
            Self::Clock => {
                "its time is over by all that is known here: somebody plays an old cloudcore, or the clocks \
                 of cloudcore and this machine differ by years; set them"
            }
            Self::Silent => {
                "a firewall lets only the first packets pass, or packets of 1280 bytes are too large for \
                 the way (MTU)"
            }
            Self::Closed => {
                "a firewall lets no TLS pass, or cloudcore is overloaded or stops: check what is between"
            }
            Self::Other => "check that cloudcore listens there and nothing in between opens TLS",
        }
    }
}

fn is_of_time(problem: &CertificateError) -> bool {
    matches!(
        problem,
        CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. }
    )
}

/// Whether no name server answered, rather than one that does not know the name: the C library has words of
/// its own for that.
pub fn is_no_server(error: &io::Error) -> bool {
    let text = error.to_string();

    error.kind() == io::ErrorKind::TimedOut
        || text.contains("Temporary failure")
        || text.contains("Try again")
}

/// Whether a server can be at none of these: filters of names answer so.
pub fn are_impossible(addresses: &[SocketAddr]) -> bool {
    let is_impossible = |ip: IpAddr| match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
    };

    !addresses.is_empty() && addresses.iter().all(|address| is_impossible(address.ip()))
}

/// HOST:PORT, with the address that a name stands for.
pub fn shown(address: &str, ip: Option<IpAddr>) -> String {
    match ip {
        Some(ip) if address.parse::<SocketAddr>().is_err() => format!("{address} ({ip})"),
        Some(_) | None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::{AlertDescription, InvalidMessage};

    use super::*;

    #[test]
    fn who_answers_instead_is_told_apart() {
        let tls = |error: TlsError| io::Error::new(io::ErrorKind::InvalidData, error);
        let message = || tls(TlsError::InvalidMessage(InvalidMessage::InvalidContentType));
        let certificate = |problem| tls(TlsError::InvalidCertificate(problem));
        for (error, first, expected) in [
            (message(), &b"HTTP/1.1"[..], NoTls::Http),
            (message(), &b"SSH-2.0-"[..], NoTls::Foreign),
            (message(), &b""[..], NoTls::Foreign),
            (certificate(CertificateError::UnknownIssuer), &b""[..], NoTls::Stranger),
            (certificate(CertificateError::Expired), &b""[..], NoTls::Clock),
            (
                tls(TlsError::AlertReceived(AlertDescription::HandshakeFailure)),
                &b""[..],
                NoTls::Other,
            ),
            (io::ErrorKind::TimedOut.into(), &b""[..], NoTls::Silent),
            (io::ErrorKind::UnexpectedEof.into(), &b""[..], NoTls::Closed),
            (io::ErrorKind::ConnectionReset.into(), &b""[..], NoTls::Closed),
            (io::ErrorKind::BrokenPipe.into(), &b""[..], NoTls::Other),
        ] {
            assert_eq!(NoTls::of(&error, first), expected, "{error}");
        }
        assert!(NoTls::Http.remedy().contains("captive portal"));
    }

    #[test]
    fn wrong_answers_of_name_servers_are_known() {
        let parse = |list: &[&str]| -> Vec<SocketAddr> {
            list.iter().map(|address| address.parse().unwrap()).collect()
        };
        for (list, expected) in [
            (&["0.0.0.0:1"][..], true),
            (&["[::]:1", "0.0.0.0:1"][..], true),
            (&["[::ffff:0.0.0.0]:1"][..], true),
            (&["255.255.255.255:1"][..], true),
            (&["0.0.0.0:1", "10.0.0.1:1"][..], false),
            (&["127.0.0.1:1"][..], false),
            (&[][..], false),
        ] {
            assert_eq!(are_impossible(&parse(list)), expected, "{list:?}");
        }
        let failed = |text: &str| io::Error::other(format!("failed to lookup: {text}"));
        assert!(is_no_server(&failed("Temporary failure in name resolution")));
        assert!(!is_no_server(&failed("Name or service not known")));
    }

    #[test]
    fn names_are_shown_with_what_they_stand_for() {
        let ip = Some("10.0.0.1".parse().unwrap());
        assert_eq!(shown("cloud:1", ip), "cloud:1 (10.0.0.1)");
        assert_eq!(shown("10.0.0.1:1", ip), "10.0.0.1:1");
        assert_eq!(shown("cloud:1", None), "cloud:1");
    }
}
