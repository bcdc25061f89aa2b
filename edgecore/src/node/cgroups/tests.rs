//! Cgroup arithmetic and layout, on fixtures for v2 and on this machine's own for what it has.

use super::files::weight;
use super::*;

const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
    32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
    35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
    40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
    41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

const UNIFIED: &str =
    "41 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";

fn all() -> Limits {
    Limits {
        cpu_shares: Some(512),
        cpu_quota_us: Some(50_000),
        memory_bytes: Some(64 << 20),
        pids: Some(100),
        huge_pages: vec![(2 << 20, 4 << 20), (1 << 30, 0)],
    }
}

fn check(table: &str, limits: &Limits, expected: &[&str]) {
    let mut cgroups = Cgroups { hierarchies: hierarchies(table), systemd: None };
    for unified in cgroups.hierarchies.iter_mut().filter(|hierarchy| hierarchy.unified) {
        unified.controllers = vec!["memory".to_owned(), "hugetlb".to_owned()];
    }
    let written: Vec<String> = cgroups
        .limited()
        .flat_map(|hierarchy| files(hierarchy, limits))
        .map(|(file, value)| format!("{file}={value}"))
        .collect();
    assert_eq!(written, expected);
}

#[test]
fn v1_limits_go_to_the_hierarchies_of_their_controllers() {
    let expected = [
        "cpu.shares=512",
        "cpu.cfs_period_us=100000",
        "cpu.cfs_quota_us=50000",
        "memory.limit_in_bytes=67108864",
    ];
    check(HYBRID, &all(), &expected);
    let huge = "36 31 0:33 / /sys/fs/cgroup/hugetlb rw - cgroup cgroup rw,hugetlb\n\
        37 31 0:34 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
    let expected =
        ["hugetlb.2MB.limit_in_bytes=4194304", "hugetlb.1GB.limit_in_bytes=0", "pids.max=100"];
    check(huge, &all(), &expected);
    check(
        HYBRID,
        &Limits { cpu_quota_us: Some(0), ..Limits::default() },
        &["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=-1"],
    );
}

#[test]
fn v2_limits_use_weights_and_max() {
    let expected = [
        "cpu.weight=20",
        "cpu.max=50000 100000",
        "memory.max=67108864",
        "pids.max=100",
        "hugetlb.2MB.max=4194304",
        "hugetlb.1GB.max=0",
    ];
    check(UNIFIED, &all(), &expected);
    check(UNIFIED, &Limits { memory_bytes: Some(-1), ..Limits::default() }, &["memory.max=max"]);
    for (shares, expected) in [(2, 1), (1024, 39), (262_144, 10_000), (1 << 40, 10_000), (0, 1)] {
        assert_eq!(weight(shares), expected, "{shares}");
    }
}

#[test]
fn slices_nest_and_paths_stay() {
    for (parent, path) in [
        ("/kubepods/burstable/pod1", "kubepods/burstable/pod1"),
        (
            "kubepods-burstable-pod1_2.slice",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
        ),
        ("/site/a/kubepods", "site/a/kubepods"),
    ] {
        assert_eq!(path_of(parent), Path::new(path));
    }
}

#[test]
fn on_a_v2_tree_directories_are_made_limited_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy { mount: dir.path().into(), controllers: Vec::new(), unified: true };
    let cgroups = Cgroups { hierarchies: vec![hierarchy], systemd: None };
    fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n").unwrap();

    cgroups.ensure_files("/kubepods/pod1", &all()).unwrap();
    let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
    assert_eq!(read("kubepods/pod1/memory.max"), "67108864");
    assert_eq!(read("cgroup.subtree_control"), "+memory");
    assert_eq!(cgroups.children("/kubepods"), ["pod1"]);

    // The kernel's files need no removal; those of the fixture do.
    for file in ["cpu.weight", "cpu.max", "memory.max", "pids.max"] {
        fs::remove_file(dir.path().join("kubepods/pod1").join(file)).unwrap();
    }
    fs::create_dir(dir.path().join("kubepods/pod1/container")).unwrap();
    cgroups.remove_files("/kubepods/pod1").unwrap();
    cgroups.remove_files("/kubepods/pod1").unwrap();
    assert!(cgroups.children("/kubepods").is_empty());
}

#[test]
fn on_this_machine_a_pod_cgroup_is_made_and_removed() {
    let cgroups = Cgroups::detect().unwrap();
    let parent = format!("/holdfast-test-{}/kubepods/pod1", std::process::id());
    let limits = Limits { pids: None, ..all() };

    cgroups.ensure_files(&parent, &limits).unwrap();
    cgroups.ensure_files(&parent, &limits).unwrap();
    let top = format!("/holdfast-test-{}", std::process::id());
    assert_eq!(cgroups.children(&top), ["kubepods"]);
    cgroups.remove_files(&top).unwrap();
    assert!(cgroups.children(&top).is_empty());
}

#[tokio::test]
async fn without_systemd_a_slice_is_neither_made_nor_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let hierarchy = Hierarchy { mount: dir.path().into(), controllers: Vec::new(), unified: true };
    let cgroups = Cgroups { hierarchies: vec![hierarchy], systemd: None };
    let cgroups = cgroups.with_systemd(&dir.path().join("no-bus"));
    let error = cgroups.ensure("kubepods.slice", all()).await.unwrap_err();
    let told = crate::telemetry::chain(&error);
    for part in ["kubepods.slice", "cgroup driver is systemd", "SystemdCgroup = false", "no-bus"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(cgroups.children("/").is_empty());
    fs::create_dir(dir.path().join("kubepods.slice")).unwrap();
    let error = cgroups.remove("kubepods.slice").await.unwrap_err();
    assert!(matches!(error, CgroupError::StopSlice { .. }), "{error}");
    assert!(cgroups.children("/").is_empty());
}
