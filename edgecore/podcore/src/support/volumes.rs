//! What volumes may ask for that this build does not do.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};

pub(super) fn of_volume(volume: &Volume, refused: &mut Vec<String>) {
    let known = volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || volume.persistent_volume_claim.is_some()
        || volume.ephemeral.is_some()
        || volume.nfs.is_some()
        || volume.image.is_some();
    if !known {
        refused.push(format!("the kind of volume {}", volume.name));
    }
    if let Some(dir) = &volume.empty_dir {
        let medium = dir.medium.as_deref().unwrap_or_default();
        if !matches!(medium, "" | "Memory") && !medium.starts_with("HugePages") {
            refused.push(format!("volume {}: medium {medium}", volume.name));
        }
        if dir.mode.is_some() {
            refused.push(format!("volume {}: mode", volume.name));
        }
    }
    let projected = volume.projected.as_ref().and_then(|projected| projected.sources.as_deref());
    for source in projected.unwrap_or_default() {
        if source.cluster_trust_bundle.is_some() || source.pod_certificate.is_some() {
            refused.push(format!("a source of volume {}", volume.name));
        }
    }
    if names_owner(volume) {
        refused.push(format!("volume {}: a user of its files", volume.name));
    }
}

/// Whether files of the volume shall belong to a user that the volume names.
fn names_owner(volume: &Volume) -> bool {
    let keys = |items: &Option<Vec<KeyToPath>>| items.iter().flatten().any(|i| i.user.is_some());
    let fields = |items: &Option<Vec<DownwardAPIVolumeFile>>| {
        items.iter().flatten().any(|item| item.user.is_some())
    };
    let of_source = |source: &VolumeProjection| {
        source.config_map.as_ref().is_some_and(|map| keys(&map.items))
            || source.secret.as_ref().is_some_and(|secret| keys(&secret.items))
            || source.downward_api.as_ref().is_some_and(|downward| fields(&downward.items))
            || source.service_account_token.as_ref().is_some_and(|token| token.user.is_some())
    };
    let map = volume.config_map.as_ref();
    let secret = volume.secret.as_ref();
    let downward = volume.downward_api.as_ref();
    let projected = volume.projected.as_ref();

    map.is_some_and(|map| map.default_user.is_some() || keys(&map.items))
        || secret.is_some_and(|secret| secret.default_user.is_some() || keys(&secret.items))
        || downward.is_some_and(|all| all.default_user.is_some() || fields(&all.items))
        || projected.is_some_and(|all| {
            all.default_user.is_some() || all.sources.iter().flatten().any(of_source)
        })
}
