//! Exports of NFS servers, mounted without a helper program: what mount.nfs works out is worked out here,
//! the server's address and a version that both ends speak.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::{mounts, options};

/// Where an NFS server listens unless the options say otherwise.
const PORT: u16 = 2049;
/// A server that does not take a connection in this time is away. The kernel would wait much longer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Tried in this order if the options name none.
const VERSIONS: [&str; 4] = ["4.2", "4.1", "4.0", "3"];
/// What only mount.nfs understands.
const OF_THE_HELPER: [&str; 4] = ["bg", "fg", "retry", "retrans_mount"];

/// Why an export is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum NfsError {
    /// Nobody knows the server.
    #[error("cannot look NFS server {server} up")]
    Lookup {
        /// As the volume says.
        server: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is away.
    #[error("NFS server {server} is not in reach at port {port}")]
    Away {
        /// As the volume says.
        server: String,
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel cannot do it.
    #[error(
        "this node's kernel has no nfs file system: install the kernel's module nfs and load it \
         (modprobe nfs)"
    )]
    NoFileSystem,
    /// Kernel or server refused.
    #[error("cannot mount {export} with options {options}")]
    Refused {
        /// SERVER:/PATH.
        export: String,
        /// Those of the last try.
        options: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The place for it.
    #[error("cannot prepare {dir}")]
    Place {
        /// Which.
        dir: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is to be mounted.
#[derive(Clone, Copy, Debug)]
pub struct Export<'a> {
    /// Name or address.
    pub server: &'a str,
    /// What of it.
    pub path: &'a str,
    /// As the volume says.
    pub options: &'a [String],
    /// Nothing of the pod writes to it.
    pub read_only: bool,
}

impl Export<'_> {
    /// Mounts the export on `dir`, if it is not. What is mounted is not looked at: its server may be away.
    pub fn mount(&self, dir: &Path) -> Result<(), NfsError> {
        let place = |source| NfsError::Place { dir: dir.display().to_string(), source };
        if mounts::is_mount_point(dir).map_err(place)? {
            return Ok(());
        }
        std::fs::create_dir_all(dir).map_err(place)?;
        let wanted = Wanted::read(self.options, self.read_only);
        let (to, from) = self.reach(wanted.port)?;
        let mut result = Ok(());
        for version in wanted.versions() {
            let data = wanted.data(version, to.ip(), from);
            result = self.try_mount(dir, &wanted, &data);
            if !matches!(&result, Err(NfsError::Refused { source, .. }) if is_of_version(source)) {
                break;
            }
        }

        result
    }

    /// An address of the server that takes connections, and ours as it sees us.
    fn reach(&self, port: u16) -> Result<(SocketAddr, IpAddr), NfsError> {
        let server = || self.server.to_owned();
        let found = (self.server, port).to_socket_addrs();
        let found = found.map_err(|source| NfsError::Lookup { server: server(), source })?;
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for address in found {
            let tried = TcpStream::connect_timeout(&address, CONNECT_DEADLINE);
            match tried.and_then(|stream| stream.local_addr()) {
                Ok(own) => return Ok((address, own.ip())),
                Err(error) => last = error,
            }
        }

        Err(NfsError::Away { server: server(), port, source: last })
    }

    fn try_mount(&self, dir: &Path, wanted: &Wanted, data: &str) -> Result<(), NfsError> {
        let export = export(self.server, self.path);
        let mounted = CString::new(data)
            .map_err(io::Error::from)
            .and_then(|data| Ok(mount(&export, dir, "nfs", wanted.flags, data.as_c_str())?));
        mounted.map_err(|source| match Errno::from_io_error(&source) {
            Some(Errno::NODEV) => NfsError::NoFileSystem,
            _ => NfsError::Refused { export, options: data.to_owned(), source },
        })
    }
}

/// Whether another version of the protocol may do.
fn is_of_version(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PROTONOSUPPORT | Errno::INVAL))
}

