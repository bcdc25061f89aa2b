//! Folders with everything, and with something wrong.

use std::os::unix::fs::PermissionsExt as _;

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::clock;
use crate::telemetry::chain;

/// A folder with a certificate that is its own authority.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(2200, 1, 1);
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    let certificate = params.self_signed(&key).unwrap().pem();
    write(dir.path(), &certificate, &certificate, &key.serialize_pem()).unwrap();

    dir
}

#[test]
fn what_is_missing_or_wrong_is_named_with_the_remedy() {
    let check = |file: &str, content: Option<String>, expected: &str| {
        let dir = folder();
        match content {
            Some(content) => fs::write(dir.path().join(file), content).unwrap(),
            None => fs::remove_file(dir.path().join(file)).unwrap(),
        }
        let error = chain(&load(dir.path(), clock::since_1970()).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    for file in [CA_FILE, CERT_FILE, KEY_FILE] {
        check(file, None, &format!("{file}; join this node: edgeadm join"));
    }
    let nonsense = || Some("nonsense".to_owned());
    check(CA_FILE, nonsense(), "ca.crt holds no certificate in PEM; join this node anew");
    check(CERT_FILE, nonsense(), "node.crt holds no certificate in PEM; join this node anew");
    check(KEY_FILE, nonsense(), "node.key holds no private key in PEM; join this node anew");
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    check(KEY_FILE, Some(other_key), "does not take node.crt and node.key of");
}

#[test]
fn a_certificate_that_the_cloud_will_not_take_is_said_but_loads() {
    let check = |dir: &Path, now: u64, expected: Option<&str>| {
        let problem = load(dir, Duration::from_secs(now)).unwrap().problem;
        let said = problem.map(|error| error.to_string()).unwrap_or_default();
        assert!(expected.map_or(said.is_empty(), |part| said.contains(part)), "{said}");
    };
    let dir = folder();
    check(dir.path(), 1_800_000_000, None);
    check(dir.path(), 8_000_000_000, Some("certificate expired"));
    check(dir.path(), 1, Some("not valid yet"));
    fs::copy(folder().path().join(CA_FILE), dir.path().join(CA_FILE)).unwrap();
    check(dir.path(), 1_800_000_000, Some("invalid peer certificate"));
}

#[test]
fn joining_anew_changes_the_fingerprint_and_leaves_no_other_file() {
    let (dir, other) = (folder(), folder());
    let fingerprint = |dir: &Path| load(dir, clock::since_1970()).unwrap().fingerprint;
    let before = fingerprint(dir.path());
    let read = |file: &str| fs::read_to_string(other.path().join(file)).unwrap();
    // As a crash in the middle of writing would leave it.
    fs::write(dir.path().join(".node.key.new"), "half").unwrap();
    write(dir.path(), &read(CA_FILE), &read(CERT_FILE), &read(KEY_FILE)).unwrap();

    assert_ne!(fingerprint(dir.path()), before);
    assert_eq!(fingerprint(dir.path()), fingerprint(other.path()));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
