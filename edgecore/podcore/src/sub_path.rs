//! Which part of a volume a container mounts (VolumeMount.subPath and subPathExpr). That it stays in
//! the volume is seen to where it is opened.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use cri_api::v1::KeyValue;
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use crate::env::expand;

/// A part of a volume, by the place of its mount in the container's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubPath {
    /// Name of the volume.
    pub volume: String,
    /// Relative, without `..`.
    pub path: String,
}

/// Why a part of a volume cannot be named, in the kubelet's words (`makeMounts`).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubPathError {
    /// subPathExpr names variables that the container does not have, or that say nothing.
    #[error("missing value for {names}")]
    NoValue {
        /// Their names, in order.
        names: String,
    },
    /// It would not start in the volume.
    #[error("error SubPath `{path}` must not be an absolute path")]
    Absolute {
        /// The path, expanded.
        path: String,
    },
    /// It leads upwards.
    #[error("unable to provision SubPath `{path}`: must not contain '..'")]
    Upwards {
        /// The path, expanded.
        path: String,
    },
}

/// The parts of volumes that a container with this environment mounts.
pub fn sub_paths(
    container: &Container,
    environment: &[KeyValue],
) -> Result<BTreeMap<usize, SubPath>, SubPathError> {
    let mut found = BTreeMap::new();
    for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let Some(path) = path_of(mount, environment)? else { continue };
        for part in Path::new(&path).components() {
            match part {
                Component::Normal(_) | Component::CurDir => {}
                Component::ParentDir => return Err(SubPathError::Upwards { path }),
                Component::RootDir | Component::Prefix(_) => {
                    return Err(SubPathError::Absolute { path });
                }
            }
        }
        found.insert(at, SubPath { volume: mount.name.clone(), path });
    }

    Ok(found)
}

fn path_of(mount: &VolumeMount, environment: &[KeyValue]) -> Result<Option<String>, SubPathError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let Some(expression) = given(&mount.sub_path_expr) else { return Ok(given(&mount.sub_path)) };
    let missing = RefCell::new(BTreeSet::new());
    let path = expand(&expression, |name| {
        let value = environment.iter().find(|variable| variable.key == name);
        let value = value.map(|variable| variable.value.clone()).filter(|value| !value.is_empty());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value
    });
    let missing = missing.into_inner();
    if missing.is_empty() {
        return Ok(Some(path).filter(|path| !path.is_empty()));
    }
    let names: Vec<_> = missing.into_iter().collect();

    Err(SubPathError::NoValue { names: names.join(", ") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(mounts: &serde_json::Value) -> Container {
        serde_json::from_value(json!({ "name": "a", "volumeMounts": mounts })).unwrap()
    }

    fn paths(mounts: &serde_json::Value) -> Result<Vec<(usize, String)>, String> {
        let environment = [("POD", "web-0"), ("EMPTY", "")];
        let environment = environment
            .map(|(key, value)| KeyValue { key: key.to_owned(), value: value.to_owned() });
        let found =
            sub_paths(&container(mounts), &environment).map_err(|error| error.to_string())?;

        Ok(found.into_iter().map(|(at, sub)| (at, sub.path)).collect())
    }

    #[test]
    fn parts_are_found_by_the_place_of_their_mount() {
        let told = paths(&json!([
            { "name": "v", "mountPath": "/whole" },
            { "name": "v", "mountPath": "/part", "subPath": "a/b" },
            { "name": "v", "mountPath": "/own", "subPathExpr": "logs/$(POD)" },
            { "name": "v", "mountPath": "/none", "subPath": "" },
        ]));
        assert_eq!(told.unwrap(), [(1, "a/b".to_owned()), (2, "logs/web-0".to_owned())]);
    }

    #[test]
    fn a_part_outside_or_unknown_is_refused() {
        let check = |mount: &serde_json::Value, expected: &str| {
            assert_eq!(paths(&json!([mount])).unwrap_err(), expected);
        };
        for path in ["../x", "a/../../x"] {
            let expected = format!("unable to provision SubPath `{path}`: must not contain '..'");
            check(&json!({ "name": "v", "mountPath": "/v", "subPath": path }), &expected);
        }
        for (expression, expected) in [
            ("/$(POD)", "error SubPath `/web-0` must not be an absolute path"),
            ("$(POD)/$(NONE)/$(A)", "missing value for A, NONE"),
            // Not the whole volume.
            ("$(EMPTY)", "missing value for EMPTY"),
        ] {
            check(&json!({ "name": "v", "mountPath": "/v", "subPathExpr": expression }), expected);
        }
    }
}
