//! `ctl restart`: containers are stopped and started anew by the agent.

use serde::{Deserialize, Serialize};

use super::CtlError;
use crate::agent::{Agent, part, query};
use crate::args::ctl::RestartArgs;
use crate::output::{self, Answer};

/// What the agent answers.
#[derive(Debug, Deserialize, Serialize)]
struct Restarting {
    containers: Vec<String>,
}

impl Answer for Restarting {
    fn text(&self) -> String {
        format!("restarting {}", self.containers.join(", "))
    }
}

pub(super) async fn run(args: RestartArgs) -> Result<(), CtlError> {
    let agent = Agent::of(&args.config.config)?;
    let container: Vec<_> = args.container.map(|name| ("container", name)).into_iter().collect();
    let (namespace, name) = (part(&args.namespace.namespace), part(&args.name));
    let path = format!("/holdfast/v1/pods/{namespace}/{name}/restart{}", query(&container));
    let restarting: Restarting = agent.post(&path).await?;
    output::show(args.output.output, &restarting);

    Ok(())
}
