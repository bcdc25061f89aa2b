//! The downward API: fields of the pod and resources of its containers, as text.

use std::fmt::Write as _;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ResourceFieldSelector};

use crate::pod::PodView;
use crate::quantity;
use crate::resources::{HUGE_PAGES, Machine, Side, amount, whole_limit};

/// What only the node knows of a pod's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFields {
    /// `spec.nodeName`.
    pub name: String,
    /// The edge's own addresses, the primary first.
    pub ips: Vec<String>,
    /// Addresses of the pod; empty before its sandbox runs.
    pub pod_ips: Vec<String>,
    /// Allocatable CPU in thousandths: the limit of a container that has none.
    pub cpu_milli: i64,
    /// Allocatable memory in bytes.
    pub memory_bytes: i64,
    /// Allocatable ephemeral storage in bytes.
    pub storage_bytes: i64,
    /// The machine that it is.
    pub machine: Arc<Machine>,
}

/// Why there is no such field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Not a path of the downward API.
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    /// Not a resource of the downward API.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// The container is not in the pod.
    #[error("container {0} not found")]
    Container(String),
    /// The divisor is no positive quantity.
    #[error("divisor {0} is not a positive quantity")]
    Divisor(String),
}

/// The value of `fieldPath`.
pub fn pod_field(pod: &PodView, path: &str, node: &NodeFields) -> Result<String, FieldError> {
    let metadata = &pod.pod.metadata;
    if let Some((which, key)) = subscript(path) {
        let map = match which {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(FieldError::Path(path.to_owned())),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let spec = pod.spec();
    let pod_ips = if pod.host_network() { &node.ips } else { &node.pod_ips };
    Ok(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.to_string(),
        "metadata.labels" => formatted(metadata.labels.iter().flatten()),
        "metadata.annotations" => formatted(metadata.annotations.iter().flatten()),
        "spec.nodeName" => node.name.clone(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => node.ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => node.ips.join(","),
        "status.podIP" => pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => pod_ips.join(","),
        _ => return Err(FieldError::Path(path.to_owned())),
    })
}

/// `metadata.labels['key']` in its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let key = key
        .strip_prefix('\'')
        .and_then(|key| key.strip_suffix('\''))
        .or_else(|| key.strip_prefix('"').and_then(|key| key.strip_suffix('"')))?;

    Some((map, key))
}

/// `key="value"` lines, sorted (`fieldpath.FormatMap`).
fn formatted<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let lines: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", quoted(value))).collect();

    lines.join("\n")
}

/// Text as Go's `%q` writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    // Writing to a String cannot fail.
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');

    out
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
pub fn resource_field(
    pod: &PodView,
    field: &ResourceFieldSelector,
    own: Option<&Container>,
    node: &NodeFields,
) -> Result<String, FieldError> {
    let named = field.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match (named, own) {
        (None, Some(container)) => container,
        (name, _) => {
            let name = name.unwrap_or_default();
            pod.all_containers()
                .find(|container| container.name == name)
                .ok_or_else(|| FieldError::Container(name.to_owned()))?
        }
    };
    let unsupported = || FieldError::Resource(field.resource.clone());
    let (side, name) = match field.resource.split_once('.').ok_or_else(unsupported)? {
        ("limits", name) => (Side::Limits, name),
        ("requests", name) => (Side::Requests, name),
        _ => return Err(unsupported()),
    };
    // What has no limit may have all of the pod's, or of the node's.
    let otherwise = match (side, name) {
        (Side::Limits, "cpu") => whole_limit(pod, name).unwrap_or(node.cpu_milli),
        (Side::Limits, "memory") => whole_limit(pod, name).unwrap_or(node.memory_bytes),
        (Side::Limits, "ephemeral-storage") => node.storage_bytes,
        (Side::Requests, "cpu" | "memory" | "ephemeral-storage") => 0,
        (_, pages) if pages.starts_with(HUGE_PAGES) => 0,
        _ => return Err(unsupported()),
    };
    let own = container.resources.as_ref().and_then(|all| amount(all, side, name));
    let (value, milli) = (own.filter(|own| *own > 0).unwrap_or(otherwise), name == "cpu");
    let divisor = field.divisor.as_ref().filter(|divisor| divisor.0 != "0");
    let bad = || FieldError::Divisor(divisor.map(|d| d.0.clone()).unwrap_or_default());
    let by = match (divisor, milli) {
        (None, true) => 1000,
        (None, false) => 1,
        (Some(divisor), true) => quantity::milli(divisor).ok_or_else(bad)?,
        (Some(divisor), false) => quantity::units(divisor).ok_or_else(bad)?,
    };
    if by <= 0 {
        return Err(bad());
    }

    Ok((value.saturating_add(by - 1) / by).to_string())
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn text_is_quoted_as_go_does() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            (r#"a "b" \c"#, r#""a \"b\" \\c""#),
            ("1\n2\t3\r", r#""1\n2\t3\r""#),
            ("\u{7}\u{8}\u{b}\u{c}\0\u{1b}\u{7f}", r#""\a\b\v\f\x00\x1b\x7f""#),
            ("\u{85}", r#""\u0085""#),
            ("größe 'x' \u{1f600}", "\"größe 'x' \u{1f600}\""),
        ] {
            assert_eq!(quoted(text), expected, "{text:?}");
        }
    }
}
