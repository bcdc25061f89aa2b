//! `/configz`: the configuration as a stock kubelet would tell it (KubeletConfiguration v1beta1), with
//! what this agent does and cannot be told otherwise.

use std::collections::BTreeMap;

use podcore::pressure::{Amount, Policy, Signal, Threshold};
use podcore::quantity::binary;
use podcore::shutdown::{Period, Periods};
use serde_json::{Value, json};

use crate::config::{CgroupDriver, Config};

/// The JSON.
pub(super) fn json(config: &Config) -> String {
    let policy = config.image_policy;
    let logs = config.log_policy;
    let reserved = config.system_reserved;
    let driver = match config.cgroup_driver {
        CgroupDriver::Systemd => "systemd",
        CgroupDriver::Auto | CgroupDriver::Cgroupfs => "cgroupfs",
    };
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let eviction = &config.eviction;
    let is_soft = |threshold: &Threshold| !threshold.is_hard();
    let value = |threshold: &Threshold| Some(threshold.value.to_string());

    let mut told = json!({ "kubeletconfig": {
        "enableServer": true,
        "staticPodPath": config.static_pod_path.as_deref().map(path),
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true, "cacheTTL": "2m0s" },
        },
        "authorization": { "mode": "Webhook" },
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns,
        "resolvConf": path(&config.resolv_conf),
        "maxPods": config.pods_max,
        "podPidsLimit": config.pod_pids_max.unwrap_or(-1),
        "cgroupRoot": config.cgroup_root,
        "cgroupsPerQOS": true,
        "cgroupDriver": driver,
        "cpuManagerPolicy": "none",
        "memoryManagerPolicy": "None",
        "topologyManagerPolicy": "none",
        "containerRuntimeEndpoint": format!("unix://{}", config.runtime_socket.display()),
        "podLogsDir": path(&config.pod_logs_dir),
        "containerLogMaxSize": logs.size_max.map_or_else(|| "-1".to_owned(), binary),
        "containerLogMaxFiles": logs.files_max,
        "imageMinimumGCAge": format!("{}s", policy.age_min.as_secs()),
        "imageGCHighThresholdPercent": policy.high_percent,
        "imageGCLowThresholdPercent": policy.low_percent,
        "serializeImagePulls": config.parallel_pulls_max == 1,
        "maxParallelImagePulls": config.parallel_pulls_max,
        "evictionHard": by_signal(eviction, Threshold::is_hard, value),
        "evictionSoft": by_signal(eviction, is_soft, value),
        "evictionSoftGracePeriod": by_signal(eviction, is_soft, |threshold| {
            Some(format!("{}s", threshold.grace?.as_secs()))
        }),
        "evictionMinimumReclaim": by_signal(eviction, |_| true, |threshold| {
            threshold.min_reclaim.as_ref().map(Amount::to_string)
        }),
        "evictionPressureTransitionPeriod": format!("{}s", eviction.transition.as_secs()),
        "evictionMaxPodGracePeriod": eviction.pod_grace_max_s,
        "systemReserved": {
            "cpu": format!("{}m", reserved.cpu_millis),
            "memory": reserved.memory_bytes.to_string(),
            "ephemeral-storage": reserved.ephemeral_storage_bytes.to_string(),
        },
        "nodeStatusUpdateFrequency": "10s",
        "nodeStatusReportFrequency": "5m0s",
        "failSwapOn": false,
        "registerNode": true,
        "enableDebuggingHandlers": true,
        "enableSystemLogHandler": true,
        "enableSystemLogQuery": true,
    }});
    tell_periods(&config.shutdown_periods, &mut told["kubeletconfig"]);

    told.to_string()
}

/// What is said of the thresholds that are wanted, by signal.
fn by_signal(
    policy: &Policy,
    is_wanted: impl Fn(&Threshold) -> bool,
    said: impl Fn(&Threshold) -> Option<String>,
) -> BTreeMap<&'static str, String> {
    // That of all pods follows from that of the node.
    let is_told = |threshold: &&Threshold| {
        threshold.signal != Signal::AllocatableMemoryAvailable && is_wanted(threshold)
    };
    let wanted = policy.thresholds.iter().filter(is_told);

    wanted.filter_map(|threshold| Some((threshold.signal.as_str(), said(threshold)?))).collect()
}

fn tell_periods(periods: &Periods, told: &mut Value) {
    let (all_s, critical_s) = match periods {
        Periods::Critical { critical_s, .. } => (periods.all_s(), *critical_s),
        Periods::ByPriority(groups) => {
            let group = |group: &Period| {
                let (priority, grace_s) = (group.priority, group.grace_s);
                json!({ "priority": priority, "shutdownGracePeriodSeconds": grace_s })
            };
            told["shutdownGracePeriodByPodPriority"] = groups.iter().map(group).collect();
            (0, 0)
        }
    };
    told["shutdownGracePeriod"] = json!(format!("{all_s}s"));
    told["shutdownGracePeriodCriticalPods"] = json!(format!("{critical_s}s"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_configured_is_told_in_the_kubelets_words() {
        let mut config = Config::with_defaults("edge-1", "cloud:10000").unwrap();
        config.pod_pids_max = Some(100);
        config.shutdown_periods = Periods::Critical { normal_s: 20, critical_s: 10 };
        let told: Value = serde_json::from_str(&json(&config)).unwrap();
        let told = &told["kubeletconfig"];
        assert_eq!(told["maxPods"], 110);
        assert_eq!(told["podPidsLimit"], 100);
        assert_eq!(
            (&told["containerLogMaxSize"], &told["containerLogMaxFiles"]),
            (&json!("10Mi"), &json!(5))
        );
        assert_eq!(told["shutdownGracePeriod"], "30s");
        assert_eq!(told["shutdownGracePeriodCriticalPods"], "10s");
        assert!(told["shutdownGracePeriodByPodPriority"].is_null());
        assert_eq!(told["imageMinimumGCAge"], "120s");
        let hard = serde_json::json!({
            "memory.available": "100Mi",
            "nodefs.available": "10%",
            "nodefs.inodesFree": "5%",
            "imagefs.available": "15%",
            "imagefs.inodesFree": "5%",
        });
        assert_eq!(told["evictionHard"], hard);
        assert_eq!(told["evictionSoft"], serde_json::json!({}));
        assert_eq!(told["evictionPressureTransitionPeriod"], "300s");
        let endpoint = "unix:///run/containerd/containerd.sock";
        assert_eq!(told["containerRuntimeEndpoint"], endpoint);

        let period = Period { priority: 5, grace_s: 7 };
        config.shutdown_periods = Periods::ByPriority(vec![period]);
        let told: Value = serde_json::from_str(&json(&config)).unwrap();
        let told = &told["kubeletconfig"];
        assert_eq!(told["shutdownGracePeriod"], "0s");
        let expected = json!([{ "priority": 5, "shutdownGracePeriodSeconds": 7 }]);
        assert_eq!(told["shutdownGracePeriodByPodPriority"], expected);
    }
}
