//! Which user and password goes with an image: pull secrets, matched as the kubelet matches them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cri_api::v1::AuthConfig;
use serde::Deserialize;

/// The key under which credentials of Docker's own registry are kept.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// `.dockerconfigjson`.
#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// Credentials by registry, from the pull secrets of one pod.
#[derive(Clone, Default)]
pub struct Keyring {
    /// In the order in which they were found: `host[:port][/path]`, host labels may be globs.
    entries: Vec<(String, AuthConfig)>,
}

impl Keyring {
    /// Adds what one Secret holds, by its data: `.dockerconfigjson` or `.dockercfg`. Says whether
    /// the data was understood.
    pub fn add(&mut self, data: &BTreeMap<String, Vec<u8>>) -> bool {
        let entries = if let Some(json) = data.get(".dockerconfigjson") {
            serde_json::from_slice::<ConfigJson>(json).map(|config| config.auths)
        } else if let Some(json) = data.get(".dockercfg") {
            serde_json::from_slice(json)
        } else {
            return false;
        };
        let Ok(entries): Result<BTreeMap<String, Entry>, _> = entries else { return false };
        for (location, entry) in entries {
            self.entries.push((key_of(&location), auth_config(entry)));
        }

        true
    }

    /// Credentials to try for `image`, the most specific first. Empty: pull without any.
    pub fn lookup(&self, image: &str) -> Vec<AuthConfig> {
        let mut found: Vec<_> =
            self.entries.iter().filter(|(key, _)| matches(key, image)).collect();
        // The longest path is the most specific; the sort keeps the order of the secrets.
        found.sort_by(|(a, _), (b, _)| b.cmp(a));
        if found.is_empty() && is_default_registry(image) {
            found = self.entries.iter().filter(|(key, _)| key == DEFAULT_REGISTRY).collect();
        }

        found.into_iter().map(|(_, auth)| auth.clone()).collect()
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|(key, _)| key)).finish()
    }
}

/// `https://host/v1/path` becomes `host/path`.
fn key_of(location: &str) -> String {
    let bare = location
        .strip_prefix("https://")
        .or_else(|| location.strip_prefix("http://"))
        .unwrap_or(location);
    let (host, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    let versioned = path.starts_with("/v1/") || path.starts_with("/v2/");
    let path = if versioned { &path[3..] } else { path };

    format!("{host}{}", path.trim_end_matches('/'))
}

/// Without `server_address`, as the kubelet: containerd takes the credentials for another registry's
/// when that is not the very host it asks (`ParseAuth` in its CRI plugin), which may be a mirror.
fn auth_config(entry: Entry) -> AuthConfig {
    let decoded = STANDARD.decode(entry.auth.trim()).ok().and_then(|b| String::from_utf8(b).ok());
    let pair = decoded.as_deref().and_then(|text| text.trim_matches('\0').split_once(':'));
    let (username, password) = match pair {
        Some((username, password)) if entry.username.is_empty() => {
            (username.to_owned(), password.to_owned())
        }
        _ => (entry.username, entry.password),
    };

    AuthConfig { username, password, identity_token: entry.identity_token, ..AuthConfig::default() }
}

/// Whether the image `host[:port]/path` belongs to `key`.
fn matches(key: &str, image: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, path) = text.split_at(text.find('/').unwrap_or(text.len()));
        (host.to_owned(), path.to_owned())
    };
    let ((key_host, key_path), (host, path)) = (split(key), split(image));
    let name_port = |host: &str| -> (String, String) {
        let (name, port) = host.split_once(':').unwrap_or((host, ""));
        (name.to_owned(), port.to_owned())
    };
    let ((key_name, key_port), (name, port)) = (name_port(&key_host), name_port(&host));
    let (key_labels, labels): (Vec<_>, Vec<_>) =
        (key_name.split('.').collect(), name.split('.').collect());

    key_port == port
        && key_labels.len() == labels.len()
        && key_labels.iter().zip(&labels).all(|(glob, label)| glob_matches(glob, label))
        && path.starts_with(&key_path)
}

/// `*` stands for any run of characters within one label, `?` for one.
fn glob_matches(glob: &str, text: &str) -> bool {
    let mut glob_chars = glob.chars();
    match glob_chars.next() {
        None => text.is_empty(),
        Some('*') => {
            let rest = glob_chars.as_str();
            text.char_indices()
                .map(|(at, _)| at)
                .chain([text.len()])
                .any(|at| glob_matches(rest, &text[at..]))
        }
        Some(wanted) => {
            let mut text_chars = text.chars();
            text_chars.next().is_some_and(|c| c == wanted || wanted == '?')
                && glob_matches(glob_chars.as_str(), text_chars.as_str())
        }
    }
}

/// Whether `image` names no registry, or Docker's.
fn is_default_registry(image: &str) -> bool {
    match image.split_once('/') {
        None => !image.is_empty(),
        Some(("", _)) => false,
        Some((host, _)) => {
            matches!(host, "docker.io" | DEFAULT_REGISTRY) || !host.contains(['.', ':'])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(json: &str) -> Keyring {
        let mut keyring = Keyring::default();
        assert!(keyring.add(&BTreeMap::from([(".dockerconfigjson".into(), json.into())])));
        keyring
    }

    fn check(image: &str, expected: &[&str]) {
        let keyring = keyring(
            r#"{"auths":{
                "https://registry.example.com/v2/": {"username":"whole","password":"p"},
                "registry.example.com/team": {"username":"team","password":"p"},
                "*.wild.example": {"username":"wild","password":"p"},
                "local:5000": {"auth":"bG9jYWw6cGFzczp3b3Jk"},
                "https://index.docker.io/v1/": {"username":"hub","password":"p"}
            }}"#,
        );
        let found = keyring.lookup(image);
        let users: Vec<_> = found.iter().map(|auth| auth.username.as_str()).collect();
        assert_eq!(users, expected, "{image}");
        assert!(found.iter().all(|auth| auth.server_address.is_empty()), "{found:?}");
    }

    #[test]
    fn the_most_specific_match_comes_first() {
        check("registry.example.com/team/app:1", &["team", "whole"]);
        check("registry.example.com/other:1", &["whole"]);
        check("a.wild.example/app", &["wild"]);
        check("a.b.wild.example/app", &[]);
        check("local:5000/app@sha256:00", &["local"]);
        check("local:5001/app", &[]);
        check("busybox", &["hub"]);
        check("library/busybox:1", &["hub"]);
        check("docker.io/library/busybox", &["hub"]);
        check("other.example/busybox", &[]);
    }

    #[test]
    fn passwords_may_hold_colons_and_stay_out_of_logs() {
        let keyring = keyring(r#"{"auths":{"local:5000": {"auth":"bG9jYWw6cGFzczp3b3Jk"}}}"#);
        assert_eq!(keyring.lookup("local:5000/a")[0].password, "pass:word");
        assert!(!format!("{keyring:?}").contains("pass"));
    }

    #[test]
    fn other_data_is_said_not_to_be_understood() {
        let mut keyring = Keyring::default();
        assert!(!keyring.add(&BTreeMap::from([("password".into(), b"x".to_vec())])));
        assert!(!keyring.add(&BTreeMap::from([(".dockercfg".into(), b"[]".to_vec())])));
        let old = br#"{"r.example":{"username":"u","password":"p"}}"#;
        assert!(keyring.add(&BTreeMap::from([(".dockercfg".into(), old.to_vec())])));
        assert_eq!(keyring.lookup("r.example/x").len(), 1);
    }
}
