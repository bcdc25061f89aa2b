//! Ends a process of this machine.

use std::fs;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::{sleep, timeout};

/// What the kernel needs to end a process that is killed.
const KILL_MAX: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Asks the process to end, and after `stop_max` does not ask.
pub async fn end(pid: Pid, stop_max: Duration) -> Result<(), String> {
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    for (signal, within) in [(Signal::TERM, stop_max), (Signal::KILL, KILL_MAX)] {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        }
        let ended = async {
            while !has_ended(pid) {
                sleep(LOOK_AGAIN).await;
            }
        };
        if timeout(within, ended).await.is_ok() {
            return Ok(());
        }
    }

    Err("it was told to stop and was killed, and is there".to_owned())
}

/// Whether it is gone, or only its parent has not noticed.
pub fn has_ended(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // The name, in parentheses, may hold anything.
    let state = stat.as_deref().ok().and_then(|stat| stat.rsplit_once(") "));

    state.is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}
