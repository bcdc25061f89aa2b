//! Cuts what looks like a secret from what is collected, whatever it came from.

use std::borrow::Cow;

/// Stands where something was cut.
const CUT: &str = "<cut>";
/// Parts of names whose values are nobody's business.
const NAMES: [&str; 6] = ["password", "passwd", "secret", "token", "apikey", "api_key"];

/// `text` without private keys, join tokens, tokens of service accounts and values of odd names.
pub(crate) fn text(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        in_key |= line.contains("-----BEGIN") && line.contains("PRIVATE KEY");
        if in_key {
            if line.contains("-----END") {
                in_key = false;
                kept.push_str(CUT);
                kept.push('\n');
            }
            continue;
        }
        kept.push_str(&words(&proxy(line)));
    }

    kept
}

/// The line of a configuration that says which proxy, whose password may be anything.
fn proxy(line: &str) -> Cow<'_, str> {
    let is_it = line.trim_start().trim_start_matches(['"', '\'']).starts_with("proxy");
    match line.rsplit_once('@') {
        Some((_, place)) if is_it => format!("proxy: {CUT}@{place}").into(),
        Some(_) | None => line.into(),
    }
}

/// A line without what is a secret by its form.
fn words(line: &str) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || "._-+/=".contains(c);
    let (mut kept, mut rest) = (String::with_capacity(line.len()), line);
    while let Some(start) = rest.find(is_of_word) {
        kept.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        kept.push_str(if is_secret(word) { CUT } else { word });
        rest = &rest[end..];
    }
    kept.push_str(rest);

    credentials(&kept)
}

/// A join token, or a JSON Web Token, also one in an assignment.
fn is_secret(word: &str) -> bool {
    word.split('=').any(|part| {
        part.starts_with("hf1.") || (part.starts_with("eyJ") && part.matches('.').count() == 2)
    })
}

/// Cuts `USER:PASSWORD@` of addresses.
fn credentials(line: &str) -> String {
    let (mut kept, mut rest) = (String::with_capacity(line.len()), line);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        kept.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/\"',".contains(c));
        let authority = &after[..end.unwrap_or(after.len())];
        match authority.rfind('@') {
            Some(at) => {
                kept.push_str(CUT);
                rest = &after[at..];
            }
            None => rest = after,
        }
    }
    kept.push_str(rest);

    kept
}

/// Whether the value under this name is to be cut.
pub(super) fn is_private(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace('-', "_");

    NAMES.iter().any(|private| name.contains(private))
}

/// Cuts values of environment variables, and copies of whole objects, from a pod.
pub(super) fn pod(pod: &mut serde_json::Value) {
    if let Some(annotations) = pod["metadata"]["annotations"].as_object_mut() {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        for (name, value) in annotations {
            if is_private(name) {
                *value = CUT.into();
            }
        }
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let containers = pod["spec"][list].as_array_mut().into_iter().flatten();
        for variable in containers.filter_map(|c| c["env"].as_array_mut()).flatten() {
            if variable.get("value").is_some() {
                variable["value"] = CUT.into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_cut_by_their_form() {
        for (given, expected) in [
            ("nothing here\n", "nothing here\n"),
            ("joined with hf1.ab.cd.ef now", "joined with <cut> now"),
            ("token=eyJhbGci.eyJpc3Mi.c2ln\"", "<cut>\""),
            ("eyJ.no", "eyJ.no"),
            ("hf1.ab.cd.ef=x token==hf1.ab.cd.ef=", "<cut> <cut>"),
            ("via http://me:word@proxy:3128/x", "via http://<cut>@proxy:3128/x"),
            ("proxy: http://me:word@proxy:3128/x", "proxy: <cut>@proxy:3128/x"),
            ("  \"proxy\": 'me:w/or@d@proxy:1'\n", "proxy: <cut>@proxy:1'\n"),
            ("proxy: none\nproxyAuthorities: /etc/x", "proxy: none\nproxyAuthorities: /etc/x"),
            ("http://host/a@b and unix:///run/x", "http://host/a@b and unix:///run/x"),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nMIG\nabc\n-----END EC PRIVATE KEY-----\nb\n",
                "a\n<cut>\nb\n",
            ),
            ("-----BEGIN PRIVATE KEY-----\nMIG", ""),
            ("é hf1.x é", "é <cut> é"),
        ] {
            assert_eq!(text(given), expected, "{given:?}");
        }
    }

    #[test]
    fn values_of_variables_are_cut_from_pods() {
        let mut given = json!({
            "metadata": { "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "all of it",
                "example.com/api-key": "k", "note": "n",
            }},
            "spec": { "containers": [{ "env": [{ "name": "A", "value": "v" }, { "name": "B" }] }] },
        });
        pod(&mut given);
        assert_eq!(
            given["metadata"]["annotations"],
            json!({ "example.com/api-key": "<cut>", "note": "n" })
        );
        let env = &given["spec"]["containers"][0]["env"];
        assert_eq!(*env, json!([{ "name": "A", "value": "<cut>" }, { "name": "B" }]));
    }
}
