//! What all ports share and do not ask for each time: TLS, whom bearer tokens name, and who may do what.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kube::Client;
use tokio::sync;
use tokio_rustls::rustls::ServerConfig;

use super::Shared;
use super::access::{self, AccessError, Ask, Caller, ReviewError};
use crate::pki::Authority;
use crate::{clock, telemetry};

/// How old the authority of callers may be: a rotated one is taken within a minute, and all ports
/// together ask once a minute at most.
const AUTHORITY_AGE_MAX: Duration = Duration::from_mins(1);

/// Serving certificates live a year; one is never older than this.
const SERVING_AGE_MAX: Duration = Duration::from_hours(24 * 30);

/// The kubelet's `authentication.webhook.cacheTTL`.
const REVIEW_AGE_MAX: Duration = Duration::from_mins(2);

/// Tokens remembered: service accounts that scrape or look, some a cluster. The one that happens to
/// be first is forgotten when there are more, and asked for again.
const REVIEWS_MAX: usize = 256;

/// The kubelet's `authorization.webhook.cacheAuthorizedTTL`. Who was refused is asked for again.
const RIGHT_AGE_MAX: Duration = Duration::from_mins(5);

/// Rights remembered: of a few callers on the few paths that they scrape, of 10,000 nodes.
const RIGHTS_MAX: usize = 65_536;

/// SHA-256 of what a review is about.
type Hash = [u8; 32];

/// Shared by all ports of a replica.
pub struct Kept {
    tls: sync::Mutex<Option<Tls>>,
    callers: Mutex<Reviews<Caller>>,
    rights: Mutex<Reviews<()>>,
}

impl Default for Kept {
    fn default() -> Self {
        Self {
            tls: sync::Mutex::default(),
            callers: Mutex::new(Reviews::new(REVIEW_AGE_MAX, REVIEWS_MAX)),
            rights: Mutex::new(Reviews::new(RIGHT_AGE_MAX, RIGHTS_MAX)),
        }
    }
}

struct Tls {
    config: Arc<ServerConfig>,
    /// By whom the certificate is that is shown.
    ours: Arc<Authority>,
    authority: String,
    made: Instant,
    checked: Instant,
}

impl Tls {
    fn is_fresh(&self, ours: &Arc<Authority>, now: Instant) -> bool {
        Arc::ptr_eq(&self.ours, ours)
            && now.saturating_duration_since(self.checked) < AUTHORITY_AGE_MAX
    }

    fn serves(&self, authority: &str, ours: &Arc<Authority>, now: Instant) -> bool {
        self.authority == authority
            && Arc::ptr_eq(&self.ours, ours)
            && now.saturating_duration_since(self.made) < SERVING_AGE_MAX
    }
}

impl Kept {
    /// TLS as it should be now. With the API server away, as it was when it last answered.
    pub(super) async fn tls(&self, shared: &Shared) -> Result<Arc<ServerConfig>, AccessError> {
        let mut kept = self.tls.lock().await;
        let (ours, now) = (shared.authority.now(), clock::now());
        if let Some(tls) = kept.as_ref().filter(|tls| tls.is_fresh(&ours, now)) {
            return Ok(Arc::clone(&tls.config));
        }
        let renewed = match access::callers_authority(&shared.client).await {
            Ok(authority) => match kept.as_mut().filter(|tls| tls.serves(&authority, &ours, now)) {
                Some(tls) => {
                    tls.checked = now;
                    return Ok(Arc::clone(&tls.config));
                }
                None => access::server_tls(shared, &authority).map(|config| (config, authority)),
            },
            Err(error) => Err(error),
        };
        match (renewed, kept.as_mut()) {
            (Ok((config, authority)), _) => {
                let config = Arc::new(config);
                let made = Arc::clone(&config);
                *kept = Some(Tls { config: made, ours, authority, made: now, checked: now });
                Ok(config)
            }
            (Err(error), Some(tls)) => {
                tracing::warn!(error = %telemetry::chain(&error), "callers of the kubelet API are checked as before");
                tls.checked = now;
                Ok(Arc::clone(&tls.config))
            }
            (Err(error), None) => Err(error),
        }
    }

