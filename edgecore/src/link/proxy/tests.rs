//! Addresses of proxies, what is exempt from them, and their answers.

use super::answer::{HEAD_BYTES_MAX, Head};
use super::*;

fn cloud(host: &str, port: u16) -> CloudAddress {
    CloudAddress { host: host.to_owned(), port }
}

#[test]
fn addresses_of_proxies_are_read() {
    for (text, shown, authorization) in [
        ("http://proxy:3128", "http://proxy:3128", None),
        ("proxy:3128", "http://proxy:3128", None),
        ("http://proxy/", "http://proxy:80", None),
        ("HTTPS://proxy.example.com", "https://proxy.example.com:443", None),
        ("http://[2001:db8::1]:8080", "http://[2001:db8::1]:8080", None),
        ("http://[2001:db8::1]", "http://[2001:db8::1]:80", None),
        ("http://me:word@10.0.0.1:1", "http://10.0.0.1:1", Some("Basic bWU6d29yZA==")),
        ("http://me@proxy:1", "http://proxy:1", Some("Basic bWU6")),
        ("http://a%40b:c%3Ad@proxy:1", "http://proxy:1", Some("Basic YUBiOmM6ZA==")),
        ("http://a@b:c@proxy:1", "http://proxy:1", Some("Basic YUBiOmM=")),
    ] {
        let proxy = Proxy::parse(text).unwrap();
        assert_eq!(proxy.to_string(), shown, "{text}");
        assert_eq!(proxy.authorization(), authorization, "{text}");
        assert_eq!(proxy.has_credentials(), authorization.is_some(), "{text}");
    }
}

#[test]
fn bad_addresses_of_proxies_are_told_without_their_passwords() {
    for (text, expected) in [
        ("", ProxyMalformed::Form),
        ("http://", ProxyMalformed::Form),
        ("http://me:secret@", ProxyMalformed::Form),
        ("http://proxy:0", ProxyMalformed::Form),
        ("http://proxy:port", ProxyMalformed::Form),
        ("http://proxy:1/path", ProxyMalformed::Form),
        ("http://2001:db8::1", ProxyMalformed::Form),
        ("http://[proxy]:1", ProxyMalformed::Form),
        ("http://pro xy:1", ProxyMalformed::Form),
        ("socks5://proxy:1080", ProxyMalformed::Scheme),
        ("http://me:%zz@proxy:1", ProxyMalformed::Encoding),
        ("http://me:%4@proxy:1", ProxyMalformed::Encoding),
        ("http://me:p/w@proxy:1", ProxyMalformed::Encoding),
        ("http://me:p w@proxy:1", ProxyMalformed::Encoding),
        ("http://me:%0d%0aX:%20y@proxy:1", ProxyMalformed::Encoding),
    ] {
        let error = Proxy::parse(text).unwrap_err();
        assert_eq!(error, expected, "{text}");
        assert!(!error.to_string().contains("secret"));
    }
    let proxy = Proxy::parse("http://me:secret@proxy:1").unwrap();
    let shown = format!("{proxy} {proxy:?} {:?}", Choice::Through(proxy.clone()));
    assert!(!shown.contains("secret") && !shown.contains("bWU6"), "{shown}");
}

#[test]
fn some_addresses_need_no_proxy() {
    for (host, list, expected) in [
        ("cloud.example.com", "", false),
        ("localhost", "", true),
        ("127.0.0.1", "", true),
        ("::1", "", true),
        ("cloud.example.com", "*", true),
        ("cloud.example.com", "example.com", true),
        ("Cloud.Example.com.", "a.test, EXAMPLE.com", true),
        ("example.com", "example.com", true),
        ("example.com", ".example.com", false),
        ("cloud.example.com", ".example.com", true),
        ("cloud.example.com", "*.example.com", true),
        ("badexample.com", "example.com", false),
        ("cloud.example.com", "cloud.example.com:10000", true),
        ("cloud.example.com", "cloud.example.com:443", false),
        ("cloud.example.com", ",,.", false),
        ("10.1.2.3", "10.0.0.0/8", true),
        ("10.1.2.3", "10.1.3.0/24", false),
        ("10.1.2.3", "0.0.0.0/0", true),
        ("10.1.2.3", "10.1.2.3", true),
        ("10.1.2.3", "10.1.2.3:10000", true),
        ("10.1.2.3", "10.1.2.3:1", false),
        ("10.1.2.3", "10.1.2.3/33", false),
        ("10.1.2.3", "::/0", false),
        ("2001:db8::1", "2001:db8::/32", true),
        ("2001:db8::1", "[2001:db8::1]", true),
        ("2001:db8::1", "[2001:db8::1]:10000", true),
        ("2001:db8::1", "2001:db9::/32", false),
    ] {
        assert_eq!(exempt::is_exempt(&cloud(host, 10000), list), expected, "{host} in {list:?}");
    }
}

