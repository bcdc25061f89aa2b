//! What all ports share and do not ask for at each connection: TLS, and whom bearer tokens name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync;
use tokio_rustls::rustls::ServerConfig;

use super::Shared;
use super::access::{self, AccessError, Caller};
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

/// SHA-256 of a token.
type TokenHash = [u8; 32];

/// Shared by all ports of a replica.
#[derive(Default)]
pub struct Kept {
    tls: sync::Mutex<Option<Tls>>,
    reviews: Mutex<Reviews>,
}

struct Tls {
    config: Arc<ServerConfig>,
    authority: String,
    made: Instant,
    checked: Instant,
}

impl Tls {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.checked) < AUTHORITY_AGE_MAX
    }

    fn serves(&self, authority: &str, now: Instant) -> bool {
        self.authority == authority && now.saturating_duration_since(self.made) < SERVING_AGE_MAX
    }
}

impl Kept {
    /// TLS as it should be now. With the API server away, as it was when it last answered.
    pub(super) async fn tls(&self, shared: &Shared) -> Result<Arc<ServerConfig>, AccessError> {
        let mut kept = self.tls.lock().await;
        let now = clock::now();
        if let Some(tls) = kept.as_ref().filter(|tls| tls.is_fresh(now)) {
            return Ok(Arc::clone(&tls.config));
        }
        let renewed = match access::callers_authority(&shared.client).await {
            Ok(authority) => match kept.as_mut().filter(|tls| tls.serves(&authority, now)) {
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
                let tls = Tls { config: Arc::clone(&config), authority, made: now, checked: now };
                *kept = Some(tls);
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
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let hash = TokenHash::try_from(digest.as_ref()).ok()?;
        if let Some(caller) = self.reviews().get(&hash, clock::now()) {
            return Some(caller);
        }
        let caller = access::review_token(&shared.client, token).await?;
        self.reviews().put(hash, caller.clone(), clock::now());

        Some(caller)
    }

    fn reviews(&self) -> std::sync::MutexGuard<'_, Reviews> {
        // Whole after every statement.
        self.reviews.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Only who was authenticated is remembered.
#[derive(Default)]
struct Reviews(BTreeMap<TokenHash, (Caller, Instant)>);

impl Reviews {
    fn get(&self, hash: &TokenHash, now: Instant) -> Option<Caller> {
        let (caller, at) = self.0.get(hash)?;

        (now.saturating_duration_since(*at) < REVIEW_AGE_MAX).then(|| caller.clone())
    }

    fn put(&mut self, hash: TokenHash, caller: Caller, now: Instant) {
        self.0.retain(|_, (_, at)| now.saturating_duration_since(*at) < REVIEW_AGE_MAX);
        if self.0.len() >= REVIEWS_MAX {
            self.0.pop_first();
        }
        self.0.insert(hash, (caller, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_are_remembered_for_a_while_and_not_too_many() {
        let caller = || Caller { user: "prometheus".to_owned(), groups: Vec::new() };
        let (mut reviews, start) = (Reviews::default(), clock::now());
        reviews.put([1; 32], caller(), start);
        for (hash, after_s, expected) in
            [([1; 32], 0, true), ([1; 32], 119, true), ([1; 32], 120, false), ([2; 32], 0, false)]
        {
            let found = reviews.get(&hash, start + Duration::from_secs(after_s));
            assert_eq!(found.is_some(), expected, "{after_s} s");
        }
        for number in 0..=u16::MAX {
            let mut hash = [3; 32];
            hash[..2].copy_from_slice(&number.to_be_bytes());
            reviews.put(hash, caller(), start);
            assert!(reviews.0.len() <= REVIEWS_MAX);
        }
    }
}
