//! `ctl get`: lists.

use k8s_openapi::api::core::v1::{Event, Pod};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::selector::Selector;
use super::{CtlError, pod_of};
use crate::agent::Agent;
use crate::args::ctl::{GetArgs, Kind};
use crate::clock;
use crate::output::{self, Answer, Table};
use crate::pods::{self, Summary, age};
use crate::status::{self, Told};

pub(super) async fn run(args: GetArgs) -> Result<(), CtlError> {
    match args.kind {
        Kind::Pods => get_pods(args).await,
        Kind::Events => {
            let agent = Agent::of(&args.config.config)?;
            let events = events(&agent).await?;
            let wanted = |event: &Event| {
                let namespace = event.involved_object.namespace.as_deref();
                args.all_namespaces
                    || namespace.is_none_or(|found| found == args.namespace.namespace)
            };
            let items = events.into_iter().filter(wanted).collect();
            output::show(
                args.output.output,
                &Events { kind: "EventList", api_version: "v1", items },
            );
            Ok(())
        }
        Kind::Nodes => {
            let agent = Agent::of(&args.config.config)?;
            let told = agent.get::<Told>("/holdfast/v1/status").await?;
            output::show(args.output.output, &Node(told));
            Ok(())
        }
    }
}

async fn get_pods(args: GetArgs) -> Result<(), CtlError> {
    let selector = args.selector.as_deref().map(Selector::parse).transpose()?.unwrap_or_default();
    let namespace = &args.namespace.namespace;
    if let Some(name) = &args.name {
        let (_, pod) = pod_of(&args.config.config, namespace, name).await?;
        output::show(args.output.output, &OnePod(pod));
        return Ok(());
    }
    let agent = Agent::of(&args.config.config)?;
    let wanted = |pod: &Pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let is_there = args.all_namespaces || pod.metadata.namespace.as_ref() == Some(namespace);
        is_there && selector.takes(&labels)
    };
    let items = pods::all(&agent).await?.into_iter().filter(wanted).collect();
    let with_namespace = args.all_namespaces;
    output::show(
        args.output.output,
        &Pods { kind: "List", api_version: "v1", items, with_namespace },
    );

    Ok(())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Pods {
    kind: &'static str,
    api_version: &'static str,
    items: Vec<Pod>,
    #[serde(skip)]
    with_namespace: bool,
}

impl Answer for Pods {
    fn text(&self) -> String {
        if self.items.is_empty() {
            return "No pods.".to_owned();
        }
        let now = clock::now();
        let pods: Vec<_> = self.items.iter().map(|pod| Summary::of(pod, now)).collect();

        status::table(&pods, self.with_namespace)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct OnePod(Pod);

impl Answer for OnePod {
    fn text(&self) -> String {
        status::table(&[Summary::of(&self.0, clock::now())], false)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct Node(Told);

impl Answer for Node {
    fn text(&self) -> String {
        let mut table = Table::new(&["NAME", "LINK", "SINCE", "RUNTIME", "VERSION"]);
        let Told { node, version, link, runtime, .. } = &self.0;
        let since = age(clock::now().duration_since(link.since));
        let runtime = runtime.name.clone().unwrap_or_else(|| "<none>".to_owned());
        table.row([node, &link.state, &since, &runtime, version]);

        table.text()
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Events {
    kind: &'static str,
    api_version: &'static str,
    items: Vec<Event>,
}

impl Answer for Events {
    fn text(&self) -> String {
        if self.items.is_empty() {
            return "No events.".to_owned();
        }

        table(&self.items)
    }
}

/// What the agent has told lately, oldest first.
pub(super) async fn events(agent: &Agent) -> Result<Vec<Event>, CtlError> {
    #[derive(Deserialize)]
    struct List {
        items: Vec<Value>,
    }
    let list: List = agent.get("/holdfast/v1/events").await?;

    Ok(list.items.into_iter().filter_map(|event| serde_json::from_value(event).ok()).collect())
}

/// Events, one a line.
pub(super) fn table(events: &[Event]) -> String {
    let mut table = Table::new(&["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"]);
    let now = clock::now();
    for event in events {
        let about = &event.involved_object;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let object = format!("{}/{}", text(&about.kind).to_lowercase(), text(&about.name));
        let at = event.last_timestamp.as_ref().map(|at| age(now.duration_since(at.0)));
        let cells = [
            at.unwrap_or_default(),
            text(&event.type_),
            text(&event.reason),
            object,
            text(&event.message),
        ];
        table.row(cells);
    }

    table.text()
}
