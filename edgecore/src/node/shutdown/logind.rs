//! systemd's logind, which delays a shutdown for those who asked for it
//! (<https://systemd.io/INHIBITOR_LOCKS>).

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::dbus::{Kind, Malformed, Message};

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
const LOGIND: &str = "org.freedesktop.login1";
const LOGIND_PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";
const PREPARE: &str = "PrepareForShutdown";

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 4096;
/// File descriptors that come with one read.
const FDS_MAX: usize = 4;

/// Why logind cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogindError {
    #[error("cannot reach the message bus at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the connection to the message bus broke")]
    Broken(#[source] io::Error),
    #[error("the message bus does not let us in: it said {0:?}")]
    NotLetIn(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("{0} was refused: {1}")]
    Refused(&'static str, String),
    #[error("{0} was not answered as expected")]
    Unexpected(&'static str),
    #[error("{0} was not answered in {ANSWER_MAX:?}")]
    Slow(&'static str),
}

/// As long as this is held, a shutdown waits, up to the limit of logind.
#[derive(Debug)]
pub(super) struct Delay(#[expect(dead_code, reason = "it counts while it is open")] OwnedFd);

/// A connection to the system's message bus that hears of shutdowns.
#[derive(Debug)]
pub(super) struct Logind {
    stream: UnixStream,
    read: Vec<u8>,
    /// Of messages that have not come in whole.
    fds: VecDeque<OwnedFd>,
    /// The first of the last message.
    passed: Option<OwnedFd>,
    /// A shutdown was announced, or called off, since that was last asked for.
    is_news: bool,
    serial: u32,
}

impl Logind {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            read: Vec::new(),
            fds: VecDeque::new(),
            passed: None,
            is_news: false,
            serial: 0,
        }
    }

    /// `bus` is the socket of the system's message bus.
    pub(super) async fn connect(bus: &Path) -> Result<Self, LogindError> {
        let stream = UnixStream::connect(bus)
            .await
            .map_err(|source| LogindError::Connect { path: bus.to_owned(), source })?;
        let mut logind = Self::new(stream);
        timeout(ANSWER_MAX, logind.authenticate())
            .await
            .map_err(|_| LogindError::Slow("login"))??;
        logind.call("Hello", BUS, BUS_PATH, (BUS, "Hello"), &[]).await?;
        let rule =
            format!("type='signal',interface='{MANAGER}',member='{PREPARE}',path='{LOGIND_PATH}'");
        logind.call("AddMatch", BUS, BUS_PATH, (BUS, "AddMatch"), &[&rule]).await?;

        Ok(logind)
    }

    /// As the user that runs this; file descriptors are to be passed.
    async fn authenticate(&mut self) -> Result<(), LogindError> {
        let user = rustix::process::geteuid().as_raw().to_string();
        let login = format!("\0AUTH EXTERNAL {}\r\n", proto::object::hex(user.as_bytes()));
        for (said, expected) in
            [(login.as_str(), "OK "), ("NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD")]
        {
            self.write(said.as_bytes()).await?;
            let answer = self.line().await?;
            if !answer.starts_with(expected) {
                return Err(LogindError::NotLetIn(answer));
            }
        }

        self.write(b"BEGIN\r\n").await
    }

    async fn line(&mut self) -> Result<String, LogindError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            if self.read.len() > READ_BYTES {
                return Err(LogindError::NotLetIn("a line without end".to_owned()));
            }
            self.fill().await?;
        }
    }

    /// How long logind delays a shutdown at most.
    pub(super) async fn delay_max(&mut self) -> Result<Duration, LogindError> {
        self.property("InhibitDelayMaxUSec").await.map(Duration::from_micros)
    }

    /// Whether the machine is about to go down.
    pub(super) async fn goes_down(&mut self) -> Result<bool, LogindError> {
        self.property("PreparingForShutdown").await.map(|told| told != 0)
    }

    async fn property(&mut self, name: &'static str) -> Result<u64, LogindError> {
        let get = ("org.freedesktop.DBus.Properties", "Get");
        let answer = self.call(name, LOGIND, LOGIND_PATH, get, &[MANAGER, name]).await?;

        answer.variant_number().ok_or(LogindError::Unexpected(name))
    }

    /// Delays the next shutdown.
    pub(super) async fn delay(&mut self) -> Result<Delay, LogindError> {
        let asked = ["shutdown", "edgecore", "pods are stopped in order", "delay"];
        let answer =
            self.call("Inhibit", LOGIND, LOGIND_PATH, (MANAGER, "Inhibit"), &asked).await?;
        let fd = self.passed.take().filter(|_| answer.signature == "h");

        fd.map(Delay).ok_or(LogindError::Unexpected("Inhibit"))
    }

    /// Waits until it is worth to ask whether the machine goes down. A signal is no more than a hint: every
    /// user of the machine may send one like it.
    pub(super) async fn news(&mut self) -> Result<(), LogindError> {
        while !std::mem::take(&mut self.is_news) {
            let message = self.message().await?;
            self.hear(&message);
        }

        Ok(())
    }

    fn hear(&mut self, message: &Message) {
        self.is_news |= message.kind == Kind::Signal
            && message.interface == MANAGER
            && message.member == PREPARE;
    }

    async fn call(
        &mut self,
        what: &'static str,
        to: &str,
        path: &str,
        method: (&str, &str),
        texts: &[&str],
    ) -> Result<Message, LogindError> {
        self.serial += 1;
        let serial = self.serial;
        let answered = async {
            self.write(&Message::call(serial, to, path, method, texts).encode()).await?;
            loop {
                let message = self.message().await?;
                if message.kind == Kind::Signal || message.answers != Some(serial) {
                    self.hear(&message);
                    continue;
                }
                if message.kind == Kind::Error {
                    let why = message.first_text().unwrap_or(message.error);
                    return Err(LogindError::Refused(what, why));
                }
                return Ok(message);
            }
        };

        timeout(ANSWER_MAX, answered).await.map_err(|_| LogindError::Slow(what))?
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), LogindError> {
        self.stream.write_all(bytes).await.map_err(LogindError::Broken)
    }

    async fn message(&mut self) -> Result<Message, LogindError> {
        loop {
            if let Some((message, length)) = Message::decode(&self.read)? {
                self.read.drain(..length);
                let count = self.fds.len().min(message.fds as usize);
                self.passed = self.fds.drain(..count).next();
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// Reads what there is, with the file descriptors that come with it. May be dropped.
    async fn fill(&mut self) -> Result<(), LogindError> {
        let (stream, read, fds) = (&self.stream, &mut self.read, &mut self.fds);
        let count = stream
            .async_io(Interest::READABLE, || receive(stream, read, fds))
            .await
            .map_err(LogindError::Broken)?;

        if count == 0 {
            return Err(LogindError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }

        Ok(())
    }
}

fn receive(
    stream: &UnixStream,
    read: &mut Vec<u8>,
    fds: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut bytes = [0; READ_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    // logind passes one.
    fds.truncate(FDS_MAX);
    read.extend(&bytes[..received.bytes]);

    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read as _};
    use std::os::fd::AsFd as _;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    fn message(kind: Kind, answers: Option<u32>, signature: &str, body: &[u8]) -> Message {
        Message {
            kind,
            answers,
            signature: signature.to_owned(),
            body: body.to_vec(),
            ..Message::call(1, "", LOGIND_PATH, (MANAGER, PREPARE), &[])
        }
    }

    #[tokio::test]
    async fn what_only_looks_like_an_answer_is_none() {
        let (ours, mut bus) = UnixStream::pair().unwrap();
        let mut logind = Logind::new(ours);
        let (yes, no) = (b"\x01b\0\0\x01\0\0\0", b"\x01b\0\0\0\0\0\0");
        for told in [
            message(Kind::Signal, Some(1), "v", yes),
            message(Kind::Answer, Some(7), "v", yes),
            message(Kind::Answer, Some(1), "v", no),
        ] {
            bus.write_all(&told.encode()).await.unwrap();
        }
        assert!(!logind.goes_down().await.unwrap());
        // The signal is worth to ask again, once.
        logind.news().await.unwrap();
        assert!(!logind.is_news);
    }

    #[tokio::test]
    async fn the_delay_is_what_logind_passes() {
        let (ours, bus) = UnixStream::pair().unwrap();
        let mut logind = Logind::new(ours);
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let (_other, odd) = io::pipe().unwrap();
        let signal = message(Kind::Signal, None, "h", &[0; 4]);
        let answer = message(Kind::Answer, Some(1), "h", &[0; 4]);
        for (told, fd) in [(signal, odd.as_fd()), (answer, writer.as_fd())] {
            let bytes = Message { fds: 1, ..told }.encode();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = [fd];
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            sendmsg(&bus, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
        }
        let delay = logind.delay().await.unwrap();
        drop((writer, delay));
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }
}
