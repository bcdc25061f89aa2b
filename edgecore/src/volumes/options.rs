//! Mount options as PersistentVolumes name them: those that any mount takes are flags of mount(2), the
//! rest belong to the file system.

use rustix::mount::MountFlags;

/// Options read apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// For the kernel.
    pub flags: MountFlags,
    /// For the file system.
    pub rest: Vec<String>,
}

/// Reads the options of a volume. What only mount(8) or an init system knows asks for nothing.
pub fn read(options: &[String], read_only: bool) -> Options {
    let mut read = Options { flags: MountFlags::empty(), rest: Vec::new() };
    let words = options.iter().flat_map(|option| option.split(','));
    for word in words.map(str::trim).filter(|word| !word.is_empty()) {
        match flag(word) {
            Some((flag, true)) => read.flags.insert(flag),
            Some((flag, false)) => read.flags.remove(flag),
            None => read.rest.push(word.to_owned()),
        }
    }
    if read_only {
        read.flags.insert(MountFlags::RDONLY);
    }

    read
}

/// The flag that a word sets or takes back.
fn flag(word: &str) -> Option<(MountFlags, bool)> {
    Some(match word {
        "ro" => (MountFlags::RDONLY, true),
        "rw" => (MountFlags::RDONLY, false),
        "nosuid" => (MountFlags::NOSUID, true),
        "suid" => (MountFlags::NOSUID, false),
        "nodev" => (MountFlags::NODEV, true),
        "dev" => (MountFlags::NODEV, false),
        "noexec" => (MountFlags::NOEXEC, true),
        "exec" => (MountFlags::NOEXEC, false),
        "noatime" => (MountFlags::NOATIME, true),
        "atime" => (MountFlags::NOATIME, false),
        "nodiratime" => (MountFlags::NODIRATIME, true),
        "diratime" => (MountFlags::NODIRATIME, false),
        "relatime" => (MountFlags::RELATIME, true),
        "norelatime" => (MountFlags::RELATIME, false),
        "strictatime" => (MountFlags::STRICTATIME, true),
        "sync" => (MountFlags::SYNCHRONOUS, true),
        "async" => (MountFlags::SYNCHRONOUS, false),
        "dirsync" => (MountFlags::DIRSYNC, true),
        "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "bind" => {
            (MountFlags::empty(), true)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_any_mount_takes_is_told_from_what_a_file_system_takes() {
        let options = ["noatime,nfsvers=4.1", "rw", "nodev", "dev", "_netdev"].map(str::to_owned);
        let read = read(&options, true);
        assert_eq!(read.flags, MountFlags::NOATIME | MountFlags::RDONLY);
        assert_eq!(read.rest, ["nfsvers=4.1"]);
    }
}
