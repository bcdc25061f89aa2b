//! Which part of a volume a container mounts (VolumeMount.subPath and subPathExpr). That it stays in
//! the volume is seen to where it is opened.

use std::collections::BTreeMap;
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

/// Why a part of a volume cannot be named.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubPathError {
    /// subPathExpr names a variable that the container does not have.
    #[error("cannot expand subPathExpr {expression:?} of volume {volume}: no variable {variable}")]
    NoVariable {
        /// Name of the volume.
        volume: String,
        /// As the pod says it.
        expression: String,
        /// The variable that is missing.
        variable: String,
    },
    /// It is absolute or leads upwards.
    #[error("subPath {path:?} of volume {volume} must be relative and must not contain `..`")]
    Outside {
        /// Name of the volume.
        volume: String,
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
        let volume = mount.name.clone();
        let stays = Path::new(&path)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !stays {
            return Err(SubPathError::Outside { volume, path });
        }
        found.insert(at, SubPath { volume, path });
    }

    Ok(found)
}

fn path_of(mount: &VolumeMount, environment: &[KeyValue]) -> Result<Option<String>, SubPathError> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let Some(expression) = given(&mount.sub_path_expr) else { return Ok(given(&mount.sub_path)) };
    let missing = std::cell::RefCell::new(None);
    let path = expand(&expression, |name| {
        let value = environment.iter().find(|variable| variable.key == name);
        if value.is_none() {
            missing.replace(Some(name.to_owned()));
        }
        value.map(|variable| variable.value.clone())
    });
    match missing.into_inner() {
        Some(variable) => {
            Err(SubPathError::NoVariable { volume: mount.name.clone(), expression, variable })
        }
        None => Ok(Some(path).filter(|path| !path.is_empty())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(mounts: &serde_json::Value) -> Container {
        serde_json::from_value(json!({ "name": "a", "volumeMounts": mounts })).unwrap()
    }

    fn paths(mounts: &serde_json::Value) -> Result<Vec<(usize, String)>, String> {
        let environment = [KeyValue { key: "POD".to_owned(), value: "web-0".to_owned() }];
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
        let outside = |path: &str| {
            format!("subPath \"{path}\" of volume v must be relative and must not contain `..`")
        };
        for path in ["../x", "a/../../x", "/etc"] {
            check(&json!({ "name": "v", "mountPath": "/v", "subPath": path }), &outside(path));
        }
        check(
            &json!({ "name": "v", "mountPath": "/v", "subPathExpr": "/$(POD)" }),
            &outside("/web-0"),
        );
        check(
            &json!({ "name": "v", "mountPath": "/v", "subPathExpr": "$(POD)/$(NONE)" }),
            "cannot expand subPathExpr \"$(POD)/$(NONE)\" of volume v: no variable NONE",
        );
    }
}
