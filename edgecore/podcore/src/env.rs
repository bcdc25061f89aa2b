//! The environment of a container: Services, envFrom, env, in this order, later ones win.
//!
//! The rules are the kubelet's (`pkg/kubelet/kubelet_pods.go`, `pkg/kubelet/envvars`).

mod fields;
mod file;
mod services;

use std::collections::BTreeMap;

use cri_api::v1::KeyValue;
use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVarSource, FileKeySelector};

pub use self::fields::{FieldError, NodeFields, pod_field, resource_field};
pub use self::file::EnvFile;
use crate::materials::Materials;
use crate::pod::PodView;

/// Why a container's environment cannot be made: it waits with `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap or Secret lacks the key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// ConfigMap or Secret.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A ConfigMap or Secret is not there.
    #[error("{kind} \"{name}\" not found")]
    Missing {
        /// configmap or secret.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A Secret's value is not UTF-8, which no environment can hold.
    #[error("the value of key {key} in secret {name} is not UTF-8")]
    NotText {
        /// The Secret.
        name: String,
        /// The key.
        key: String,
    },
    /// A field that does not exist.
    #[error("environment variable {variable}: {source}")]
    Field {
        /// The variable.
        variable: String,
        /// Why.
        source: FieldError,
    },
    /// A volume that a file of variables shall be in.
    #[error("cannot find the volume \"{volume}\" referenced by FileKeyRef")]
    NoVolume {
        /// The volume.
        volume: String,
    },
    /// A file of variables that is not there, or not understood.
    #[error("couldn't parse env file")]
    File,
    /// A file of variables without the variable.
    #[error("environment variable key \"{key}\" not found in file \"{path}\"")]
    NotInFile {
        /// The variable in the file.
        key: String,
        /// The file.
        path: String,
    },
    /// A source this build does not know.
    #[error("environment variable {variable} has a source that this node does not support")]
    Unsupported {
        /// The variable.
        variable: String,
    },
}

/// The variables for the runtime, sorted as they were set.
pub fn environment(
    pod: &PodView,
    container: &Container,
    materials: &Materials,
    node: &NodeFields,
) -> Result<Vec<KeyValue>, EnvError> {
    let links = pod.spec().enable_service_links.unwrap_or(true);
    let services = services::variables(&pod.namespace, &materials.services, links);
    let mut set = Ordered::default();
    for source in container.env_from.as_deref().unwrap_or_default() {
        for (name, value) in from_source(pod, source, materials)? {
            set.put(name, value);
        }
    }
    for variable in container.env.as_deref().unwrap_or_default() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(source)) => value_of(pod, container, &variable.name, source, materials, node)?,
            (Some(text), None) => Some(expand(text, |name| {
                set.get(name).or_else(|| services.get(name)).map(str::to_owned)
            })),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set.put(variable.name.clone(), value);
        }
    }
    // Services only fill what the pod does not set itself.
    let mut result = set.items;
    for (name, value) in services.0 {
        if !result.iter().any(|(other, _)| *other == name) {
            result.push((name, value));
        }
    }

    Ok(result.into_iter().map(|(key, value)| KeyValue { key, value }).collect())
}

/// Variables in the order they were first set.
#[derive(Default)]
struct Ordered {
    items: Vec<(String, String)>,
}

