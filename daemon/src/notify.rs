//! What systemd is told of the process that it started (sd_notify(3)): that it is up, how it is, that it
//! lives, and that it stops.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where systemd listens.
const SOCKET: &str = "NOTIFY_SOCKET";
/// How often it wants to hear that the process lives, and which process.
const PERIOD: &str = "WATCHDOG_USEC";
const PROCESS: &str = "WATCHDOG_PID";

/// The way to systemd.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    systemd: SocketAddr,
}

impl Notifier {
    /// `None` if nobody wants to be told.
    pub fn from_environment() -> Option<Self> {
        Self::to(&std::env::var_os(SOCKET)?).ok()
    }

    /// Tells whoever listens at that path, or in the abstract namespace at that name after an `@`.
    fn to(name: &OsStr) -> io::Result<Self> {
        let systemd = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A systemd that does not read is not waited for.
        socket.set_nonblocking(true)?;

        Ok(Self { socket, systemd })
    }

    /// The process is up.
    pub fn ready(&self) {
        self.say("READY=1");
    }

    /// How it is, in one line, for `systemctl status`.
    pub fn status(&self, text: &str) {
        self.say(&format!("STATUS={}", text.replace('\n', " ")));
    }

    /// It lives.
    pub fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// It is about to end.
    pub fn stopping(&self) {
        self.say("STOPPING=1");
    }

    fn say(&self, words: &str) {
        if let Err(error) = self.socket.send_to_addr(words.as_bytes(), &self.systemd) {
            tracing::debug!(%error, words, "systemd cannot be told");
        }
    }
}

/// How often to say that the process lives: three times as often as systemd asks for. `None` if it does
/// not ask.
pub fn watchdog_period() -> Option<Duration> {
    let own = std::process::id().to_string();

    period(&std::env::var(PERIOD).ok()?, std::env::var(PROCESS).ok(), &own)
}

fn period(micros: &str, process: Option<String>, own: &str) -> Option<Duration> {
    let micros: u64 = micros.parse().ok().filter(|micros| *micros > 0)?;

    process.is_none_or(|process| process == own).then(|| Duration::from_micros(micros) / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_hears_what_is_said() {
        let path = std::env::temp_dir().join(format!("holdfast-notify-{}", std::process::id()));
        let _left_behind = std::fs::remove_file(&path);
        let systemd = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(path.as_os_str()).unwrap();
        notifier.ready();
        notifier.status("two\nlines");
        let mut heard = [0; 64];
        for expected in ["READY=1", "STATUS=two lines"] {
            let length = systemd.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], expected.as_bytes());
        }
        std::fs::remove_file(&path).unwrap();
        // Nobody listens any more, and nobody minds.
        notifier.alive();
    }

    #[test]
    fn the_watchdog_is_fed_if_it_is_ours() {
        let of =
            |micros: &str, process: Option<&str>| period(micros, process.map(str::to_owned), "7");
        assert_eq!(of("60000000", Some("7")), Some(Duration::from_secs(20)));
        assert_eq!(of("60000000", None), Some(Duration::from_secs(20)));
        assert_eq!(of("60000000", Some("8")), None);
        assert_eq!((of("0", None), of("x", None)), (None, None));
    }
}
