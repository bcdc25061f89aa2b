//! `ctl logs`: the log of a container, as it comes.

use http::Method;

use super::{CtlError, container_of, pod_of};
use crate::agent::{part, query};
use crate::args::ctl::LogsArgs;
use crate::ui;

pub(super) async fn run(args: LogsArgs) -> Result<(), CtlError> {
    let namespace = &args.namespace.namespace;
    let (agent, pod) = pod_of(&args.config.config, namespace, &args.pod).await?;
    let container = container_of(&pod, args.container.clone())?;
    let path = format!(
        "/containerLogs/{}/{}/{}{}",
        part(namespace),
        part(&args.pod),
        part(&container),
        query(&parameters(&args))
    );
    let mut log = agent.ask(Method::GET, &path).await?;
    while let Some(bytes) = log.next().await? {
        if !ui::bytes(&bytes) {
            break;
        }
    }

    Ok(())
}

/// As the kubelet reads them.
fn parameters(args: &LogsArgs) -> Vec<(&'static str, String)> {
    let mut parameters = Vec::new();
    for (name, flag) in
        [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)]
    {
        if flag {
            parameters.push((name, "true".to_owned()));
        }
    }
    if args.tail >= 0 {
        parameters.push(("tailLines", args.tail.to_string()));
    }
    parameters.extend(args.since_seconds.map(|seconds| ("sinceSeconds", seconds.to_string())));
    parameters.extend(args.since_time.clone().map(|time| ("sinceTime", time)));
    parameters.extend(args.limit_bytes.map(|bytes| ("limitBytes", bytes.to_string())));

    parameters
}
