//! Folders with everything, and with something wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::KeyPair;

use super::files::tests::{pair, write_old};
use super::*;
use crate::clock;
use crate::telemetry::chain;

/// A folder with a certificate that is its own authority.
fn folder() -> tempfile::TempDir {
    let (dir, (certificate, key)) = (tempfile::tempdir().unwrap(), pair());
    write(dir.path(), &certificate, &certificate, &key).unwrap();

    dir
}

/// As written before there was `node.pem`.
fn old_folder() -> tempfile::TempDir {
    let (dir, (certificate, key)) = (tempfile::tempdir().unwrap(), pair());
    write_old(dir.path(), &certificate, &certificate, &key);

    dir
}

#[test]
fn what_is_missing_or_wrong_is_named_with_the_remedy() {
    let check = |dir: tempfile::TempDir, file: &str, content: Option<&str>, expected: &str| {
        match content {
            Some(content) => fs::write(dir.path().join(file), content).unwrap(),
            None => fs::remove_file(dir.path().join(file)).unwrap(),
        }
        let error = chain(&load(dir.path(), clock::since_1970()).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    for file in [CA_FILE, NODE_FILE] {
        check(folder(), file, None, &format!("{file}; join this node: edgeadm join"));
    }
    check(old_folder(), KEY_FILE, None, "node.key; join this node: edgeadm join");
    check(old_folder(), CERT_FILE, None, "node.pem; join this node: edgeadm join");
    let nonsense = Some("nonsense");
    check(folder(), CA_FILE, nonsense, "ca.crt holds no certificate in PEM; join this node anew");
    check(folder(), NODE_FILE, nonsense, "node.pem holds no certificate in PEM; join this node");
    check(old_folder(), KEY_FILE, nonsense, "node.key holds no private key in PEM; join this");
    let (certificate, key) = pair();
    check(folder(), NODE_FILE, Some(&certificate), "node.pem holds no private key in PEM");
    let unnamed = format!("{key}{certificate}");
    check(folder(), NODE_FILE, Some(&unnamed), "node.pem holds no join-id of hexadecimal digits");
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let mixed = format!("join-id: 00\n{other_key}{certificate}");
    check(folder(), NODE_FILE, Some(&mixed), "TLS does not take key and certificate of");
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
    // The authority has signed it, so it has begun.
    check(dir.path(), 1, None);
    fs::copy(folder().path().join(CA_FILE), dir.path().join(CA_FILE)).unwrap();
    check(dir.path(), 1_800_000_000, Some("invalid peer certificate"));
}

#[test]
fn joining_anew_is_another_join_and_leaves_no_other_file() {
    for dir in [folder(), old_folder()] {
        let join_id = || load(dir.path(), clock::since_1970()).unwrap().join_id;
        let before = join_id();
        // As a crash in the middle of writing would leave it.
        fs::write(dir.path().join(".node.pem.new"), "half").unwrap();
        let (certificate, key) = pair();
        write(dir.path(), &certificate, &certificate, &key).unwrap();

        assert_ne!(join_id(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        let mode = fs::metadata(dir.path().join(NODE_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn an_identity_of_the_old_layout_is_known_by_its_certificate() {
    let dir = old_folder();
    let identity = load(dir.path(), clock::since_1970()).unwrap();
    let text = fs::read(dir.path().join(CERT_FILE)).unwrap();
    let certificate = CertificateDer::from_pem_slice(&text).unwrap();
    assert_eq!(identity.join_id, digest(&SHA256, &certificate).as_ref());
    assert!(identity.validity.is_some());
}
