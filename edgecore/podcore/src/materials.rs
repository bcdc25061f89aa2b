//! What a pod needs besides itself: ConfigMaps, Secrets, service account tokens, claims with their volumes,
//! a RuntimeClass, Services.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret, Service, Volume};
use proto::object::{ContentHash, hex};

use crate::claims::{Claim, PersistentVolume, RuntimeClass, bound, claim_name};
use crate::env::EnvFile;
use crate::observed::Missing;
use crate::pod::PodView;

/// Lifetime of a token whose source does not say (API: `ServiceAccountTokenProjection`).
const TOKEN_SECONDS: i64 = 3600;
/// A token older than this is replaced however long it lives (kubelet: `maxTTL`).
const TOKEN_AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// The names a pod refers to. The value says whether the pod can begin without it: a volume waits for
/// what it needs, and so does the pod; the environment of a container keeps only that waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// ConfigMaps of the pod's namespace.
    pub config_maps: BTreeMap<String, bool>,
    /// Secrets of the pod's namespace, pull secrets too (always optional: a pull without may work).
    pub secrets: BTreeMap<String, bool>,
    /// Tokens of projected volumes.
    pub tokens: Vec<TokenAsk>,
    /// The volume that first needs what is named in these words.
    volumes: BTreeMap<String, String>,
    /// Claims of the pod's namespace.
    pub claims: BTreeSet<String>,
    /// The RuntimeClass.
    pub runtime_class: Option<String>,
}

/// One service account token that a projected volume asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenAsk {
    /// Names the source within the pod: equal asks share a token.
    pub source: String,
    /// Empty for the API server's own.
    pub audience: String,
    /// Asked lifetime.
    pub expiration_seconds: i64,
    /// `spec.serviceAccountName`.
    pub service_account: String,
}

/// What the node holds of them.
#[derive(Clone, Debug, Default)]
pub struct Materials {
    /// By name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// By name.
    pub secrets: BTreeMap<String, Secret>,
    /// By [`TokenAsk::source`].
    pub tokens: BTreeMap<String, TokenRequest>,
    /// Files of variables that the container at hand needs, by volume and path in it; only while it is
    /// made.
    pub env_files: BTreeMap<(String, String), EnvFile>,
    /// By name.
    pub claims: BTreeMap<String, Claim>,
    /// What these claims are bound to, by name.
    pub volumes: BTreeMap<String, PersistentVolume>,
    /// What is set up already of the volumes with claims, by their name in the pod; only if a claim is
    /// missing.
    pub set_up: BTreeMap<String, PersistentVolume>,
    /// The pod's.
    pub runtime_class: Option<RuntimeClass>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Service>,
}

impl References {
    fn config_map(&mut self, name: &str, optional: bool) {
        let all = self.config_maps.entry(name.to_owned()).or_insert(true);
        *all &= optional;
    }

    fn secret(&mut self, name: &str, optional: bool) {
        let all = self.secrets.entry(name.to_owned()).or_insert(true);
        *all &= optional;
    }

    /// What keeps the pod from starting; empty if it can.
    pub fn missing(&self, pod: &PodView, materials: &Materials) -> Vec<Missing> {
        let config_maps = self
            .config_maps
            .iter()
            .filter(|(name, optional)| !**optional && !materials.config_maps.contains_key(*name))
            .map(|(name, _)| {
                Missing::Object(self.of_volume(format!("configmap \"{name}\" not found")))
            });
        let secrets = self
            .secrets
            .iter()
            .filter(|(name, optional)| !**optional && !materials.secrets.contains_key(*name))
            .map(|(name, _)| {
                Missing::Object(self.of_volume(format!("secret \"{name}\" not found")))
            });
        let is_away = |ask: &&TokenAsk| !materials.tokens.contains_key(&ask.source);
        let tokens = self.tokens.iter().filter(is_away);
        let tokens = tokens.map(|ask| Missing::Token { of: ask.service_account.clone() });
        let claims = pod.spec().volumes.iter().flatten().filter_map(|volume| {
            let why = bound(pod, volume, materials).err()?.to_string();
            Some(Missing::Claim { volume: volume.name.clone(), why })
        });

        config_maps.chain(secrets).chain(tokens).chain(claims).collect()
    }

    /// What is missing, in the words of the kubelet's FailedMount Event.
    fn of_volume(&self, missing: String) -> String {
        match self.volumes.get(&missing) {
            Some(volume) => format!("for volume \"{volume}\" : {missing}"),
            None => missing,
        }
    }

    fn needed_by(&mut self, volume: &Volume, kind: &str, name: &str) {
        let words = format!("{kind} \"{name}\" not found");
        self.volumes.entry(words).or_insert_with(|| volume.name.clone());
    }
}

/// Everything the pod refers to.
pub fn references(pod: &PodView) -> References {
    let mut found = References::default();
    for container in pod.all_containers() {
        of_environment(container, &mut found);
    }
    for volume in pod.spec().volumes.as_deref().unwrap_or_default() {
        of_volume(pod, volume, &mut found);
    }
    for secret in pod.spec().image_pull_secrets.as_deref().unwrap_or_default() {
        found.secret(&secret.name, true);
    }
    found.runtime_class = pod.spec().runtime_class_name.clone().filter(|name| !name.is_empty());

    found
}

