//! Starts the agent by systemd, and waits until it is connected.

use std::time::Duration;

use edgecore::Config;
use edgecore::systemd::{Systemd, SystemdError};
use tokio::time::{Instant, sleep};

use super::JoinError;
use super::plan::{Plan, Service};
use crate::agent::Agent;
use crate::status::Told;
use crate::{ui, unit};

/// A slow machine needs seconds; more means that something has to be mended.
const CONNECTED_MAX: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Starts it; answers the command that does, if that is left to others.
pub(super) async fn agent(plan: &Plan) -> Result<Option<String>, JoinError> {
    let Service::Unit { start, .. } = plan.service else {
        return Ok(Some(format!("edgecore run --config {}", plan.config_path.display())));
    };
    let told = async {
        let mut systemd = Systemd::connect(&plan.config.system_bus).await?;
        systemd.reload().await?;
        systemd.enable(unit::NAME).await?;
        if start {
            systemd.restart(unit::NAME).await?;
        }
        Ok::<_, SystemdError>(())
    };
    told.await.map_err(JoinError::Start)?;
    if !start {
        return Ok(Some(format!("systemctl restart {}", unit::NAME)));
    }
    ui::step(&format!("started {}", unit::NAME));
    until_connected(&plan.config).await?;

    Ok(None)
}

async fn until_connected(config: &Config) -> Result<(), JoinError> {
    let agent = Agent::at(&config.control_socket);
    let by = Instant::now() + CONNECTED_MAX;
    loop {
        let reason = match agent.get::<Told>("/holdfast/v1/status").await {
            Ok(told) if told.link.state == "Up" => return Ok(()),
            Ok(told) => told.link.reason.unwrap_or_default(),
            Err(error) => ui::chain(&error),
        };
        if Instant::now() > by {
            return Err(JoinError::NotConnected(reason));
        }
        sleep(LOOK_AGAIN).await;
    }
}
