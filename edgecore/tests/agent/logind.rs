//! A message bus of its own with something on it that behaves like logind.

use std::io::{IoSlice, PipeReader, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use edgecore::dbus::{Kind, Message};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

const BUS: &str = "org.freedesktop.DBus";
const LOGIND: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

/// Who is let in and what they may say.
const POLICY: &str = "<policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/>\
    <allow eavesdrop=\"true\"/><allow own=\"*\"/></policy>";

/// The bus, and a delay for everyone who asks for one.
pub(crate) struct FakeLogind {
    bus: Child,
    stream: UnixStream,
    delays: Receiver<PipeReader>,
    goes_down: Arc<AtomicBool>,
    questions: Receiver<()>,
}

/// What calls are answered with.
struct Serving {
    delays: Sender<PipeReader>,
    goes_down: Arc<AtomicBool>,
    questions: Sender<()>,
}

impl FakeLogind {
    /// Starts both; returns the bus's socket too.
    pub(crate) fn start(dir: &Path) -> (Self, PathBuf) {
        let (socket, config) = (dir.join("bus"), dir.join("bus.conf"));
        let listen = format!("<listen>unix:path={}</listen>", socket.display());
        let text = format!(
            "<busconfig><type>session</type>{listen}<auth>EXTERNAL</auth>{POLICY}</busconfig>"
        );
        std::fs::write(&config, text).unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon is installed");
        // It says so when it listens.
        let told = bus.stdout.as_mut().unwrap().read(&mut [0; 512]);
        assert!(told.is_ok_and(|count| count > 0), "the bus did not start");
        let stream = connect(&socket);
        let (delays_told, delays) = channel();
        let (asked, questions) = channel();
        let goes_down = Arc::<AtomicBool>::default();
        let serving =
            Serving { delays: delays_told, goes_down: Arc::clone(&goes_down), questions: asked };
        let served = stream.try_clone().unwrap();
        std::thread::spawn(move || serve(served, &serving));

        (Self { bus, stream, delays, goes_down, questions }, socket)
    }

    /// Somebody holds a delay from now on.
    pub(crate) fn next_delay(&self) -> PipeReader {
        self.delays.recv_timeout(super::DEADLINE).expect("a delay is asked for")
    }

    /// The machine is about to go down, or not any more, and that is said.
    pub(crate) fn go_down(&mut self, active: bool) {
        self.goes_down.store(active, Ordering::SeqCst);
        self.say(active);
    }

    /// The machine has started again.
    pub(crate) fn reboot(&self) {
        self.goes_down.store(false, Ordering::SeqCst);
    }

    /// Somebody else says in the same words that it is; returns once the agent knows better.
    pub(crate) async fn lie(&mut self) {
        while self.questions.try_recv().is_ok() {}
        self.say(true);
        super::eventually("logind is asked", || self.questions.try_recv().is_ok()).await;
    }

    fn say(&mut self, active: bool) {
        let mut signal = Message::call(1000, "", PATH, (MANAGER, "PrepareForShutdown"), &[]);
        signal.kind = Kind::Signal;
        "b".clone_into(&mut signal.signature);
        signal.body = u32::from(active).to_le_bytes().to_vec();
        self.stream.write_all(&signal.encode()).unwrap();
    }
}

impl Drop for FakeLogind {
    fn drop(&mut self) {
        drop(self.bus.kill());
        drop(self.bus.wait());
    }
}

/// Resolves when nobody holds the delay any more.
pub(crate) async fn released(mut delay: PipeReader) {
    let ended = edgecore::blocking::run(move || delay.read(&mut [0]).unwrap());
    assert_eq!(tokio::time::timeout(super::DEADLINE, ended).await.expect("released"), 0);
}

fn connect(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    for (said, expected) in [("\0AUTH EXTERNAL 30\r\n", "OK"), ("NEGOTIATE_UNIX_FD\r\n", "AGREE")] {
        stream.write_all(said.as_bytes()).unwrap();
        let mut line = [0; 256];
        let count = stream.read(&mut line).unwrap();
        assert!(line[..count].starts_with(expected.as_bytes()), "{said}");
    }
    stream.write_all(b"BEGIN\r\n").unwrap();
    stream.write_all(&Message::call(1, BUS, "/", (BUS, "Hello"), &[]).encode()).unwrap();
    let mut own = Message::call(2, BUS, "/", (BUS, "RequestName"), &[LOGIND]);
    "su".clone_into(&mut own.signature);
    own.body.resize(own.body.len().next_multiple_of(4) + 4, 0);
    stream.write_all(&own.encode()).unwrap();

    stream
}

fn serve(mut stream: UnixStream, serving: &Serving) {
    let (mut read, mut serial) = (Vec::new(), 10);
    let mut part = [0; 4096];
    while let Ok(count) = stream.read(&mut part) {
        if count == 0 {
            return;
        }
        read.extend(&part[..count]);
        while let Some((message, length)) = Message::decode(&read).unwrap() {
            read.drain(..length);
            serial += 1;
            if message.kind == Kind::Call {
                answer(&stream, &message, serial, serving);
            }
        }
    }
}

fn answer(stream: &UnixStream, call: &Message, serial: u32, serving: &Serving) {
    let mut answer = Message::call(serial, &call.sender, "", ("", ""), &[]);
    (answer.kind, answer.answers) = (Kind::Answer, Some(call.serial));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let (reader, writer) = std::io::pipe().unwrap();
    let fds = [writer.as_fd()];
    let is_asked = |name: &str| call.body.windows(name.len()).any(|part| part == name.as_bytes());
    match call.member.as_str() {
        "Get" if is_asked("PreparingForShutdown") => {
            "v".clone_into(&mut answer.signature);
            let told = u8::from(serving.goes_down.load(Ordering::SeqCst));
            serving.questions.send(()).unwrap();
            answer.body = [1, b'b', 0, 0, told, 0, 0, 0].to_vec();
        }
        "Get" => {
            "v".clone_into(&mut answer.signature);
            answer.body = b"\x01t\0\0\0\0\0\0".to_vec();
            answer.body.extend(30_000_000_u64.to_le_bytes());
        }
        "Inhibit" => {
            "h".clone_into(&mut answer.signature);
            (answer.body, answer.fds) = (vec![0; 4], 1);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            serving.delays.send(reader).unwrap();
        }
        other => panic!("nobody calls {other}"),
    }
    let bytes = answer.encode();
    let sent = sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
    assert_eq!(sent, bytes.len());
    // Our end is closed here, so that the delay is that of who asked.
}