/// What one container waits for alone, once the pod has begun.
fn of_environment(container: &Container, found: &mut References) {
    for source in container.env_from.as_deref().unwrap_or_default() {
        if let Some(map) = &source.config_map_ref {
            found.config_map(&map.name, true);
        }
        if let Some(secret) = &source.secret_ref {
            found.secret(&secret.name, true);
        }
    }
    for variable in container.env.as_deref().unwrap_or_default() {
        let Some(source) = &variable.value_from else { continue };
        if let Some(map) = &source.config_map_key_ref {
            found.config_map(&map.name, true);
        }
        if let Some(secret) = &source.secret_key_ref {
            found.secret(&secret.name, true);
        }
    }
}

fn of_volume(pod: &PodView, volume: &Volume, found: &mut References) {
    found.claims.extend(claim_name(pod, volume));
    if let Some(map) = &volume.config_map {
        found.config_map(&map.name, map.optional.unwrap_or(false));
        found.needed_by(volume, "configmap", &map.name);
    }
    if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        found.secret(name, secret.optional.unwrap_or(false));
        found.needed_by(volume, "secret", name);
    }
    let sources = volume.projected.as_ref().and_then(|projected| projected.sources.as_deref());
    for source in sources.unwrap_or_default() {
        if let Some(map) = &source.config_map {
            found.config_map(&map.name, map.optional.unwrap_or(false));
            found.needed_by(volume, "configmap", &map.name);
        }
        if let Some(secret) = &source.secret {
            found.secret(&secret.name, secret.optional.unwrap_or(false));
            found.needed_by(volume, "secret", &secret.name);
        }
        if let Some(token) = &source.service_account_token {
            let ask = token_ask(pod, token.audience.as_deref(), token.expiration_seconds);
            if !found.tokens.contains(&ask) {
                found.tokens.push(ask);
            }
        }
    }
}

/// The ask of a projected source. Its name is a hash, because an audience may hold any character.
pub fn token_ask(pod: &PodView, audience: Option<&str>, seconds: Option<i64>) -> TokenAsk {
    let audience = audience.unwrap_or_default().to_owned();
    let expiration_seconds = seconds.unwrap_or(TOKEN_SECONDS);
    let service_account =
        pod.spec().service_account_name.clone().unwrap_or_else(|| "default".to_owned());
    let hash = ContentHash::of(&[
        audience.as_bytes(),
        &expiration_seconds.to_be_bytes(),
        service_account.as_bytes(),
    ]);
    let source = hex(&hash.0[..8]);

    TokenAsk { source, audience, expiration_seconds, service_account }
}

/// When a token should be asked for again: at 80 % of its life, or after a day
/// (`pkg/kubelet/token/token_manager.go`). `None` if it cannot be read, which means now.
pub fn refresh_at(token: &TokenRequest) -> Option<Timestamp> {
    let expires = token.status.as_ref()?.expiration_timestamp.as_ref()?.0;
    let life = SignedDuration::from_secs(
        token.spec.as_ref().and_then(|spec| spec.expiration_seconds).unwrap_or(TOKEN_SECONDS),
    );
    let aged = expires.checked_sub(life).ok()?.checked_add(TOKEN_AGE_MAX).ok()?;

    Some(expires.checked_sub(life / 5).ok()?.min(aged))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(seconds: i64) -> TokenRequest {
        serde_json::from_value(json!({
            "spec": { "audiences": [], "expirationSeconds": seconds },
            "status": { "token": "t", "expirationTimestamp": "2026-01-11T00:00:00Z" },
        }))
        .unwrap()
    }

    #[test]
    fn tokens_are_refreshed_at_80_percent_or_after_a_day() {
        for (seconds, expected) in [
            (600, "2026-01-10T23:58:00Z"),
            (3600, "2026-01-10T23:48:00Z"),
            (864_000, "2026-01-02T00:00:00Z"),
        ] {
            assert_eq!(refresh_at(&token(seconds)).unwrap().to_string(), expected, "{seconds}");
        }
        assert_eq!(refresh_at(&token(i64::MAX)), None, "a life that no clock has");
    }

    #[test]
    fn references_are_found_everywhere() {
        let pod = json!({
            "metadata": { "uid": "u", "namespace": "shop", "name": "web" },
            "spec": {
                "imagePullSecrets": [{ "name": "pull" }], "runtimeClassName": "kata",
                "initContainers": [{ "name": "i", "envFrom": [{ "configMapRef": { "name": "from" } }] }],
                "containers": [{ "name": "a", "env": [
                    { "name": "A", "valueFrom": { "secretKeyRef": { "name": "key", "key": "k" } } } ] }],
                "volumes": [
                    { "name": "v", "configMap": { "name": "vol", "optional": true } },
                    { "name": "c", "persistentVolumeClaim": { "claimName": "data" } },
                    { "name": "p", "projected": { "sources": [
                        { "secret": { "name": "inner" } },
                        { "serviceAccountToken": { "path": "token", "expirationSeconds": 600 } } ] } },
                ],
            },
        });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let found = references(&pod);

        assert_eq!(
            found.missing(&pod, &Materials::default()),
            [
                Missing::Object("for volume \"p\" : secret \"inner\" not found".to_owned()),
                Missing::Token { of: "default".to_owned() },
                Missing::Claim {
                    volume: "c".to_owned(),
                    why: "error processing PVC shop/data: failed to fetch PVC from API server: \
                          persistentvolumeclaims \"data\" not found"
                        .to_owned(),
                },
            ]
        );
        assert_eq!(found.claims, ["data".to_owned()].into());
        assert_eq!(found.runtime_class.as_deref(), Some("kata"));
        assert!(found.config_maps["vol"]);
        assert!(found.secrets["pull"]);
        assert_eq!(found.tokens[0].expiration_seconds, 600);
    }
}
