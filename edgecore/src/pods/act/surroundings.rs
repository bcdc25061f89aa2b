//! What a container is made with that the pod's objects do not say: the files of variables that others
//! wrote for it, the user of its image, the users that the pod has of the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use cri_api::v1;
use k8s_openapi::api::core::v1::Container;
use podcore::claims::runtime_handler;
use podcore::env::{EnvFile, env_files};
use podcore::materials::Materials;
use podcore::translate::{ImageUser, UserRange, asks_for_image_user};

use super::Job;
use crate::blocking;
use crate::pods::users;
use crate::volumes::env_file;

impl Job {
    /// The materials, with the files of variables that the container needs.
    pub(super) async fn materials_of(
        &self,
        container: &Container,
        volumes: &BTreeMap<String, String>,
    ) -> Arc<Materials> {
        let mut files = BTreeMap::new();
        for (volume, path) in env_files(container) {
            let Some(dir) = volumes.get(volume).map(PathBuf::from) else { continue };
            let place = (volume.to_owned(), path.to_owned());
            let shown = dir.join(path).to_string_lossy().into_owned();
            let relative = PathBuf::from(path);
            let read = blocking::run(move || env_file::read(&dir, &relative)).await;
            if let Err(error) = &read {
                tracing::info!(%error, file = shown, "a file of variables cannot be read");
            }
            files.insert(place, EnvFile { path: shown, text: read.ok() });
        }
        if files.is_empty() {
            return Arc::clone(&self.materials);
        }

        Arc::new(Materials { env_files: files, ..Materials::clone(&self.materials) })
    }

    /// The user of the image, looked up only if the container runs as that; root if it names none.
    pub(super) async fn image_user(
        &self,
        container: &Container,
        image_ref: &str,
    ) -> Result<ImageUser, String> {
        let root = ImageUser::Id(0);
        if !asks_for_image_user(&self.pod, container) {
            return Ok(root);
        }
        let spec = v1::ImageSpec { image: image_ref.to_owned(), ..v1::ImageSpec::default() };
        let image = self.context.runtime.image_status(spec).await.map_err(|e| e.message())?;
        let image = image.ok_or_else(|| format!("image {image_ref} is gone"))?;

        Ok(match image.uid {
            Some(uid) => ImageUser::Id(uid.value),
            None if image.username.is_empty() => root,
            None => ImageUser::Name(image.username),
        })
    }

    /// The users of the node that those of the pod are, if it is to have its own.
    pub(super) async fn users(&self) -> Result<Option<UserRange>, String> {
        if self.pod.spec().host_users != Some(false) {
            return Ok(None);
        }
        let name = runtime_handler(&self.pod, &self.materials)?;
        let has_users = {
            let abilities = self.context.abilities.borrow();
            abilities.handler(&name).is_some_and(|handler| handler.user_namespaces)
        };
        if !has_users {
            // The kubelet's words.
            let who = match name.as_str() {
                "" => "runtime".to_owned(),
                name => format!("RuntimeClass handler {name:?}"),
            };
            return Err(format!(
                "can't set `spec.hostUsers: false`, {who} does not support user namespaces"
            ));
        }
        let (layout, uid) = (self.context.layout.clone(), self.pod.uid.clone());
        let taken = blocking::run(move || users::take(&layout, &uid)).await;

        taken.map(Some).map_err(|error| format!("create user namespace: {error}"))
    }
}