impl Ordered {
    fn put(&mut self, name: String, value: String) {
        match self.items.iter_mut().find(|(other, _)| *other == name) {
            Some((_, old)) => *old = value,
            None => self.items.push((name, value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.items.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

fn from_source(
    pod: &PodView,
    source: &EnvFromSource,
    materials: &Materials,
) -> Result<Vec<(String, String)>, EnvError> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut found = BTreeMap::new();
    if let Some(map) = &source.config_map_ref {
        match materials.config_maps.get(&map.name) {
            Some(object) => found.extend(object.data.clone().unwrap_or_default()),
            None if map.optional.unwrap_or(false) => {}
            None => return Err(missing("configmap", &map.name)),
        }
    }
    if let Some(secret) = &source.secret_ref {
        match materials.secrets.get(&secret.name) {
            Some(object) => {
                for key in object.data.iter().flatten().map(|(key, _)| key) {
                    let text = secret_text(pod, materials, &secret.name, key)?;
                    found.extend(text.map(|text| (key.clone(), text)));
                }
            }
            None if secret.optional.unwrap_or(false) => {}
            None => return Err(missing("secret", &secret.name)),
        }
    }

    Ok(found
        .into_iter()
        .map(|(name, value)| (format!("{prefix}{name}"), value))
        .filter(|(name, _)| is_variable_name(name))
        .collect())
}

fn missing(kind: &'static str, name: &str) -> EnvError {
    EnvError::Missing { kind, name: name.to_owned() }
}

/// What an environment can hold: no `=`, nothing unprintable, not empty (relaxed names, KEP-4369).
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

fn value_of(
    pod: &PodView,
    container: &Container,
    variable: &str,
    source: &EnvVarSource,
    materials: &Materials,
    node: &NodeFields,
) -> Result<Option<String>, EnvError> {
    let wrap = |source| EnvError::Field { variable: variable.to_owned(), source };
    if let Some(field) = &source.field_ref {
        return pod_field(pod, &field.field_path, node).map(Some).map_err(wrap);
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_field(pod, field, Some(container), node).map(Some).map_err(wrap);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional.unwrap_or(false);
        let Some(object) = materials.config_maps.get(&key.name) else {
            return if optional { Ok(None) } else { Err(missing("configmap", &key.name)) };
        };
        let value = object.data.as_ref().and_then(|data| data.get(&key.key));
        return match value {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(no_key("ConfigMap", pod, &key.name, &key.key)),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional.unwrap_or(false);
        if !materials.secrets.contains_key(&key.name) {
            return if optional { Ok(None) } else { Err(missing("secret", &key.name)) };
        }
        return match secret_text(pod, materials, &key.name, &key.key)? {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None => Err(no_key("Secret", pod, &key.name, &key.key)),
        };
    }

    if let Some(key) = &source.file_key_ref {
        return from_file(key, materials);
    }

    Err(EnvError::Unsupported { variable: variable.to_owned() })
}

fn from_file(key: &FileKeySelector, materials: &Materials) -> Result<Option<String>, EnvError> {
    let place = (key.volume_name.clone(), key.path.clone());
    let file = materials.env_files.get(&place);
    let file = file.ok_or_else(|| EnvError::NoVolume { volume: key.volume_name.clone() })?;
    let text = file.text.as_ref().ok_or(EnvError::File)?;
    let value = file::value(text, &key.key).map_err(|_| EnvError::File)?;
    match (value.is_empty(), key.optional) {
        (false, _) => Ok(Some(value)),
        (true, Some(true)) => Ok(None),
        (true, _) => Err(EnvError::NotInFile { key: key.key.clone(), path: file.path.clone() }),
    }
}

/// The files of variables that a container needs: volume and path in it.
pub fn env_files(container: &Container) -> impl Iterator<Item = (&str, &str)> {
    let sources = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref());
    let keys = sources.filter_map(|source| source.file_key_ref.as_ref());

    keys.map(|key| (key.volume_name.as_str(), key.path.as_str()))
}

fn no_key(kind: &'static str, pod: &PodView, name: &str, key: &str) -> EnvError {
    EnvError::NoKey {
        kind,
        namespace: pod.namespace.clone(),
        name: name.to_owned(),
        key: key.to_owned(),
    }
}

fn secret_text(
    _pod: &PodView,
    materials: &Materials,
    name: &str,
    key: &str,
) -> Result<Option<String>, EnvError> {
    let data = materials.secrets.get(name).and_then(|secret| secret.data.as_ref());
    let Some(bytes) = data.and_then(|data| data.get(key)) else { return Ok(None) };
    let text = String::from_utf8(bytes.0.clone());

    text.map(Some).map_err(|_| EnvError::NotText { name: name.to_owned(), key: key.to_owned() })
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar; an unknown name stays as written
/// (`third_party/forked/golang/expansion`).
pub fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = rest.strip_prefix('(')
            && let Some(end) = inner.find(')')
        {
            let name = &inner[..end];
            if let Some(value) = value(name) {
                out.push_str(&value);
            } else {
                out.push_str("$(");
                out.push_str(name);
                out.push(')');
            }
            rest = &inner[end + 1..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);

    out
}

#[cfg(test)]
mod tests;
