//! systemd, asked over the message bus: slices for pods, and the unit of the agent itself. What is written to
//! a cgroup of which systemd knows nothing is undone when it starts a container's scope below.

use std::path::Path;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::dbus::{Bus, BusError, Kind, Message, Object, Value, Values};

/// Properties of a unit with their values.
pub type Properties = Vec<(&'static str, Value)>;

const SYSTEMD: Object =
    Object { owner: "org.freedesktop.systemd1", path: "/org/freedesktop/systemd1" };
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const REMOVED: &str = "JobRemoved";
/// Jobs for a unit take the place of others for it.
const MODE: &str = "replace";
const EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// How long a job may take, as libcontainer's.
const JOB_MAX: Duration = Duration::from_secs(30);
/// Connections at once: each hears the end of every job, and a start of the machine makes many slices.
static CONNECTIONS: Semaphore = Semaphore::const_new(4);

/// Why systemd does not do what it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// It cannot be asked, or refuses.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A job of it ended otherwise.
    #[error("{0} ended as {1:?}")]
    Job(&'static str, String),
    /// A job of it does not end.
    #[error("{0} did not end in {JOB_MAX:?}")]
    Slow(&'static str),
}

/// A connection to systemd.
#[derive(Debug)]
pub struct Systemd {
    bus: Bus,
    _place: Option<SemaphorePermit<'static>>,
}

impl Systemd {
    /// `bus` is the socket of the system's message bus.
    pub async fn connect(bus: &Path) -> Result<Self, SystemdError> {
        // The semaphore is never closed.
        let place = CONNECTIONS.acquire().await.ok();
        let mut bus = Bus::connect(bus).await?;
        let owner = SYSTEMD.owner;
        let rule =
            format!("type='signal',sender='{owner}',interface='{MANAGER}',member='{REMOVED}'");
        bus.listen(&rule).await?;

        Ok(Self { bus, _place: place })
    }

    /// Makes the slice if it is not there, and gives it these limits.
    pub async fn ensure(
        &mut self,
        slice: &str,
        made: &Properties,
        limits: &Properties,
    ) -> Result<(), SystemdError> {
        let values = Values::texts(&[slice, MODE]).properties(made).no_units();
        match self.job("StartTransientUnit", values).await {
            Err(SystemdError::Bus(error)) if error.is(EXISTS) => {}
            done => done?,
        }
        if !limits.is_empty() {
            // Until the next start of the machine.
            let values = Values::texts(&[slice]).truth(true).properties(limits);
            self.call("SetUnitProperties", values).await?;
        }

        Ok(())
    }

    /// Starts the unit, anew if it runs, and waits until it says that it is up.
    pub async fn restart(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.job("RestartUnit", Values::texts(&[unit, MODE])).await
    }

    /// As [`Systemd::restart`], but answers as soon as systemd has begun with it.
    pub async fn begin_restart(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.call("RestartUnit", Values::texts(&[unit, MODE])).await?;

        Ok(())
    }

    /// Has the unit started with the machine.
    pub async fn enable(&mut self, unit: &str) -> Result<(), SystemdError> {
        // For good, and in place of links that are otherwise.
        let values = Values::default().list(&[unit]).truth(false).truth(true);
        self.call("EnableUnitFiles", values).await?;

        self.reload().await
    }

    /// Has it started no more.
    pub async fn disable(&mut self, unit: &str) -> Result<(), SystemdError> {
        self.call("DisableUnitFiles", Values::default().list(&[unit]).truth(false)).await?;

        self.reload().await
    }

    /// Reads all files of units anew.
    pub async fn reload(&mut self) -> Result<(), SystemdError> {
        self.call("Reload", Values::default()).await?;

        Ok(())
    }

    /// Stops the unit; a slice is gone then. Gone already is done.
    pub async fn stop(&mut self, slice: &str) -> Result<(), SystemdError> {
        let stopped = self.job("StopUnit", Values::texts(&[slice, MODE])).await;
        match stopped {
            Err(SystemdError::Bus(error)) if error.is(NO_SUCH_UNIT) => return Ok(()),
            done => done?,
        }
        // What failed is kept otherwise; what did not is unknown by now.
        match self.call("ResetFailedUnit", Values::texts(&[slice])).await {
            Err(error) if !error.is(NO_SUCH_UNIT) => Err(error.into()),
            _reset_or_gone => Ok(()),
        }
    }

    async fn call(&mut self, method: &'static str, values: Values) -> Result<Message, BusError> {
        self.bus.call(method, SYSTEMD, (MANAGER, method), values, |_| {}).await
    }

    /// Calls what is answered with a job, and waits until that is done.
    async fn job(&mut self, method: &'static str, values: Values) -> Result<(), SystemdError> {
        let answer = self.call(method, values).await?;
        let [job] = answer.all_texts().try_into().map_err(|_| BusError::Unexpected(method))?;
        let ended = async {
            loop {
                let message = self.bus.message().await?;
                let told = is_removed(&message, &answer.sender).then(|| message.all_texts());
                match told.as_deref() {
                    Some([path, _unit, result]) if *path == job => return Ok(result.clone()),
                    _other => {}
                }
            }
        };
        let result: Result<String, BusError> =
            timeout(JOB_MAX, ended).await.map_err(|_| SystemdError::Slow(method))?;
        let result = result?;

        if result == "done" { Ok(()) } else { Err(SystemdError::Job(method, result)) }
    }
}

/// A signal that ends a job, from systemd itself: every user of the machine may send one like it.
fn is_removed(message: &Message, systemd: &str) -> bool {
    message.kind == Kind::Signal
        && message.sender == systemd
        && message.interface == MANAGER
        && message.member == REMOVED
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::UnixStream;

    use super::*;

    const OWN: &str = ":1.1";

    fn told(kind: Kind, answers: Option<u32>, sender: &str, texts: &[&str]) -> Message {
        let member = if kind == Kind::Signal { REMOVED } else { "" };
        Message {
            kind,
            answers,
            sender: sender.to_owned(),
            ..Message::call(1, "", SYSTEMD.path, (MANAGER, member), texts)
        }
    }

    fn refused(answers: u32, name: &str) -> Message {
        Message { error: name.to_owned(), ..told(Kind::Error, Some(answers), OWN, &["no"]) }
    }

    async fn after(messages: &[Message]) -> (Systemd, UnixStream) {
        let (ours, mut bus) = UnixStream::pair().unwrap();
        for message in messages {
            bus.write_all(&message.encode()).await.unwrap();
        }

        (Systemd { bus: Bus::new(ours), _place: None }, bus)
    }

    #[tokio::test]
    async fn a_job_is_done_when_systemd_itself_says_so() {
        let answer = told(Kind::Answer, Some(1), OWN, &["/job/7"]);
        let lie = told(Kind::Signal, None, ":1.66", &["/job/7", "a.slice", "done"]);
        let other = told(Kind::Signal, None, OWN, &["/job/6", "b.slice", "done"]);
        let failed = told(Kind::Signal, None, OWN, &["/job/7", "a.slice", "failed"]);
        let (mut systemd, _bus) = after(&[answer.clone(), lie, other.clone(), failed]).await;
        let error = systemd.ensure("a.slice", &Vec::new(), &Vec::new()).await.unwrap_err();
        assert_eq!(error.to_string(), "StartTransientUnit ended as \"failed\"");

        let done = told(Kind::Signal, None, OWN, &["/job/7", "a.slice", "done"]);
        let (mut systemd, _bus) = after(&[answer, other, done]).await;
        systemd.ensure("a.slice", &Vec::new(), &Vec::new()).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_there_is_limited_and_what_is_gone_is_stopped() {
        let limits = vec![("TasksMax", Value::Number(7))];
        let set = told(Kind::Answer, Some(2), OWN, &[]);
        let (mut systemd, _bus) = after(&[refused(1, EXISTS), set]).await;
        systemd.ensure("a.slice", &Vec::new(), &limits).await.unwrap();
        let (mut systemd, _bus) = after(&[refused(1, NO_SUCH_UNIT)]).await;
        systemd.stop("a.slice").await.unwrap();
        let denied = "org.freedesktop.DBus.Error.AccessDenied";
        let (mut systemd, _bus) = after(&[refused(1, denied)]).await;
        let error = systemd.stop("a.slice").await.unwrap_err();
        assert_eq!(error.to_string(), "StopUnit was refused: no");
    }
}
