//! Stops the agent: by systemd if that started it, and then whoever listens at its control socket.

use std::fs;
use std::path::Path;
use std::time::Duration;

use edgecore::Config;
use edgecore::systemd::{Systemd, SystemdError};
use rustix::process::Pid;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Outcome, files};
use crate::{process, ui, unit};

/// What the agent gets to stop, and a little more.
const STOP_MAX: Duration = Duration::from_secs(90);
/// A socket that somebody listens at takes calls at once.
const CALL_MAX: Duration = Duration::from_secs(10);

pub(super) async fn stop(config: &Config, path: &Path) -> Outcome {
    let mut told = Vec::new();
    if is_a_unit(path) {
        if let Err(error) = stop_unit(config).await {
            return Err(format!("systemd does not stop {}: {}", unit::NAME, ui::chain(&error)));
        }
        told.push(format!("stopped {}", unit::NAME));
    }
    if let Some(pid) = listener(&config.control_socket).await {
        process::end(pid, STOP_MAX)
            .await
            .map_err(|why| format!("process {} does not end: {why}", pid.as_raw_nonzero()))?;
        told.push(format!("process {} ended", pid.as_raw_nonzero()));
    }
    files::remove(std::slice::from_ref(&config.control_socket))?;

    Ok(if told.is_empty() { "it did not run".to_owned() } else { told.join(", ") })
}

/// Whether systemd runs and has a unit for this agent.
fn is_a_unit(path: &Path) -> bool {
    let is_ours = |file| fs::read_to_string(file).is_ok_and(|text| unit::is_of(&text, path));

    Path::new(unit::SYSTEMD).exists() && [unit::FILE, unit::PACKAGED].into_iter().any(is_ours)
}

async fn stop_unit(config: &Config) -> Result<(), SystemdError> {
    let mut systemd = Systemd::connect(&config.system_bus).await?;
    // Not to be started again comes first: the machine may go down meanwhile.
    systemd.disable(unit::NAME).await?;

    systemd.stop(unit::NAME).await
}

/// Who listens at the socket.
async fn listener(socket: &Path) -> Option<Pid> {
    let stream = timeout(CALL_MAX, UnixStream::connect(socket)).await.ok()?.ok()?;

    Pid::from_raw(stream.peer_cred().ok()?.pid()?)
}

/// Removes the unit that edgeadm wrote for this agent.
pub(super) async fn remove_unit(config: &Config, path: &Path) -> Outcome {
    let text = fs::read_to_string(unit::FILE).unwrap_or_default();
    if !text.starts_with(unit::MARK) || !unit::is_of(&text, path) {
        return Ok("edgeadm wrote none".to_owned());
    }
    let removed = files::remove(&[unit::FILE.into()])?;
    if Path::new(unit::SYSTEMD).exists() {
        let reloaded = async { Systemd::connect(&config.system_bus).await?.reload().await };
        reloaded.await.map_err(|error: SystemdError| ui::chain(&error))?;
    }

    Ok(removed)
}
