//! The systemd unit of the agent.

use std::path::{Path, PathBuf};

/// Its name.
pub const NAME: &str = "edgecore.service";
/// Where edgeadm writes it.
pub const FILE: &str = "/etc/systemd/system/edgecore.service";
/// Where a package puts it.
pub const PACKAGED: &str = "/usr/lib/systemd/system/edgecore.service";
/// There while systemd is the first process (`sd_booted`).
pub const SYSTEMD: &str = "/run/systemd/system";
/// How files begin that edgeadm wrote and may remove.
pub const MARK: &str = "# Written by edgeadm";

/// Where changes of the unit are.
pub const CHANGES: &str = "/etc/systemd/system/edgecore.service.d";
/// Verbs of edgeadm that the unit calls for `edgeadm upgrade`.
const HOOKS: [(&str, &str); 2] =
    [("ExecStartPre=", "unit-hook before"), ("ExecStartPost=", "unit-hook after")];

/// The unit of the package, as it is there, with the programs and the configuration where a package has them.
///
/// No option makes a mount namespace (`ProtectSystem` and others do): what the agent mounts for pods would
/// not be seen by the runtime. `RestrictSUIDSGID` is not there because volumes of an `fsGroup` have that bit.
/// The agent starts whether or not edgeadm is there, and never before the machine has joined, whoever enables
/// the unit.
const OF_PACKAGE: &str = include_str!("../../packaging/edgecore.service");

/// The unit that runs `program` with the configuration at `config`.
pub fn text(program: &Path, config: &Path) -> String {
    let edgeadm = program.with_file_name("edgeadm");
    let replaced = [
        ("/usr/bin/edgecore ", format!("{} ", program.display())),
        ("/usr/bin/edgeadm ", format!("{} ", edgeadm.display())),
        (edgecore::args::CONFIG_PATH, config.display().to_string()),
    ];
    let unit = replaced
        .iter()
        .fold(OF_PACKAGE.to_owned(), |unit, (packaged, ours)| unit.replace(packaged, ours));

    format!("{MARK} join, removed by edgeadm reset. Put changes into {NAME}.d/*.conf.\n{unit}")
}

/// Whether the unit runs the agent with the configuration at `config`.
pub fn is_of(text: &str, config: &Path) -> bool {
    let config = config.display().to_string();

    text.lines().filter_map(|line| line.strip_prefix("ExecStart=")).any(|start| {
        let mut words = start.split_whitespace().skip_while(|word| *word != "--config").skip(1);
        match words.next() {
            Some(word) => word == config,
            None => config == edgecore::args::CONFIG_PATH,
        }
    })
}

/// How systemd starts the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Starts {
    /// Its program.
    pub program: Option<PathBuf>,
    /// edgeadm is called before and after.
    pub has_hooks: bool,
}

impl Starts {
    /// By the text of the unit and of its changes, in this order.
    pub fn of(texts: &[String]) -> Self {
        let lines = || texts.iter().flat_map(|text| text.lines());
        let start = lines().filter_map(|line| line.strip_prefix("ExecStart=")).next_back();
        let word = start.and_then(|start| start.split_whitespace().next());
        let program = word.map(|word| word.trim_start_matches(['@', '-', ':', '+', '!']).into());
        let is_called = |(key, verb): &(&str, &str)| {
            lines().any(|line| line.starts_with(*key) && line.contains(*verb))
        };

        Self { program, has_hooks: HOOKS.iter().all(is_called) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_of_the_agent_that_it_is_written_for() {
        let config = Path::new("/etc/holdfast/edgecore.yaml");
        let unit = text(Path::new("/usr/bin/edgecore"), config);
        assert!(unit.starts_with(MARK) && is_of(&unit, config), "{unit}");
        // A mount namespace of its own would hide volumes from the runtime.
        for option in ["Protect", "Private", "ReadOnlyPaths", "ReadWritePaths", "Inaccessible"] {
            assert!(!unit.contains(option), "{option}");
        }
    }

    #[test]
    fn the_unit_of_a_package_is_edgeadms_own_in_its_places() {
        let config = Path::new(edgecore::args::CONFIG_PATH);
        let starts = Starts::of(&[OF_PACKAGE.to_owned()]);
        assert_eq!(starts.program.as_deref(), Some(Path::new("/usr/bin/edgecore")));
        assert!(starts.has_hooks && is_of(OF_PACKAGE, config) && !OF_PACKAGE.starts_with(MARK));
        let same = text(Path::new("/usr/bin/edgecore"), config);
        assert_eq!(same.split_once('\n').unwrap().1, OF_PACKAGE);
        // Nothing of a package's places is left in the unit of another.
        let other = text(Path::new("/opt/bin/edgecore"), Path::new("/b/edgecore.yaml"));
        assert!(!other.contains("/usr/") && !other.contains("/etc/"), "{other}");
        assert!(other.contains("ExecStart=/opt/bin/edgecore run --config /b/edgecore.yaml\n"));
        assert!(other.contains("ConditionPathExists=/b/edgecore.yaml\n"), "{other}");
        assert!(Starts::of(&[other]).has_hooks);
    }

    #[test]
    fn the_units_program_is_the_last_that_is_named() {
        let config = Path::new("/etc/holdfast/edgecore.yaml");
        let ours = text(Path::new("/usr/bin/edgecore"), config);
        let starts = Starts::of(std::slice::from_ref(&ours));
        assert_eq!(starts.program.as_deref(), Some(Path::new("/usr/bin/edgecore")));
        assert!(starts.has_hooks && ours.contains("ExecStartPre=-/usr/bin/edgeadm "), "{ours}");
        let change = "[Service]\nExecStart=\nExecStart=-/opt/edgecore run\n".to_owned();
        let changed = Starts::of(&[ours, change.clone()]);
        assert_eq!(changed.program.as_deref(), Some(Path::new("/opt/edgecore")));
        assert!(changed.has_hooks && !Starts::of(&[change]).has_hooks);
        assert_eq!(Starts::of(&[]), Starts::default());
    }

    #[test]
    fn a_unit_is_of_the_agent_with_its_configuration() {
        let default = Path::new(edgecore::args::CONFIG_PATH);
        let plain = "[Service]\nExecStart=/usr/bin/edgecore run\n";
        assert!(is_of(plain, default) && !is_of(plain, Path::new("/b/edgecore.yaml")));
        let other = "ExecStart=/usr/bin/edgecore run --config /b/edgecore.yaml";
        assert!(is_of(other, Path::new("/b/edgecore.yaml")) && !is_of(other, default));
        assert!(!is_of("[Service]\n", default));
    }
}
