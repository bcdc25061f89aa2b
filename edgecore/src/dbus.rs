//! The system's message bus (D-Bus): logind and systemd are asked over it.

mod message;

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

pub use self::message::{Kind, Malformed, Message, Value, Values};

const BUS: &str = "org.freedesktop.DBus";
const BUS_OBJECT: Object = Object { owner: BUS, path: "/org/freedesktop/DBus" };

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 4096;
/// File descriptors that come with one read.
const FDS_MAX: usize = 4;

/// Why somebody on the bus cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// Nobody listens on its socket.
    #[error("cannot reach the message bus at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It went away.
    #[error("the connection to the message bus broke")]
    Broken(#[source] io::Error),
    /// This process may not use it.
    #[error("the message bus does not let us in: it said {0:?}")]
    NotLetIn(String),
    /// It says what is no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The call was answered with an error.
    #[error("{what} was refused: {why}")]
    Refused {
        /// What was called.
        what: &'static str,
        /// The name of the error.
        name: String,
        /// What it says.
        why: String,
    },
    /// The answer is not of the type that it should be.
    #[error("{0} was not answered as expected")]
    Unexpected(&'static str),
    /// There is no answer.
    #[error("{0} was not answered in {ANSWER_MAX:?}")]
    Slow(&'static str),
}

impl BusError {
    /// Whether the call was answered with the error of this name.
    pub fn is(&self, error: &str) -> bool {
        matches!(self, Self::Refused { name, .. } if name == error)
    }
}

/// What is called.
#[derive(Clone, Copy, Debug)]
pub struct Object {
    /// Its name on the bus.
    pub owner: &'static str,
    /// The object there.
    pub path: &'static str,
}

/// A connection to the system's message bus.
#[derive(Debug)]
pub struct Bus {
    stream: UnixStream,
    read: Vec<u8>,
    /// Of messages that have not come in whole.
    fds: VecDeque<OwnedFd>,
    /// The first of the last message.
    passed: Option<OwnedFd>,
    serial: u32,
}

impl Bus {
    /// On a connection that has been let in.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, read: Vec::new(), fds: VecDeque::new(), passed: None, serial: 0 }
    }

    /// `path` is the socket of the system's message bus.
    pub async fn connect(path: &Path) -> Result<Self, BusError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(|source| BusError::Connect { path: path.to_owned(), source })?;
        let mut bus = Self::new(stream);
        timeout(ANSWER_MAX, bus.authenticate()).await.map_err(|_| BusError::Slow("login"))??;
        bus.call("Hello", BUS_OBJECT, (BUS, "Hello"), Values::default(), |_| {}).await?;

        Ok(bus)
    }

    /// Asks for the signals that `rule` describes.
    pub async fn listen(&mut self, rule: &str) -> Result<(), BusError> {
        let method = (BUS, "AddMatch");
        self.call("AddMatch", BUS_OBJECT, method, Values::texts(&[rule]), |_| {}).await.map(drop)
    }

    /// As the user that runs this; file descriptors are to be passed.
    async fn authenticate(&mut self) -> Result<(), BusError> {
        let user = rustix::process::geteuid().as_raw().to_string();
        let login = format!("\0AUTH EXTERNAL {}\r\n", proto::object::hex(user.as_bytes()));
        for (said, expected) in
            [(login.as_str(), "OK "), ("NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD")]
        {
            self.write(said.as_bytes()).await?;
            let answer = self.line().await?;
            if !answer.starts_with(expected) {
                return Err(BusError::NotLetIn(answer));
            }
        }

        self.write(b"BEGIN\r\n").await
    }

    async fn line(&mut self) -> Result<String, BusError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_owned());
            }
            if self.read.len() > READ_BYTES {
                return Err(BusError::NotLetIn("a line without end".to_owned()));
            }
            self.fill().await?;
        }
    }

    /// Calls a method; `hear` is given what comes before the answer.
    pub async fn call(
        &mut self,
        what: &'static str,
        object: Object,
        method: (&str, &str),
        values: Values,
        mut hear: impl FnMut(&Message),
    ) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        let call = Message::call_with(serial, object.owner, object.path, method, values);
        let answered = async {
            self.write(&call.encode()).await?;
            loop {
                let message = self.message().await?;
                if message.kind == Kind::Signal || message.answers != Some(serial) {
                    hear(&message);
                    continue;
                }
                if message.kind == Kind::Error {
                    let why = message.first_text().unwrap_or_else(|| message.error.clone());
                    return Err(BusError::Refused { what, name: message.error, why });
                }
                return Ok(message);
            }
        };

        timeout(ANSWER_MAX, answered).await.map_err(|_| BusError::Slow(what))?
    }

    /// The file descriptor that came with the last message.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.passed.take()
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), BusError> {
        self.stream.write_all(bytes).await.map_err(BusError::Broken)
    }

    /// The next message. May be dropped.
    pub async fn message(&mut self) -> Result<Message, BusError> {
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
    async fn fill(&mut self) -> Result<(), BusError> {
        let (stream, read, fds) = (&self.stream, &mut self.read, &mut self.fds);
        let count = stream
            .async_io(Interest::READABLE, || receive(stream, read, fds))
            .await
            .map_err(BusError::Broken)?;

        if count == 0 {
            return Err(BusError::Broken(io::ErrorKind::UnexpectedEof.into()));
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
    // A message that is expected passes one.
    fds.truncate(FDS_MAX);
    read.extend(&bytes[..received.bytes]);

    Ok(received.bytes)
}
