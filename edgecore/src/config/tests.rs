//! What config files are taken and refused.

use super::*;

fn load(extra: &str) -> Result<Config, ConfigError> {
    let text = format!("nodeName: edge-node\ncloudcore: cloud.example.com:10000\n{extra}");
    Config::parse(Path::new("test.yaml"), &text)
}

fn check(extra: &str, expected: &[&str]) {
    let problems = match load(extra) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.iter().map(ToString::to_string).collect()
        }
        Err(other) => panic!("{extra}: {other}"),
    };
    assert_eq!(problems, expected, "{extra}");
}

#[test]
fn the_shipped_example_is_the_defaults() {
    let example = Config::parse(Path::new("example"), Config::EXAMPLE).unwrap();
    let defaults = Config::with_defaults("edge-node", "cloud.example.com:10000").unwrap();

    assert_eq!(example, defaults);
}

#[test]
fn good_values_are_taken() {
    let config = load(
        "cgroupRoot: /site/a/\ncgroupDriver: systemd\nclusterDNS: [10.96.0.10]\n\
         nodeIP: 192.168.1.7\nsystemReserved: {cpu: 100m, memory: 128Mi, ephemeral-storage: 1.5Gi}\n\
         taints: [{key: a/b, value: c, effect: NoExecute}]\nnodeLabels: {zone: west}\n\
         runtimeEndpoint: /run/x.sock\nlogLevel: debug\n",
    )
    .unwrap();

    assert_eq!(config.cgroup_root, "/site/a");
    assert_eq!(config.runtime_socket, Path::new("/run/x.sock"));
    assert_eq!(
        config.system_reserved,
        Reserved { cpu_millis: 100, memory_bytes: 128 << 20, ephemeral_storage_bytes: 3 << 29 }
    );
}

#[test]
fn proxies_are_taken_and_never_shown_with_their_passwords() {
    use crate::link::proxy::Choice;

    let choice = |extra: &str| load(extra).unwrap().proxy;
    assert_eq!(choice(""), Choice::Environment);
    assert_eq!(choice("proxy: none"), Choice::Direct);
    let through = choice("proxy: http://me:secret@proxy:3128");
    assert_eq!(format!("{through:?}"), "Through(Proxy(http://proxy:3128))");
    check(
        "proxy: socks5://me:secret@proxy:1080",
        &["proxy: is neither an http:// nor an https:// proxy: others cannot be used"],
    );
    check("proxyAuthorities: certs.pem", &["proxyAuthorities: certs.pem is not an absolute path"]);
}

#[test]
fn logs_are_bounded_as_a_kubelets() {
    let policy = |extra: &str| load(extra).unwrap().log_policy;
    let sizes = [("1.5Ki", Some(1536)), ("1000", Some(1000)), ("-1", None), ("-5Mi", None)];
    for (text, size_max) in sizes {
        assert_eq!(policy(&format!("containerLogMaxSize: {text}")).size_max, size_max, "{text}");
    }
    assert_eq!(policy("containerLogMaxFiles: 2").files_max, 2);
}

#[test]
fn bad_bounds_of_logs_are_named() {
    let no_number = "is not a number of bytes such as 10Mi, or -1 for no limit";
    let zero = "sets every log aside at every look: give a size such as 10Mi, or -1 for no limit";
    let sizes = ["big", "\"\"", "1.5", "10Mo"].map(|size| (size, no_number));
    for (size, told) in sizes.into_iter().chain([("0", zero), ("0Ki", zero)]) {
        let shown = size.trim_matches('"');
        let expected = format!("containerLogMaxSize: {shown:?} {told}");
        check(&format!("containerLogMaxSize: {size}"), &[&expected]);
    }
    let told = "is not greater than 1: one file is written, others are kept";
    check("containerLogMaxFiles: 1", &[&format!("containerLogMaxFiles: 1 {told}")]);
}

