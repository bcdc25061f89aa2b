//! What is removed and what stays, without a runtime.

use std::fs;

use super::*;

fn config(dir: &Path) -> (PathBuf, Config) {
    let path = dir.join("edgecore.yaml");
    let at = |name: &str| dir.join(name).display().to_string();
    let text = format!(
        "nodeName: edge-1\ncloudcore: c:1\nidentityDir: {}\nrootDir: {}\npodLogsDir: {}\n\
         containerLogsDir: {}\nstateDir: {}\ncontrolSocket: {}\ncgroupRoot: /holdfast-test-none\n\
         cgroupDriver: cgroupfs\nruntimeEndpoint: unix://{}\n",
        dir.display(),
        at("kubelet"),
        at("logs"),
        at("links"),
        at("state"),
        at("agent.sock"),
        at("nobody.sock"),
    );
    fs::write(&path, &text).unwrap();
    let config = Config::load(&path).unwrap();

    (path, config)
}

fn write(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "x").unwrap();
}

fn of<'a>(report: &'a Report, step: &str) -> (&'a str, &'a str) {
    let step = report.steps.iter().find(|found| found.name == step).unwrap();

    (step.result, &step.detail)
}

#[tokio::test]
async fn what_fails_stops_nothing_and_the_configuration_stays_until_all_is_done() {
    let dir = tempfile::tempdir().unwrap();
    let (path, config) = config(dir.path());
    for file in [
        "kubelet/pods/u-1/volumes/x/file",
        "kubelet/seccomp/mine.json",
        "logs/shop_web_u-1/app/0.log",
        "logs/shop_other_u-2/app/0.log",
        "state/state.db",
        "state/state.db-wal",
        "state/store.key",
        "node.key",
        "node.crt",
        "ca.crt",
        ".node.key.new",
        "mine.txt",
    ] {
        write(&dir.path().join(file));
    }
    fs::create_dir_all(dir.path().join("links")).unwrap();
    for (link, to) in [("a", "shop_web_u-1"), ("b", "shop_other_u-2")] {
        let to = dir.path().join("logs").join(to).join("app/0.log");
        std::os::unix::fs::symlink(to, dir.path().join("links").join(link)).unwrap();
    }

    // No runtime answers: its pods may be there, which has to be told.
    let report = take(&config, &path, false).await;
    assert_eq!(of(&report, "pods").0, "failed");
    assert_eq!(of(&report, "configuration").0, "skipped");
    assert_eq!(report.failures(), 1, "{report:?}");
    let there = |name: &str| fs::symlink_metadata(dir.path().join(name)).is_ok();
    for gone in [
        "kubelet/pods",
        "logs/shop_web_u-1",
        "links/a",
        "state",
        "node.key",
        "ca.crt",
        ".node.key.new",
    ] {
        assert!(!there(gone), "{gone} is there");
    }
    for stays in [
        "kubelet/seccomp/mine.json",
        "logs/shop_other_u-2/app/0.log",
        "links/b",
        "mine.txt",
        "edgecore.yaml",
    ] {
        assert!(there(stays), "{stays} is gone");
    }

    // What is left is done by another run, and then there is nothing to do.
    let report = take(&config, &path, true).await;
    assert_eq!(report.failures(), 0, "{report:?}");
    assert_eq!(of(&report, "state"), ("done", "nothing was there"));
    assert!(!there("edgecore.yaml"));
}

#[test]
fn a_plan_does_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, config) = config(dir.path());
    let report = planned(&config, &path, false);
    assert!(report.text().contains("configuration   planned   remove"), "{}", report.text());
    assert_eq!(planned(&config, &path, true).steps.len(), report.steps.len() - 4);
    assert!(path.exists());
}
