//! systemd's logind, which delays a shutdown for those who asked for it
//! (<https://systemd.io/INHIBITOR_LOCKS>).

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crate::dbus::{Bus, BusError, Kind, Message, Object, Values};

const LOGIND: Object = Object { owner: "org.freedesktop.login1", path: "/org/freedesktop/login1" };
const MANAGER: &str = "org.freedesktop.login1.Manager";
const PREPARE: &str = "PrepareForShutdown";

/// As long as this is held, a shutdown waits, up to the limit of logind.
#[derive(Debug)]
pub(super) struct Delay(#[expect(dead_code, reason = "it counts while it is open")] OwnedFd);

/// A connection to the system's message bus that hears of shutdowns.
#[derive(Debug)]
pub(super) struct Logind {
    bus: Bus,
    /// A shutdown was announced, or called off, since that was last asked for.
    is_news: bool,
}

impl Logind {
    /// `bus` is the socket of the system's message bus.
    pub(super) async fn connect(bus: &Path) -> Result<Self, BusError> {
        let mut bus = Bus::connect(bus).await?;
        let path = LOGIND.path;
        bus.listen(&format!(
            "type='signal',interface='{MANAGER}',member='{PREPARE}',path='{path}'"
        ))
        .await?;

        Ok(Self { bus, is_news: false })
    }

    /// How long logind delays a shutdown at most.
    pub(super) async fn delay_max(&mut self) -> Result<Duration, BusError> {
        self.property("InhibitDelayMaxUSec").await.map(Duration::from_micros)
    }

    /// Whether the machine is about to go down.
    pub(super) async fn goes_down(&mut self) -> Result<bool, BusError> {
        self.property("PreparingForShutdown").await.map(|told| told != 0)
    }

    async fn property(&mut self, name: &'static str) -> Result<u64, BusError> {
        let get = ("org.freedesktop.DBus.Properties", "Get");
        let answer = self.call(name, get, &[MANAGER, name]).await?;

        answer.variant_number().ok_or(BusError::Unexpected(name))
    }

    /// Delays the next shutdown.
    pub(super) async fn delay(&mut self) -> Result<Delay, BusError> {
        let asked = ["shutdown", "edgecore", "pods are stopped in order", "delay"];
        let answer = self.call("Inhibit", (MANAGER, "Inhibit"), &asked).await?;
        let fd = self.bus.take_fd().filter(|_| answer.signature == "h");

        fd.map(Delay).ok_or(BusError::Unexpected("Inhibit"))
    }

    /// Waits until it is worth to ask whether the machine goes down. A signal is no more than a hint: every
    /// user of the machine may send one like it.
    pub(super) async fn news(&mut self) -> Result<(), BusError> {
        while !std::mem::take(&mut self.is_news) {
            let message = self.bus.message().await?;
            self.is_news |= is_news(&message);
        }

        Ok(())
    }

    async fn call(
        &mut self,
        what: &'static str,
        method: (&str, &str),
        texts: &[&str],
    ) -> Result<Message, BusError> {
        let Self { bus, is_news: news } = self;
        let hear = |message: &Message| *news |= is_news(message);

        bus.call(what, LOGIND, method, Values::texts(texts), hear).await
    }
}

fn is_news(message: &Message) -> bool {
    message.kind == Kind::Signal && message.interface == MANAGER && message.member == PREPARE
}

#[cfg(test)]
mod tests {
    use std::io::{self, IoSlice, Read as _};
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd as _;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;

    fn on(stream: UnixStream) -> Logind {
        Logind { bus: Bus::new(stream), is_news: false }
    }

    fn message(kind: Kind, answers: Option<u32>, signature: &str, body: &[u8]) -> Message {
        Message {
            kind,
            answers,
            signature: signature.to_owned(),
            body: body.to_vec(),
            ..Message::call(1, "", LOGIND.path, (MANAGER, PREPARE), &[])
        }
    }

    #[tokio::test]
    async fn what_only_looks_like_an_answer_is_none() {
        let (ours, mut bus) = UnixStream::pair().unwrap();
        let mut logind = on(ours);
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
        let mut logind = on(ours);
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
