//! The image of a container, told about in the kubelet's words.

use std::collections::BTreeMap;

use podcore::plan::Outcome;
use podcore::translate::MountedImage;

use super::{Done, Job};
use crate::events::EventType::{self, Normal, Warning};
use crate::pods::credentials::Keyring;
use crate::pods::images::{How, Missing, PullPolicy, Ready, Wanted};

impl Job {
    pub(super) async fn ensure_image(self, name: String, attempt: u32, image: String) -> Done {
        let container = self.container(&name);
        let policy = container.and_then(|c| c.image_pull_policy.clone());
        let ran_before = self.ran_before.contains(&name);
        match self.image(&image, policy.as_deref(), ran_before, Some(&name)).await {
            Ok(image_ref) => {
                Done::noted(Outcome::ImageReady { container: name, image, attempt, image_ref })
            }
            Err(Missing { reason, message }) => {
                self.tell(Warning, "Failed", &format!("Error: {reason}"), Some(&name));
                let reason = reason.to_owned();
                Done::noted(Outcome::ImageFailed { container: name, image, reason, message })
            }
        }
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

    /// The images that the container mounts as volumes, by the place of the mount in its list.
    pub(super) async fn mounted_images(
        &self,
        container: &str,
    ) -> Result<BTreeMap<usize, MountedImage>, Missing> {
        let mut found = BTreeMap::new();
        let Some(container) = self.container(container) else { return Ok(found) };
        for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = self.pod.volume(&mount.name);
            let Some(source) = volume.and_then(|volume| volume.image.as_ref()) else { continue };
            let reference = source.reference.clone().unwrap_or_default();
            let ran_before = self.ran_before.contains(&container.name);
            let policy = source.pull_policy.as_deref();
            let image_ref = self.image(&reference, policy, ran_before, None).await?;
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
