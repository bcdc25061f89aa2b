//! Getting the image of a container, by its pull policy, also when the registry is out of reach.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cri::{Code, CriError, Runtime};
use cri_api::v1;
use jiff::Timestamp;
use podcore::image_name;
use tokio::sync::{Notify, Semaphore};

use super::credentials::Keyring;
use crate::clock;

/// How long a registry may take when the cloud is out of reach too and the image pulled earlier for
/// the pod is here: a registry within the site says in a second that it has nothing newer.
const OFFLINE_PULL_DEADLINE: Duration = Duration::from_secs(1);
/// How long a registry that was out of reach is not tried again for pods that can do without:
/// otherwise each of many pods would wait for it after a power cut.
const OUT_OF_REACH: Duration = Duration::from_secs(30);

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// If it is not here.
    IfNotPresent,
    /// Never.
    Never,
}

impl PullPolicy {
    /// The policy of a container: as written, else by the tag, as the API server's default.
    pub fn of(written: Option<&str>, image: &str) -> Self {
        match written {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ if image.contains('@') => Self::IfNotPresent,
            _ => match image.rsplit('/').next().and_then(|name| name.split_once(':')) {
                None | Some((_, "latest")) => Self::Always,
                Some(_) => Self::IfNotPresent,
            },
        }
    }
}

/// What is wanted.
#[derive(Debug)]
pub struct Wanted {
    /// As the spec names it.
    pub image: String,
    /// When to pull.
    pub policy: PullPolicy,
    /// Pull secrets of the pod.
    pub keyring: Keyring,
    /// Passed on to the runtime.
    pub sandbox: Option<v1::PodSandboxConfig>,
    /// This container ran from this image before: what is here may be used if the registry cannot
    /// be reached (invariant 5).
    pub ran_before: bool,
    /// The cloud is out of reach.
    pub offline: bool,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What to create containers from.
    pub image_ref: String,
    /// How it came.
    pub how: How,
}

/// How an image came to be here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// It was here.
    Present,
    /// It was pulled.
    Pulled {
        /// Time the pull took.
        took: Duration,
        /// With waiting for other pulls.
        waited: Duration,
        /// In bytes.
        size_bytes: u64,
    },
    /// The registry cannot be reached; what was pulled earlier is used.
    FellBack {
        /// What the pull said.
        why: String,
    },
}

/// Why there is no image, in the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName` or `ImageInspectError`.
    pub reason: &'static str,
    /// What happened.
    pub message: String,
}

/// The images of this node.
#[derive(Clone, Debug)]
pub struct Images {
    runtime: Runtime,
    /// Pulls at once: more would only share the link. The others wait their turn.
    slots: Arc<Semaphore>,
    /// Tells the node's status that the list of images changed.
    pulled: Arc<Notify>,
    /// Registries that were out of reach, and until when they are not tried. As many as images
    /// name; those whose time is over are dropped at each look.
    away: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Images {
    /// At most `pulls_max` pulls at once; `pulled` is notified after each.
    pub fn new(runtime: Runtime, pulls_max: usize, pulled: Arc<Notify>) -> Self {
        let slots = Arc::new(Semaphore::new(pulls_max));

        Self { runtime, slots, pulled, away: Arc::default() }
    }

    /// Finds the image, or pulls it; `pulling` is told before a pull begins.
    pub async fn ensure(&self, wanted: Wanted, pulling: impl Fn()) -> Result<Ready, Missing> {
        let image = &wanted.image;
        image_name::check(image).map_err(|error| Missing {
            reason: "InvalidImageName",
            message: format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \
                 \"{image}\": {error}"
            ),
        })?;
        let present = match wanted.policy {
            PullPolicy::Always if !wanted.ran_before => None,
            PullPolicy::Always | PullPolicy::IfNotPresent | PullPolicy::Never => {
                self.look_up(&wanted.image).await?
            }
        };
        match (wanted.policy, present) {
            (PullPolicy::Never, None) => Err(Missing {
                reason: "ErrImageNeverPull",
                message: format!(
                    "Container image \"{}\" is not present with pull policy of Never",
                    wanted.image
                ),
            }),
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(image)) => {
                Ok(Ready { image_ref: image.id, how: How::Present })
            }
            (PullPolicy::Always | PullPolicy::IfNotPresent, earlier) => {
                self.pull(wanted, earlier, pulling).await
            }
        }
    }

    /// What to mount for an image, if it is here.
    pub async fn find(&self, image: &str) -> Result<Option<String>, Missing> {
        Ok(self.look_up(image).await?.map(|found| found.id))
    }

    async fn look_up(&self, image: &str) -> Result<Option<v1::Image>, Missing> {
        let spec = v1::ImageSpec { image: image.to_owned(), ..v1::ImageSpec::default() };
        self.runtime.image_status(spec).await.map_err(|error| {
            let reason = if is_invalid(&error) { "InvalidImageName" } else { "ImageInspectError" };
            let message = format!("Failed to inspect image \"{image}\": {}", error.message());
            Missing { reason, message }
        })
    }

    async fn pull(
        &self,
        wanted: Wanted,
        earlier: Option<v1::Image>,
        pulling: impl Fn(),
    ) -> Result<Ready, Missing> {
        let began = clock::now();
        // The semaphore is never closed; without a slot the pull would still be right.
        let _slot = self.slots.acquire().await;
        if let Some(image) = earlier.as_ref().filter(|_| self.is_away(&wanted.image)) {
            let why = "it was out of reach a moment ago".to_owned();
            return Ok(Ready { image_ref: image.id.clone(), how: How::FellBack { why } });
        }
        pulling();
        let started = clock::now();
        let deadline = (earlier.is_some() && wanted.offline).then_some(OFFLINE_PULL_DEADLINE);
        let outcome = match deadline {
            Some(deadline) => tokio::time::timeout(deadline, self.try_all(&wanted)).await,
            None => Ok(self.try_all(&wanted).await),
        };
        let failed = match outcome {
            Ok(Ok(image_ref)) => {
                self.changed();
                let image = self.look_up(&image_ref).await.ok().flatten();
                let size_bytes = image.map_or(0, |image| image.size);
                let (took, waited) = (since(started), since(began));
                return Ok(Ready { image_ref, how: How::Pulled { took, waited, size_bytes } });
            }
            Ok(Err(error)) => error,
            Err(_elapsed) => CriError::NoAnswer {
                attempted: format!("pull image {}", wanted.image),
                message: "the registry does not answer".to_owned(),
            },
        };
        match earlier {
            Some(image) if is_out_of_reach(&failed) => {
                self.set_away(&wanted.image);
                Ok(Ready { image_ref: image.id, how: How::FellBack { why: failed.message() } })
            }
            _ => Err(Missing {
                reason: if is_invalid(&failed) { "InvalidImageName" } else { "ErrImagePull" },
                message: words(&failed),
            }),
        }
    }

    /// The node has other images than before.
    pub fn changed(&self) {
        self.pulled.notify_one();
    }

    fn is_away(&self, image: &str) -> bool {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::instant();
        away.retain(|_, until| now < *until);

        away.contains_key(registry(image))
    }

    fn set_away(&self, image: &str) {
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.insert(registry(image).to_owned(), clock::instant() + OUT_OF_REACH);
    }

    /// Pulls with each of the credentials that fit until one is taken.
    async fn try_all(&self, wanted: &Wanted) -> Result<String, CriError> {
        let credentials = wanted.keyring.lookup(&wanted.image);
        let mut tries: Vec<_> = credentials.into_iter().map(Some).collect();
        if tries.is_empty() {
            tries.push(None);
        }
        let last = tries.pop().flatten();
        for auth in tries {
            if let Ok(image_ref) = self.try_one(wanted, auth).await {
                return Ok(image_ref);
            }
        }

        self.try_one(wanted, last).await
    }

    async fn try_one(
        &self,
        wanted: &Wanted,
        auth: Option<v1::AuthConfig>,
    ) -> Result<String, CriError> {
        let spec = v1::ImageSpec { image: wanted.image.clone(), ..v1::ImageSpec::default() };

        self.runtime.pull_image(spec, auth, wanted.sandbox.clone()).await
    }
}

