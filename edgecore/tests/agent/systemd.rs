//! A systemd of its own, in namespaces and below a cgroup of its own, as on nodes whose runtime's cgroup
//! driver is systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use edgecore::node::cgroups::{CgroupError, Cgroups, Limits};

/// Tells the test that it runs beside that systemd.
const INSIDE: &str = "HOLDFAST_TEST_INSIDE_SYSTEMD";
/// Where systemd nests the pod's slice.
const NESTED: &str = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu_1.slice";
const POD: &str = "kubepods-burstable-podu_1.slice";
const BUS: &str = "run/dbus/system_bus_socket";

/// Moves itself below a cgroup `$1` of every hierarchy, and starts the rest there.
const OUTSIDE: &str = r#"set -e
for h in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
  d=/sys/fs/cgroup/$h/$1; mkdir -p "$d"
  if [ $h = cpuset ]; then cat "$d/../cpuset.cpus" >"$d/cpuset.cpus"; cat "$d/../cpuset.mems" >"$d/cpuset.mems"; fi
  echo $$ >"$d/cgroup.procs"
done
exec unshare --cgroup --mount --pid --fork --kill-child --net --uts --ipc --propagation private bash -c "$2""#;

/// Nothing is started but the message bus.
const BOOT: &str = r"set -e
umount -R /sys/fs/cgroup; mount -t proc proc /proc; mount -t tmpfs tmpfs /sys/fs/cgroup; mount -t tmpfs tmpfs /run
for h in cpu cpuacct cpuset memory devices freezer blkio pids; do
  mkdir /sys/fs/cgroup/$h; mount -t cgroup -o $h cgroup /sys/fs/cgroup/$h
done
mkdir /sys/fs/cgroup/systemd; mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
mkdir -p /run/systemd/system /run/dbus /run/lock /run/units
cd /run/units
printf '[Unit]\nDefaultDependencies=no\nWants=dbus.socket\n' >default.target
printf '[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n' >dbus.socket
printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n' >dbus.service
hostname holdfast-test
export container=other SYSTEMD_UNIT_PATH=/run/systemd/system.control:/run/systemd/transient:/run/units
exec /lib/systemd/systemd --system --unit=default.target systemd.unified_cgroup_hierarchy=0 </dev/null";

/// The running systemd; gone with its cgroups when dropped.
struct Machine {
    outer: Child,
    cgroup: String,
}

impl Machine {
    fn boot() -> Self {
        let cgroup = format!("holdfast-systemd-{}", std::process::id());
        let outer = Command::new("bash")
            .args(["-c", OUTSIDE, "outside", &cgroup, BOOT])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();

        Self { outer, cgroup }
    }

    /// The first process of the namespaces.
    fn first(&self) -> Option<String> {
        let outer = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;

        children.split_whitespace().next().map(str::to_owned)
    }

    /// The process that is systemd, once the message bus listens.
    fn init(&self) -> Option<String> {
        let init = self.first()?;
        let is_up = Path::new("/proc").join(&init).join("root").join(BUS).exists();

        (is_up && fs::read_to_string(format!("/proc/{init}/comm")).ok()?.trim() == "systemd")
            .then_some(init)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With the first process all others end; the outer one waits for that.
        match self.first() {
            Some(first) => drop(Command::new("kill").args(["-KILL", &first]).status()),
            None => drop(self.outer.kill()),
        }
        drop(self.outer.wait());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            remove(&hierarchy.path().join(&self.cgroup));
        }
    }
}

fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove(&entry.path());
        }
    }
    drop(fs::remove_dir(dir));
}

