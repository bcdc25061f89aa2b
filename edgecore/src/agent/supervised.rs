//! Tells systemd, if it started the agent, that the agent is up and lives.

use std::time::Duration;

use daemon::notify::{self, Notifier};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::link::LinkState;
use crate::node::monitor::Beat;

/// A loop that has not turned for so long will not turn any more. A runtime that hangs ends its calls much
/// earlier, and a new start of the agent would not mend it.
const LOOP_AGE_MAX: Duration = Duration::from_mins(5);

/// Tells until asked to stop; at once if nobody is to be told.
pub(super) async fn run(beat: Beat, mut link: watch::Receiver<LinkState>, stop: CancellationToken) {
    let Some(systemd) = Notifier::from_environment() else {
        stop.cancelled().await;
        return;
    };
    systemd.ready();
    systemd.status(&shown(&link.borrow_and_update()));
    let period = notify::watchdog_period();
    let mut ticks = interval(period.unwrap_or(LOOP_AGE_MAX));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                systemd.stopping();
                return;
            }
            Ok(()) = link.changed() => systemd.status(&shown(&link.borrow_and_update())),
            // That this is reached shows that the main loop turns.
            _ = ticks.tick(), if period.is_some() => {
                if u128::from(beat.age_ms()) < LOOP_AGE_MAX.as_millis() {
                    systemd.alive();
                } else {
                    tracing::error!("the loop of the pods hangs: systemd is to start the agent anew");
                }
            }
        }
    }
}

fn shown(link: &LinkState) -> String {
    match link {
        LinkState::Up { since, .. } => format!("connected to cloudcore since {since}"),
        LinkState::Down { since, reason } => {
            format!("not connected to cloudcore since {since}: {reason}")
        }
    }
}