/// The registry of an image: what is before the first slash, if that can be a host.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "",
    }
}

fn since(start: Timestamp) -> Duration {
    clock::now().duration_since(start).try_into().unwrap_or_default()
}

/// Whether a pull failed for a reason that says nothing about the image: runtimes give no code for
/// it, so what registries say when they do answer is looked for.
fn is_out_of_reach(error: &CriError) -> bool {
    const ANSWERS: [&str; 7] = [
        "not found",
        "unauthorized",
        "forbidden",
        "denied",
        "insufficient_scope",
        "manifest unknown",
        "invalid reference",
    ];
    let message = error.message().to_lowercase();
    let refused = matches!(
        error.code(),
        Some(Code::NotFound | Code::PermissionDenied | Code::Unauthenticated)
    );

    !refused && !ANSWERS.iter().any(|answer| message.contains(answer))
}

/// What a pull failed with, without a code that says nothing (kubelet: `remoteImageService.PullImage`).
fn words(error: &CriError) -> String {
    if error.code() == Some(Code::Unknown) { error.message() } else { error.status() }
}

fn is_invalid(error: &CriError) -> bool {
    error.message().contains("invalid reference format")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_decides_where_nothing_is_written() {
        for (written, image, policy) in [
            (None, "busybox", PullPolicy::Always),
            (None, "registry:5000/busybox", PullPolicy::Always),
            (None, "busybox:latest", PullPolicy::Always),
            (None, "registry:5000/busybox:1", PullPolicy::IfNotPresent),
            (None, "busybox@sha256:00", PullPolicy::IfNotPresent),
            (Some("Never"), "busybox", PullPolicy::Never),
            (Some("Always"), "busybox:1", PullPolicy::Always),
        ] {
            assert_eq!(PullPolicy::of(written, image), policy, "{image}");
        }
    }

    #[test]
    fn images_of_one_registry_share_its_absence() {
        for (image, host) in [
            ("r.example/a/b:1", "r.example"),
            ("localhost:5000/a", "localhost:5000"),
            ("library/busybox", ""),
            ("busybox", ""),
        ] {
            assert_eq!(registry(image), host, "{image}");
        }
    }

    #[test]
    fn only_silence_allows_to_fall_back() {
        let check = |message: &str, expected| {
            let error = CriError::Refused {
                attempted: "pull".into(),
                code: Code::Unknown,
                message: message.into(),
            };
            assert_eq!(is_out_of_reach(&error), expected, "{message}");
        };
        check("failed to do request: dial tcp: lookup r.example: no such host", true);
        check("dial tcp 10.0.0.1:443: connect: connection refused", true);
        check("dial tcp 10.0.0.1:443: i/o timeout", true);
        check("unexpected status code 503 Service Unavailable", true);
        check("r.example/app:1: not found", false);
        check("pull access denied, repository does not exist", false);
        check("unexpected status code 401 Unauthorized", false);
    }
}