fn export(server: &str, path: &str) -> String {
    if server.contains(':') { format!("[{server}]:{path}") } else { format!("{server}:{path}") }
}

/// What the options ask for.
#[derive(Debug)]
struct Wanted {
    flags: MountFlags,
    /// With its `vers=`, if it is named.
    rest: Vec<String>,
    has_version: bool,
    port: u16,
}

impl Wanted {
    fn read(options: &[String], read_only: bool) -> Self {
        let options::Options { flags, mut rest } = options::read(options, read_only);
        let name = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
        // Ours to say.
        rest.retain(|option| {
            let name = name(option);
            !OF_THE_HELPER.contains(&name.as_str()) && name != "addr" && name != "clientaddr"
        });
        let has_version = rest.iter().any(|option| {
            matches!(
                name(option).as_str(),
                "vers" | "nfsvers" | "v2" | "v3" | "v4" | "v4.0" | "v4.1" | "v4.2"
            )
        });
        let port = rest.iter().find_map(|option| option.strip_prefix("port=")?.parse().ok());
        let port = port.filter(|port| *port != 0).unwrap_or(PORT);

        Self { flags, rest, has_version, port }
    }

    /// `None` for the one that the options name.
    fn versions(&self) -> Vec<Option<&'static str>> {
        if self.has_version { vec![None] } else { VERSIONS.map(Some).to_vec() }
    }

    /// What mount(2) is given.
    fn data(&self, version: Option<&str>, server: IpAddr, own: IpAddr) -> String {
        let version = version.map(|version| format!("vers={version}"));
        let addresses = [format!("addr={server}"), format!("clientaddr={own}")];
        let all = version.into_iter().chain(self.rest.iter().cloned()).chain(addresses);

        all.collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn check(options: &str, expected: &[&str]) {
        let options: Vec<String> = options.split(' ').map(str::to_owned).collect();
        let wanted = Wanted::read(&options, false);
        let (server, own) = ("192.0.2.9".parse().unwrap(), "192.0.2.5".parse().unwrap());
        let data = wanted.versions().into_iter().map(|version| wanted.data(version, server, own));
        assert_eq!(data.collect::<Vec<_>>(), expected, "{options:?}");
    }

    #[test]
    fn options_are_what_the_kernel_takes() {
        check(
            "noatime nfsvers=4.1,hard,bg retry=3 addr=203.0.113.1",
            &["nfsvers=4.1,hard,addr=192.0.2.9,clientaddr=192.0.2.5"],
        );
        check(
            "",
            &["4.2", "4.1", "4.0", "3"]
                .map(|version| format!("vers={version},addr=192.0.2.9,clientaddr=192.0.2.5"))
                .each_ref()
                .map(String::as_str),
        );
        let port = Wanted::read(&["port=4049".to_owned()], true);
        assert_eq!((port.port, port.flags), (4049, MountFlags::RDONLY));
        assert_eq!(export("files.example", "/a"), "files.example:/a");
        assert_eq!(export("2001:db8::5", "/a"), "[2001:db8::5]:/a");
    }

    fn mounted(port: u16) -> String {
        let dir = tempfile::tempdir().unwrap();
        let options = [format!("port={port}")];
        let export =
            Export { server: "127.0.0.1", path: "/films", options: &options, read_only: false };
        let error = export.mount(&dir.path().join("volume")).unwrap_err();

        crate::telemetry::chain(&error)
    }

    #[test]
    fn a_server_that_is_away_is_said_before_the_kernel_waits_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // No server, or a kernel without nfs.
        let error = mounted(port);
        assert!(
            error.contains("cannot mount 127.0.0.1:/films") || error.contains("modprobe nfs"),
            "{error}"
        );
        drop(listener);
        let error = mounted(port);
        assert!(
            error.starts_with(&format!("NFS server 127.0.0.1 is not in reach at port {port}: ")),
            "{error}"
        );
    }
}