#[test]
fn bad_values_are_named() {
    check(
        "runtimeEndpoint: tcp://x",
        &["runtimeEndpoint: \"tcp://x\" is not unix:// and an absolute path"],
    );
    check("staticPodPath: pods", &["staticPodPath: pods is not an absolute path"]);
    check(
        "shutdownGracePeriodSeconds: 5\nshutdownGracePeriodCriticalPodsSeconds: 6",
        &["shutdownGracePeriodCriticalPodsSeconds: 6 is not between 0 and 5"],
    );
    let by_priority = "shutdownGracePeriodByPodPriority: \
        [{priority: 9, shutdownGracePeriodSeconds: 3000}, {priority: 9, shutdownGracePeriodSeconds: 700}]";
    check(
        &format!("{by_priority}\nshutdownGracePeriodSeconds: 5"),
        &[
            "shutdownGracePeriodByPodPriority: cannot be given together with \
             shutdownGracePeriodSeconds or shutdownGracePeriodCriticalPodsSeconds; keep one of them",
            "shutdownGracePeriodByPodPriority[1].priority: 9 is there twice; a group is known by its priority",
            "shutdownGracePeriodByPodPriority: all together are 3700 seconds, at most 3600 are held up",
        ],
    );
    check("rootDir: kubelet", &["rootDir: kubelet is not an absolute path"]);
    check(
        "cgroupRoot: /a/../b",
        &["cgroupRoot: \"/a/../b\" is not an absolute cgroup path without . and .."],
    );
    check("cgroupDriver: podman", &["cgroupDriver: \"podman\" is not auto, cgroupfs or systemd"]);
    check("clusterDNS: [10.96.0.10, dns]", &["clusterDNS[1]: \"dns\" is not an IP address"]);
    check(
        "nodeIP: 127.0.0.1",
        &["nodeIP: \"127.0.0.1\" is neither auto nor a non-loopback IP address"],
    );
    check("maxPods: 0", &["maxPods: 0 is not between 1 and 1000"]);
    let asked = "is neither a number of processes nor -1, for no limit";
    check("podPidsLimit: 0", &[&format!("podPidsLimit: 0 {asked}")]);
    check("logLevel: loud", &["logLevel: \"loud\" is not off, error, warn, info, debug or trace"]);
    check(
        "systemReserved: {gpu: 1}",
        &["systemReserved.gpu: only cpu, memory and ephemeral-storage can be reserved"],
    );
    check(
        "taints: [{key: a, effect: Never}]",
        &["taints[0].effect: \"Never\" is not NoSchedule, PreferNoSchedule or NoExecute"],
    );
    check(
        "evictionHard: {memory.available: lots}",
        &[
            "evictionHard.memory.available: \"lots\" is neither a quantity such as 100Mi nor a share such as 10%",
        ],
    );
    check(
        "evictionSoft: {nodefs.available: 10%}\nevictionPressureTransitionPeriod: soon",
        &[
            "evictionSoft.nodefs.available: needs a period in evictionSoftGracePeriod.nodefs.available",
            "evictionPressureTransitionPeriod: \"soon\" is not a time such as 30s, 1m30s or 2h",
        ],
    );
    check("nodeLabels: {'a b': c}", &["nodeLabels: \"a b\" is not a label key ([prefix/]name)"]);
}

#[test]
fn all_problems_are_reported_at_once() {
    let text = "nodeName: Edge_Node\ncloudcore: nowhere\nmaxPods: 0\n";
    let error = Config::parse(Path::new("f"), text).unwrap_err().to_string();

    for part in ["3 problem(s)", "nodeName: ", "cloudcore: ", "maxPods: "] {
        assert!(error.contains(part), "{part} is not in {error}");
    }
}

#[test]
fn unknown_keys_and_wrong_types_are_parse_errors_that_name_them() {
    for (extra, part) in [("nodname: x\n", "nodname"), ("maxPods: many\n", "many")] {
        match load(extra) {
            Err(ConfigError::Parse { reason, .. }) => {
                assert!(reason.contains(part) || reason.contains("maxPods"), "{reason}");
            }
            other => panic!("{extra}: {other:?}"),
        }
    }
}