#[tokio::test]
#[ignore = "needs root and Debian's systemd"]
async fn systemd_leaves_pods_their_limits_when_it_starts_a_container() {
    if std::env::var_os(INSIDE).is_some() {
        return inside().await;
    }
    let machine = Machine::boot();
    super::eventually("systemd listens", || machine.init().is_some()).await;
    let test = "systemd::systemd_leaves_pods_their_limits_when_it_starts_a_container";
    let init = machine.init().unwrap();
    let output = Command::new("nsenter")
        .args(["--target", &init, "--mount", "--pid", "--cgroup", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn value(controller: &str, path: &str, file: &str) -> String {
    let path = PathBuf::from("/sys/fs/cgroup").join(controller).join(path).join(file);

    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn limits_of_pod() -> [String; 6] {
    [
        value("memory", NESTED, "memory.limit_in_bytes"),
        value("pids", NESTED, "pids.max"),
        value("cpu", NESTED, "cpu.shares"),
        value("cpu", NESTED, "cpu.cfs_quota_us"),
        value("memory", "kubepods.slice", "memory.limit_in_bytes"),
        value("cpu", "kubepods.slice/kubepods-burstable.slice", "cpu.shares"),
    ]
    .map(|text| text.trim().to_owned())
}

/// A scope in the pod's slice, as runc has systemd make one for a container.
async fn start_container(name: &str) -> Child {
    let child = Command::new("systemd-run")
        .args(["--scope", "--quiet", &format!("--slice={POD}"), &format!("--unit={name}")])
        .args(["--property=MemoryMax=32M", "sleep", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let procs = Path::new("/sys/fs/cgroup/memory").join(NESTED).join(name).join("cgroup.procs");
    super::eventually("a container runs", || {
        fs::read_to_string(&procs).is_ok_and(|pids| !pids.is_empty())
    })
    .await;

    child
}

fn state(unit: &str) -> String {
    let output = Command::new("systemctl").args(["is-active", unit]).output().unwrap();

    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn inside() {
    let cgroups = Cgroups::detect().unwrap().with_systemd(&Path::new("/").join(BUS));
    let all = Limits { memory_bytes: Some(1 << 30), cpu_shares: Some(2000), ..Limits::default() };
    let class = Limits { cpu_shares: Some(300), ..Limits::default() };
    let pod = |memory| Limits {
        memory_bytes: Some(memory),
        cpu_shares: Some(100),
        cpu_quota_us: Some(20_100),
        pids: Some(50),
        ..Limits::default()
    };
    let wanted = |memory: i64| {
        [&memory.to_string(), "50", "100", "21000", "1073741824", "300"].map(str::to_owned)
    };
    cgroups.ensure("kubepods.slice", all).await.unwrap();
    cgroups.ensure("kubepods-burstable.slice", class).await.unwrap();
    cgroups.ensure(POD, pod(64 << 20)).await.unwrap();
    assert_eq!(limits_of_pod(), wanted(64 << 20));

    let mut containers = vec![start_container("cri-1.scope").await];
    assert_eq!(limits_of_pod(), wanted(64 << 20), "with a container");
    // As after a resize, and as when the agent has started again.
    for _ in 0..2 {
        cgroups.ensure(POD, pod(96 << 20)).await.unwrap();
    }
    containers.push(start_container("cri-2.scope").await);
    assert_eq!(limits_of_pod(), wanted(96 << 20), "with another container");
    let reloaded = Command::new("systemctl").arg("daemon-reload").status().unwrap();
    assert!(reloaded.success());
    containers.push(start_container("cri-3.scope").await);
    assert_eq!(limits_of_pod(), wanted(96 << 20), "after a reload");

    let busy = cgroups.remove(POD).await.unwrap_err();
    assert!(matches!(busy, CgroupError::Remove { .. }), "{busy}");
    assert!(containers.iter_mut().all(|container| container.try_wait().unwrap().is_none()));
    for mut container in containers {
        container.kill().unwrap();
        container.wait().unwrap();
    }
    assert_eq!(state(POD), "active");
    for _ in 0..2 {
        cgroups.remove(POD).await.unwrap();
        assert_eq!(state(POD), "inactive");
        assert!(cgroups.children("kubepods-burstable.slice").is_empty());
    }
    assert_eq!(state("kubepods-burstable.slice"), "active");
    // The same pod again, as one of a file.
    cgroups.ensure(POD, pod(64 << 20)).await.unwrap();
    assert_eq!((limits_of_pod(), state(POD).as_str()), (wanted(64 << 20), "active"));
}
