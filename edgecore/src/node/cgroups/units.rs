//! What systemd is told of a cgroup that is a slice: the properties that a kubelet's libcontainer gives it
//! (`opencontainers/cgroups/systemd`).

use super::Limits;
use super::files::{SHARES_MAX, SHARES_MIN, weight};
use crate::dbus::Value;
use crate::systemd::Properties;

/// CPU time in microseconds per period that systemd can give: it counts in whole hundredths of a CPU.
const QUOTA_STEP_US: i64 = 1000;
/// Microseconds of CPU time per second, per microsecond of a period's quota.
const PERIODS_PER_S: i64 = 10;

/// The slice's name, if what the runtime is told as `parent` is one.
pub(super) fn slice(parent: &str) -> Option<&str> {
    parent.strip_suffix(".slice").filter(|name| !name.contains('/')).map(|_name| parent)
}

/// The slice that this one is in.
fn outer(slice: &str) -> String {
    let name = slice.trim_end_matches(".slice");

    name.rsplit_once('-')
        .map_or_else(|| "-.slice".to_owned(), |(outer, _)| format!("{outer}.slice"))
}

/// What a slice is made with.
pub(super) fn made(slice: &str, unified: bool) -> Properties {
    let io = if unified { "IOAccounting" } else { "BlockIOAccounting" };
    let accounting = ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"];
    let mut properties = vec![
        ("Description", Value::Text(format!("Kubernetes pods in {slice}"))),
        ("Wants", Value::Texts(vec![outer(slice)])),
    ];
    properties.extend(accounting.map(|name| (name, Value::Truth(true))));
    properties.push(("DefaultDependencies", Value::Truth(false)));

    properties
}

/// The limits as systemd can have them: CPU time is rounded up, as that of what runs inside is.
pub(super) fn rounded(limits: Limits) -> Limits {
    let round = |us: i64| {
        let over = us.rem_euclid(QUOTA_STEP_US);
        if us > 0 && over > 0 { us.saturating_add(QUOTA_STEP_US - over) } else { us }
    };

    Limits { cpu_quota_us: limits.cpu_quota_us.map(round), ..limits }
}

/// The properties of rounded limits. The period of CPU quotas is systemd's own, which versions before 242
/// cannot be told; huge pages it does not know.
pub(super) fn limited(limits: &Limits, unified: bool) -> Properties {
    let (memory, cpu) =
        if unified { ("MemoryMax", "CPUWeight") } else { ("MemoryLimit", "CPUShares") };
    let share = |shares: u64| {
        if unified { weight(shares) } else { shares.clamp(SHARES_MIN, SHARES_MAX) }
    };
    let per_second = |us: i64| us.saturating_mul(PERIODS_PER_S);
    let mut properties = Vec::new();
    let mut add = |name, value: Option<u64>| {
        properties.extend(value.map(|number| (name, Value::Number(number))));
    };
    add(memory, limits.memory_bytes.map(most));
    add(cpu, limits.cpu_shares.map(share));
    add("CPUQuotaPerSecUSec", limits.cpu_quota_us.map(|us| most(per_second(us))));
    add("TasksMax", limits.pids.map(most));

    properties
}

/// How systemd is told "infinity".
fn most(value: i64) -> u64 {
    u64::try_from(value).ok().filter(|value| *value > 0).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(properties: Properties) -> Vec<String> {
        properties
            .into_iter()
            .map(|(name, value)| match value {
                Value::Truth(truth) => format!("{name}={truth}"),
                Value::Number(number) => format!("{name}={number}"),
                Value::Text(text) => format!("{name}={text}"),
                Value::Texts(texts) => format!("{name}={}", texts.join(",")),
            })
            .collect()
    }

    #[test]
    fn a_slice_is_made_as_libcontainer_makes_it() {
        for (slice, outer) in [
            ("kubepods.slice", "-.slice"),
            ("kubepods-burstable.slice", "kubepods.slice"),
            ("kubepods-burstable-podu_1.slice", "kubepods-burstable.slice"),
        ] {
            let expected = |io: &str| {
                [
                    format!("Description=Kubernetes pods in {slice}"),
                    format!("Wants={outer}"),
                    "MemoryAccounting=true".to_owned(),
                    "CPUAccounting=true".to_owned(),
                    format!("{io}=true"),
                    "TasksAccounting=true".to_owned(),
                    "DefaultDependencies=false".to_owned(),
                ]
            };
            assert_eq!(shown(made(slice, false)), expected("BlockIOAccounting"));
            assert_eq!(shown(made(slice, true)), expected("IOAccounting"));
        }
        assert_eq!(slice("kubepods-podu_1.slice"), Some("kubepods-podu_1.slice"));
        assert_eq!((slice("/kubepods/podu-1"), slice("/a/b.slice")), (None, None));
    }

    #[test]
    fn limits_are_told_as_libcontainer_tells_them() {
        let all = Limits {
            cpu_shares: Some(512),
            cpu_quota_us: Some(50_000),
            memory_bytes: Some(64 << 20),
            pids: Some(100),
            huge_pages: vec![(2 << 20, 4 << 20)],
        };
        let v1 =
            ["MemoryLimit=67108864", "CPUShares=512", "CPUQuotaPerSecUSec=500000", "TasksMax=100"];
        let v2 =
            ["MemoryMax=67108864", "CPUWeight=20", "CPUQuotaPerSecUSec=500000", "TasksMax=100"];
        assert_eq!(shown(limited(&all, false)), v1);
        assert_eq!(shown(limited(&all, true)), v2);
        assert!(limited(&Limits::default(), true).is_empty());
        let none = Limits {
            cpu_shares: Some(0),
            cpu_quota_us: Some(-1),
            memory_bytes: Some(-1),
            pids: Some(-1),
            huge_pages: Vec::new(),
        };
        let infinity = u64::MAX;
        let expected = |memory: &str, cpu: &str| {
            [
                format!("{memory}={infinity}"),
                cpu.to_owned(),
                format!("CPUQuotaPerSecUSec={infinity}"),
                format!("TasksMax={infinity}"),
            ]
        };
        assert_eq!(shown(limited(&none, false)), expected("MemoryLimit", "CPUShares=2"));
        assert_eq!(shown(limited(&none, true)), expected("MemoryMax", "CPUWeight=1"));
    }

    #[test]
    fn cpu_time_is_rounded_up_to_what_systemd_counts() {
        for (us, expected) in
            [(12_345, 13_000), (13_000, 13_000), (1, 1000), (-1, -1), (0, 0), (i64::MAX, i64::MAX)]
        {
            let limits = rounded(Limits { cpu_quota_us: Some(us), ..Limits::default() });
            assert_eq!(limits.cpu_quota_us, Some(expected), "{us}");
        }
    }
}