    /// The caller that a bearer token names, asked for once in a while.
    pub(super) async fn caller(&self, shared: &Shared, token: &str) -> Option<Caller> {
        let hash = hash(token.as_bytes());
        if let Some(caller) = lock(&self.callers).get(&hash, clock::now()) {
            return Some(caller);
        }
        let caller = access::review_token(&shared.client, token).await?;
        lock(&self.callers).put(hash, caller.clone(), clock::now());

        Some(caller)
    }

    /// Whether somebody may do what it asks for, itself asked for once in a while.
    pub(super) async fn is_allowed(
        &self,
        client: &Client,
        ask: Ask<'_>,
    ) -> Result<bool, ReviewError> {
        for spec in ask.reviews() {
            let hash = hash(spec.to_string().as_bytes());
            if lock(&self.rights).get(&hash, clock::now()).is_some() {
                return Ok(true);
            }
            if access::review_access(client, &spec).await? {
                lock(&self.rights).put(hash, (), clock::now());
                return Ok(true);
            }
        }

        Ok(false)
    }
}

fn hash(bytes: &[u8]) -> Hash {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);

    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

fn lock<T>(reviews: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every statement.
    reviews.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the API server has said yes to, remembered for a while.
struct Reviews<T> {
    age_max: Duration,
    len_max: usize,
    answers: BTreeMap<Hash, (T, Instant)>,
}

impl<T: Clone> Reviews<T> {
    fn new(age_max: Duration, len_max: usize) -> Self {
        Self { age_max, len_max, answers: BTreeMap::new() }
    }

    fn get(&self, hash: &Hash, now: Instant) -> Option<T> {
        let (answer, at) = self.answers.get(hash)?;

        (now.saturating_duration_since(*at) < self.age_max).then(|| answer.clone())
    }

    fn put(&mut self, hash: Hash, answer: T, now: Instant) {
        if self.answers.len() >= self.len_max {
            self.answers.retain(|_, (_, at)| now.saturating_duration_since(*at) < self.age_max);
        }
        if self.answers.len() >= self.len_max {
            self.answers.pop_first();
        }
        self.answers.insert(hash, (answer, now));
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use proto::ids::NodeName;
    use serde_json::{Value, json};

    use super::*;
    use crate::hub::tests::api::Api;

    #[test]
    fn reviews_are_remembered_for_a_while_and_not_too_many() {
        let mut reviews = Reviews::new(REVIEW_AGE_MAX, REVIEWS_MAX);
        let start = clock::now();
        reviews.put([1; 32], "prometheus", start);
        for (hash, after_s, expected) in
            [([1; 32], 0, true), ([1; 32], 119, true), ([1; 32], 120, false), ([2; 32], 0, false)]
        {
            let found = reviews.get(&hash, start + Duration::from_secs(after_s));
            assert_eq!(found.is_some(), expected, "{after_s} s");
        }
        for number in 0..=u16::MAX {
            let mut hash = [3; 32];
            hash[..2].copy_from_slice(&number.to_be_bytes());
            reviews.put(hash, "somebody", start);
            assert!(reviews.answers.len() <= REVIEWS_MAX);
        }
    }

    #[test]
    fn who_may_do_something_is_not_asked_for_every_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (kept, api) = (Kept::default(), Api::start().await);
            let caller = Caller {
                user: "prometheus".to_owned(),
                uid: String::new(),
                groups: Vec::new(),
                extra: Value::Null,
            };
            let node = NodeName::new("edge").unwrap();
            let is_allowed = async |path| {
                let ask = Ask { caller: &caller, node: &node, method: &Method::GET, path };
                kept.is_allowed(&api.client, ask).await.unwrap()
            };
            let asked = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
            assert!(!is_allowed("/metrics").await, "nobody has said so");
            api.answer(asked, json!({ "status": { "allowed": true } }));
            assert!(is_allowed("/metrics").await, "a refusal is not remembered");
            api.answer(asked, json!({ "status": { "allowed": false } }));
            assert!(is_allowed("/metrics/cadvisor").await, "the same right");
            assert!(!is_allowed("/pods").await, "another right");
        });
    }
}
