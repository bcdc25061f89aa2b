//! Volumes that are files: of ConfigMaps, Secrets, the downward API, and all of these in one.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Secret, Volume, VolumeProjection,
};

use super::{File, VolumeError, VolumeSetup};
use crate::env::{NodeFields, pod_field, resource_field};
use crate::materials::{Materials, token_ask};
use crate::pod::PodView;
use crate::translate::security;

/// Mode of a file whose volume does not say.
const MODE_DEFAULT: i32 = 0o644;

/// The files of a volume, if it is one of these.
pub(super) fn setup(
    pod: &PodView,
    volume: &Volume,
    materials: &Materials,
    node: &NodeFields,
) -> Result<VolumeSetup, VolumeError> {
    let mut files = Files { pod, volume: &volume.name, node, materials, made: BTreeMap::new() };
    let mut memory = false;
    if let Some(map) = &volume.config_map {
        let mode = map.default_mode.unwrap_or(MODE_DEFAULT);
        files.config_map(&map.name, map.items.as_deref(), map.optional, mode)?;
    } else if let Some(secret) = &volume.secret {
        let mode = secret.default_mode.unwrap_or(MODE_DEFAULT);
        let name = secret.secret_name.as_deref().unwrap_or_default();
        files.secret(name, secret.items.as_deref(), secret.optional, mode)?;
        memory = true;
    } else if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(MODE_DEFAULT);
        files.downward(downward.items.as_deref(), mode)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        for source in projected.sources.as_deref().unwrap_or_default() {
            files.projection(source, mode)?;
        }
        memory = true;
    } else {
        return Err(VolumeError::Unsupported { volume: volume.name.clone() });
    }

    Ok(VolumeSetup::Files { files: files.made, memory })
}

struct Files<'a> {
    pod: &'a PodView,
    volume: &'a str,
    node: &'a NodeFields,
    materials: &'a Materials,
    made: BTreeMap<String, File>,
}

impl Files<'_> {
    fn projection(&mut self, source: &VolumeProjection, mode: i32) -> Result<(), VolumeError> {
        if let Some(map) = &source.config_map {
            self.config_map(&map.name, map.items.as_deref(), map.optional, mode)?;
        }
        if let Some(secret) = &source.secret {
            self.secret(&secret.name, secret.items.as_deref(), secret.optional, mode)?;
        }
        if let Some(downward) = &source.downward_api {
            self.downward(downward.items.as_deref(), mode)?;
        }
        if let Some(token) = &source.service_account_token {
            let ask = token_ask(self.pod, token.audience.as_deref(), token.expiration_seconds);
            let held = self.materials.tokens.get(&ask.source).and_then(|held| held.status.as_ref());
            let token_text = held
                .and_then(|status| status.token.clone())
                .ok_or_else(|| VolumeError::NoToken { volume: self.volume.to_owned() })?;
            let uid = self.only_user();
            let mode = self.token_mode(uid, mode);
            self.put(&token.path, token_text.into_bytes(), mode)?;
            if let Some(file) = self.made.get_mut(&token.path) {
                file.uid = uid;
            }
        }

        Ok(())
    }

    /// The user of all containers, if it is one (kubelet: `volumeutil.FsUserFrom`).
    fn only_user(&self) -> Option<u32> {
        let users: BTreeSet<_> = self
            .pod
            .admitted_containers()
            .map(|container| security::user(self.pod, container))
            .collect();
        let only = users.first().copied().filter(|_| users.len() == 1)?;

        only.and_then(|uid| u32::try_from(uid).ok())
    }

    /// 0600 where the file's owner or group is who reads it; the volume's mode otherwise
    /// (`pkg/volume/projected`).
    fn token_mode(&self, uid: Option<u32>, mode: i32) -> i32 {
        let context = self.pod.spec().security_context.as_ref();
        let has_group = context.is_some_and(|context| context.fs_group.is_some());

        if uid.is_some() || has_group { 0o600 } else { mode }
    }

    fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), VolumeError> {
        let Some(map) = self.materials.config_maps.get(name) else {
            return self.absent("configmap", name, optional);
        };

        let missing = "configmap references non-existent config key";
        self.keys(missing, config_map_data(map), items, optional, mode)
    }

    fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), VolumeError> {
        let Some(secret) = self.materials.secrets.get(name) else {
            return self.absent("secret", name, optional);
        };

        let missing = "references non-existent secret key";
        self.keys(missing, secret_data(secret), items, optional, mode)
    }

    fn absent(
        &self,
        kind: &'static str,
        name: &str,
        optional: Option<bool>,
    ) -> Result<(), VolumeError> {
        if optional.unwrap_or(false) {
            return Ok(());
        }

        Err(VolumeError::Missing { volume: self.volume.to_owned(), kind, name: name.to_owned() })
    }

    fn keys(
        &mut self,
        missing: &'static str,
        mut data: BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), VolumeError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, value) in data {
                self.put(&key, value, mode)?;
            }
            return Ok(());
        };
        for item in items {
            match data.remove(&item.key) {
                Some(value) => self.put(&item.path, value, item.mode.unwrap_or(mode))?,
                None if optional.unwrap_or(false) => {}
                None => {
                    return Err(VolumeError::NoKey {
                        volume: self.volume.to_owned(),
                        missing,
                        key: item.key.clone(),
                    });
                }
            }
        }

        Ok(())
    }

    fn downward(
        &mut self,
        items: Option<&[DownwardAPIVolumeFile]>,
        mode: i32,
    ) -> Result<(), VolumeError> {
        for item in items.unwrap_or_default() {
            let text = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => pod_field(self.pod, &field.field_path, self.node),
                (None, Some(field)) => resource_field(self.pod, field, None, self.node),
                (None, None) => Ok(String::new()),
            };
            let text = text
                .map_err(|source| VolumeError::Field { volume: self.volume.to_owned(), source })?;
            self.put(&item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
        }

        Ok(())
    }

    fn put(&mut self, path: &str, data: Vec<u8>, mode: i32) -> Result<(), VolumeError> {
        let stays = !path.is_empty()
            && !path.starts_with('/')
            && path.split('/').all(|part| part != "..")
            && !path.starts_with("..");
        if !stays {
            return Err(VolumeError::Path {
                volume: self.volume.to_owned(),
                path: path.to_owned(),
            });
        }
        // The API server allows 0 to 0777.
        let mode = u32::try_from(mode & 0o777).unwrap_or_default();
        self.made.insert(path.to_owned(), File { data, mode, uid: None });

        Ok(())
    }
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into()));
    let binary =
        map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));

    text.chain(binary).collect()
}

fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}