#[test]
fn the_environment_says_which_proxy() {
    let found = |variables: &[(&str, &str)]| {
        let variable = |name: &str| {
            let found = variables.iter().find(|(of, _)| *of == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        of_environment(&cloud("cloud.example.com", 10000), variable)
            .map(|found| found.map(|(name, proxy)| format!("{name} {proxy}")))
            .map_err(|error| error.to_string())
    };
    let upper = Ok(Some("HTTPS_PROXY http://p:1".to_owned()));
    assert_eq!(found(&[]), Ok(None));
    assert_eq!(found(&[("HTTPS_PROXY", "p:1"), ("https_proxy", "q:1")]), upper);
    assert_eq!(
        found(&[("HTTPS_PROXY", ""), ("https_proxy", "q:1")]).unwrap().unwrap(),
        "https_proxy http://q:1"
    );
    assert_eq!(found(&[("HTTP_PROXY", "p:1"), ("NO_PROXY", "a.test")]), Ok(None));
    assert_eq!(found(&[("HTTPS_PROXY", "p:1"), ("no_proxy", "example.com")]), Ok(None));
    assert_eq!(found(&[("HTTPS_PROXY", "p:1"), ("NO_PROXY", "a.test")]), upper);
    let error = found(&[("HTTPS_PROXY", "socks5://me:secret@p:1")]).unwrap_err();
    assert!(error.starts_with("HTTPS_PROXY of the environment is neither"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_tunnel_is_asked_for() {
    assert_eq!(
        answer::request("[::1]:2", Some("Basic eDp5")),
        "CONNECT [::1]:2 HTTP/1.1\r\nHost: [::1]:2\r\nProxy-Authorization: Basic eDp5\r\n\r\n"
    );
    assert_eq!(answer::request("c:1", None), "CONNECT c:1 HTTP/1.1\r\nHost: c:1\r\n\r\n");
}

#[test]
fn answers_of_proxies_are_read() {
    let whole = |status, schemes: &str, is_more| Head::Whole {
        status,
        schemes: schemes.to_owned(),
        is_more,
    };
    let wants = "HTTP/1.1 407 Auth\r\nProxy-Authenticate: Negotiate\r\n\
                 proxy-authenticate: Basic realm=\"x\"\r\nProxy-Authenticate: \x1b[2J\r\n\r\n";
    for (text, expected) in [
        ("", Head::Partial),
        ("HTT", Head::Partial),
        ("HTTP/1.1 200 OK\r\n", Head::Partial),
        ("HTTP/1.1 200 Connection established\r\n\r\n", whole(200, "", false)),
        ("HTTP/1.0 200 OK\r\nVia: x\r\n\r\nmore", whole(200, "", true)),
        (wants, whole(407, "Negotiate, Basic", false)),
        ("HTTP/1.1 99999 x\r\n\r\n", Head::Foreign),
        ("HTTP/1.1 \r\n\r\n", Head::Foreign),
        ("SSH-2.0-x\r\n", Head::Foreign),
        ("<html>", Head::Foreign),
    ] {
        assert_eq!(answer::read(text.as_bytes()), expected, "{text:?}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_BYTES_MAX));
    assert_eq!(answer::read(endless.as_bytes()), Head::Foreign);
}

#[test]
fn what_a_refusal_means_is_said() {
    let wants = |are_given, schemes: &str| {
        ProxyError::Credentials { are_given, schemes: schemes.to_owned() }.to_string()
    };
    assert!(wants(false, "Basic").contains("the proxy wants credentials (407)"));
    assert!(wants(true, "NTLM, basic").contains("does not take the credentials"));
    assert!(wants(false, "NTLM").contains("only by NTLM"));
    let refused = |status| ProxyError::Refused { status }.to_string();
    assert!(refused(403).contains("403: it does not allow"));
    assert!(refused(502).contains("cannot reach cloudcore"));
}
