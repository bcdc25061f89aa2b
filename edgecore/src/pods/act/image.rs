//! The image of a container, told about in the kubelet's words.

use podcore::plan::Outcome;

use super::{Done, Job};
use crate::events::EventType::{self, Normal, Warning};
use crate::pods::credentials::Keyring;
use crate::pods::images::{How, Missing, PullPolicy, Ready, Wanted};

impl Job {
    pub(super) async fn ensure_image(self, name: String, attempt: u32, image: String) -> Done {
        let container = self.container(&name);
        let policy = container.and_then(|c| c.image_pull_policy.clone());
        let wanted = Wanted {
            policy: PullPolicy::of(policy.as_deref(), &image),
            keyring: self.keyring(),
            sandbox: None,
            ran_before: self.ran_before.contains(&name),
            offline: self.context.is_offline(),
            image: image.clone(),
        };
        let tell = |kind, reason: &str, message: &str| {
            self.tell(kind, reason, message, Some(&name));
        };
        let pulling = || tell(Normal, "Pulling", &format!("Pulling image \"{image}\""));
        match self.context.images.ensure(wanted, pulling).await {
            Ok(ready) => {
                let (kind, message) = told(&image, &ready);
                tell(kind, "Pulled", &message);
                let image_ref = ready.image_ref;
                Done::noted(Outcome::ImageReady { container: name, image, attempt, image_ref })
            }
            Err(Missing { reason, message }) => {
                let verb = if reason == "ErrImagePull" { "Failed to pull" } else { "Failed for" };
                tell(Warning, "Failed", &format!("{verb} image \"{image}\": {message}"));
                tell(Warning, "Failed", &format!("Error: {reason}"));
                let reason = reason.to_owned();
                Done::noted(Outcome::ImageFailed { container: name, image, reason, message })
            }
        }
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
        How::Present => (Normal, format!("Container image \"{image}\" already present on machine")),
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
