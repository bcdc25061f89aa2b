//! The image of a container, told about in the kubelet's words.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ImageVolumeSource, VolumeMount};
use podcore::plan::Outcome;
use podcore::translate::MountedImage;

use super::{Done, Job};
use crate::events::EventType::{self, Normal, Warning};
use crate::pods::credentials::Keyring;
use crate::pods::images::{How, Missing, PullPolicy, Ready, Wanted};

impl Job {
    /// The image of the container, once those that it mounts are here: in this order a kubelet asks.
    pub(super) async fn ensure_image(self, name: String, attempt: u32, image: String) -> Done {
        let container = self.container(&name);
        let policy = container.and_then(|c| c.image_pull_policy.clone());
        let ran_before = self.ran_before.contains(&name);
        let (mounted, found) = match self.ensure_mounted(&name, ran_before).await {
            Err((mounted, missing)) => (Some(mounted), Err(missing)),
            Ok(()) => (None, self.image(&image, policy.as_deref(), ran_before, Some(&name)).await),
        };
        match found {
            Ok(image_ref) => {
                Done::noted(Outcome::ImageReady { container: name, image, attempt, image_ref })
            }
            Err(Missing { reason, message }) => {
                self.tell(Warning, "Failed", &format!("Error: {reason}"), Some(&name));
                let (container, reason) = (name, reason.to_owned());
                Done::noted(Outcome::ImageFailed { container, image, mounted, reason, message })
            }
        }
    }

    /// Finds or pulls the images that the container mounts; of those that are missing the last is told.
    async fn ensure_mounted(&self, name: &str, ran_before: bool) -> Result<(), (String, Missing)> {
        let mut found = Ok(());
        for (_, source) in self.image_mounts(name) {
            let reference = source.reference.as_deref().unwrap_or_default();
            let policy = source.pull_policy.as_deref();
            if let Err(missing) = self.image(reference, policy, ran_before, None).await {
                found = Err((reference.to_owned(), missing));
            }
        }

        found
    }

    /// The images that the container mounts as volumes, by the place of the mount in its list.
    fn image_mounts(&self, name: &str) -> impl Iterator<Item = (usize, &ImageVolumeSource)> {
        let mounts = self.container(name).and_then(|container| container.volume_mounts.as_ref());
        let image = move |(at, mount): (usize, &VolumeMount)| {
            self.pod.volume(&mount.name)?.image.as_ref().map(|source| (at, source))
        };

        mounts.into_iter().flatten().enumerate().filter_map(image)
    }

    /// Finds or pulls an image, and tells how that goes.
    async fn image(
        &self,
        image: &str,
        policy: Option<&str>,
        ran_before: bool,
        container: Option<&str>,
    ) -> Result<String, Missing> {
        let wanted = Wanted {
            policy: PullPolicy::of(policy, image),
            keyring: self.keyring(),
            sandbox: None,
            ran_before,
            offline: self.context.is_offline(),
            image: image.to_owned(),
        };
        let tell = |kind, reason: &str, message: &str| self.tell(kind, reason, message, container);
        let pulling = || tell(Normal, "Pulling", &format!("Pulling image \"{image}\""));
        match self.context.images.ensure(wanted, pulling).await {
            Ok(ready) => {
                let (kind, message) = told(image, &ready);
                tell(kind, "Pulled", &message);
                Ok(ready.image_ref)
            }
            Err(missing) => {
                let Missing { reason, message } = &missing;
                let pull = format!("Failed to pull image \"{image}\": {message}");
                match *reason {
                    "ErrImagePull" => tell(Warning, "Failed", &pull),
                    "ErrImageNeverPull" => tell(Warning, reason, message),
                    _ => tell(Warning, "InspectFailed", message),
                }
                Err(missing)
            }
        }
    }

    /// What the images of the container's volumes are here, as [`Self::ensure_image`] has found them.
    pub(super) async fn mounted_images(
        &self,
        container: &str,
    ) -> Result<BTreeMap<usize, MountedImage>, String> {
        let mut found = BTreeMap::new();
        for (at, source) in self.image_mounts(container) {
            let reference = source.reference.clone().unwrap_or_default();
            let image_ref = self.context.images.find(&reference).await.map_err(|m| m.message)?;
            let image_ref = image_ref.ok_or_else(|| {
                format!("image \"{reference}\" of a volume was removed, it is pulled again")
            })?;
            found.insert(at, MountedImage { reference, image_ref, ..MountedImage::default() });
        }

        Ok(found)
    }

    /// The pull secrets that are here; a missing one may not be needed.
    fn keyring(&self) -> Keyring {
        let mut keyring = Keyring::default();
        for reference in self.pod.spec().image_pull_secrets.iter().flatten() {
            let Some(secret) = self.materials.secrets.get(&reference.name) else {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image \
                     may not succeed.",
                    reference.name
                );
                self.tell(Warning, "FailedToRetrieveImagePullSecret", &message, None);
                continue;
            };
            let data = secret.data.iter().flatten();
            let data = data.map(|(key, value)| (key.clone(), value.0.clone())).collect();
            if !keyring.add(&data) {
                tracing::warn!(secret = %reference.name, "a pull secret holds no credentials");
            }
        }

        keyring
    }
}

/// How an image came, in the kubelet's words.
fn told(image: &str, ready: &Ready) -> (EventType, String) {
    match &ready.how {
        How::Present => (
            Normal,
            format!(
                "Container image \"{image}\" already present on machine and can be accessed by the pod"
            ),
        ),
        How::Pulled { took, waited, size_bytes } => (
            Normal,
            format!(
                "Successfully pulled image \"{image}\" in {took:.3?} ({waited:.3?} including \
                 waiting). Image size: {size_bytes} bytes."
            ),
        ),
        How::FellBack { why } => (
            Warning,
            format!(
                "Using image \"{image}\" as it was pulled before, because the registry cannot be \
                 reached: {why}"
            ),
        ),
    }
}
