//! `edgeadm init`: installs cloudcore in the cluster of the kubeconfig by its chart, or brings what is there
//! to this version, and says how machines join. The chart comes with this program; Helm applies it.
//!
//! Nothing is changed before the rights for all of it were found to be there. Doing it again changes nothing.

mod address;
mod chart;
mod daemonsets;
mod rights;

use std::ffi::OsString;
use std::io;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::Value;

use self::chart::Unpacked;
use crate::args::init::InitArgs;
use crate::host::{self, HelmError};
use crate::output::{self, Answer, Table};
use crate::tokens::{self, TokensError};
use crate::{exit, ui};

/// The release, and the Service and Deployment in it.
const RELEASE: &str = "holdfast";
const SERVICE: &str = "cloudcore";
/// Images are pulled meanwhile.
const READY_MAX: &str = "5m";

/// Why cloudcore is not in the cluster.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The cluster cannot be asked, or no token be made.
    #[error(transparent)]
    Cluster(Box<TokensError>),
    /// The API server does not answer, or forbids it.
    #[error("cannot {attempted} at {server}")]
    Api {
        /// What, on what.
        attempted: String,
        /// Of which cluster.
        server: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// This user may not.
    #[error(
        "nothing was changed: the user of this kubeconfig may not {}; take one of an administrator of the \
         cluster",
        .0.join(", ")
    )]
    Forbidden(Vec<String>),
    /// The chart cannot be written for helm.
    #[error("cannot write the chart to a temporary folder")]
    Unpack(#[source] io::Error),
    /// helm is not there, or failed.
    #[error("cloudcore is not installed")]
    Helm(#[source] HelmError),
}

impl InitError {
    fn of_tokens(error: TokensError) -> Self {
        Self::Cluster(Box::new(error))
    }

    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Cluster(error) => error.exit_code(),
            Self::Api { source, .. } if matches!(**source, kube::Error::Api(_)) => {
                exit::NOT_PERMITTED
            }
            Self::Api { .. } | Self::Helm(HelmError::Missing) => exit::UNAVAILABLE,
            Self::Forbidden(_) => exit::NOT_PERMITTED,
            Self::Unpack(_) => exit::NOT_WRITTEN,
            Self::Helm(HelmError::Start(_)) => exit::OS_ERROR,
            Self::Helm(HelmError::Failed(_)) => exit::FAILED,
        }
    }
}

/// A DaemonSet that would run on edge nodes, or did.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    namespace: String,
    name: String,
    /// Taints that it tolerates: `all`, `some` or `none`.
    tolerates: &'static str,
    /// What was done about it: `nothing`, `patched` or `unpatched`.
    result: &'static str,
    /// What keeps it off.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    namespace: String,
    /// `installed`, `planned` or `unpatched`.
    result: &'static str,
    /// Where machines reach cloudcore.
    #[serde(skip_serializing_if = "Option::is_none")]
    cloudcore: Option<String>,
    daemon_sets: Vec<Found>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_command: Option<String>,
}

impl Answer for Report {
    fn text(&self) -> String {
        let namespace = &self.namespace;
        let mut parts = Vec::new();
        match self.result {
            "installed" => parts.push(format!("cloudcore runs in namespace {namespace}.")),
            "planned" => {
                parts.push(format!("Would install or upgrade cloudcore in namespace {namespace}."));
            }
            _ => {}
        }
        parts.extend(self.found());
        if let Some(command) = &self.join_command {
            let unknown = "\n\nWhere machines reach cloudcore is not known: its Service does not say it. Put \
                           that in the place of HOST:PORT, or give it with --cloudcore.";
            let note = if self.cloudcore.is_some() { "" } else { unknown };
            parts.push(format!(
                "To make a machine with containerd or CRI-O an edge node, run there as root, within a \
                 day:\n\n  {command}{note}"
            ));
        }

        parts.join("\n\n")
    }
}

impl Report {
    fn found(&self) -> Option<String> {
        let sets = &self.daemon_sets;
        if sets.is_empty() {
            let is_undone = self.result == "unpatched";
            return is_undone
                .then(|| "No DaemonSet was kept off edge nodes by edgeadm.".to_owned());
        }
        let mut table = Table::new(&["NAMESPACE", "DAEMONSET", "TOLERATES", "RESULT"]);
        for set in sets {
            table.row([set.namespace.as_str(), &set.name, set.tolerates, set.result]);
        }
        let commands: Vec<_> = sets.iter().filter_map(|set| set.command.as_deref()).collect();
        let mut text = format!("DaemonSets that run on every node:\n\n{}", table.text());
        if !commands.is_empty() {
            text.push_str(
                "\n\nThey would also run on edge nodes. To keep them off, give --patch-daemonsets, or:\n\n  ",
            );
            text.push_str(&commands.join("\n  "));
        }

        Some(text)
    }
}

/// A cluster.
struct Cluster {
    client: Client,
    server: String,
}

/// Installs cloudcore, or upgrades it.
pub async fn run(args: InitArgs) -> Result<(), InitError> {
    let (client, server) = tokens::connect(&args.cluster).await.map_err(InitError::of_tokens)?;
    let cluster = Cluster { client, server };
    let namespace = args.cluster.namespace.clone();
    let patches = args.patch_daemonsets || args.unpatch_daemonsets;
    let needed = rights::needed(!args.unpatch_daemonsets, patches);
    let missing = rights::missing(&cluster.client, &namespace, &needed).await;
    let missing = missing.map_err(cluster.failed("ask what this user may do"))?;
    if !missing.is_empty() {
        return Err(InitError::Forbidden(missing));
    }
    let format = args.output.output;
    let report = |result, cloudcore, daemon_sets, join_command| Report {
        namespace: namespace.clone(),
        result,
        cloudcore,
        daemon_sets,
        join_command,
    };
    if args.unpatch_daemonsets {
        let undone = cluster.unpatch(args.dry_run).await?;
        output::show(format, &report("unpatched", None, undone, None));
        return Ok(());
    }
    if args.dry_run {
        let sets = cluster.daemon_sets(false).await?;
        output::show(format, &report("planned", args.cloudcore, sets, None));
        return Ok(());
    }
    install(&args).await?;
    let sets = cluster.daemon_sets(args.patch_daemonsets).await?;
    let address = match &args.cloudcore {
        Some(address) => Some(address.clone()),
        None => cluster.address(&namespace).await?,
    };
    let shown = address.as_deref().unwrap_or("HOST:PORT");
    let command = tokens::join_command_of_a_day(&args.cluster, shown).await;
    let command = command.map_err(InitError::of_tokens)?;
    output::show(format, &report("installed", address, sets, Some(command)));

    Ok(())
}

async fn install(args: &InitArgs) -> Result<(), InitError> {
    let chart = Unpacked::new().map_err(InitError::Unpack)?;
    let namespace = &args.cluster.namespace;
    ui::step(&format!("installing cloudcore in namespace {namespace}, until it is ready"));
    let done = host::helm(arguments(args, chart.folder().into())).await;

    done.map_err(InitError::Helm)
}

/// The command line of helm. A value of ours never begins an argument, so none of them is taken for an option.
fn arguments(args: &InitArgs, chart: OsString) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["upgrade", "--install", RELEASE].map(OsString::from).into();
    words.push(chart);
    let mut option = |name: &str, value: OsString| {
        let mut word = OsString::from(format!("--{name}="));
        word.push(value);
        words.push(word);
    };
    option("namespace", args.cluster.namespace.clone().into());
    option("timeout", READY_MAX.into());
    for file in &args.values {
        option("values", file.into());
    }
    for set in &args.set {
        option("set", set.into());
    }
    if let Some(address) = &args.cloudcore {
        option("set-string", format!("joinAddress={address}").into());
    }
    if let Some(kubeconfig) = &args.cluster.kubeconfig {
        option("kubeconfig", kubeconfig.into());
    }
    for flag in ["--create-namespace", "--reset-then-reuse-values", "--wait"] {
        words.push(flag.into());
    }

    words
}

impl Cluster {
    fn failed(&self, attempted: &str) -> impl FnOnce(kube::Error) -> InitError {
        let (attempted, server) = (attempted.to_owned(), self.server.clone());

        move |source| InitError::Api { attempted, server, source: Box::new(source) }
    }

    async fn list(&self) -> Result<Vec<DaemonSet>, InitError> {
        let all: Api<DaemonSet> = Api::all(self.client.clone());
        let found = all.list(&ListParams::default()).await;

        Ok(found.map_err(self.failed("list daemonsets"))?.items)
    }

    async fn patch(&self, namespace: &str, name: &str, patch: &Value) -> Result<(), InitError> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), namespace);
        let patched = sets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map_err(self.failed(&format!("patch daemonset {namespace}/{name}")))?;

        Ok(())
    }

    /// Those that would run on edge nodes, which are kept off if that is asked for.
    async fn daemon_sets(&self, patches: bool) -> Result<Vec<Found>, InitError> {
        let mut found = Vec::new();
        for set in self.list().await?.iter().filter(|set| daemonsets::lands(set)) {
            let (namespace, name) = names(set);
            let patch = daemonsets::patch(set);
            if patches {
                self.patch(&namespace, &name, &patch).await?;
            }
            found.push(Found {
                tolerates: daemonsets::tolerates(set),
                result: if patches { "patched" } else { "nothing" },
                command: (!patches).then(|| daemonsets::command(&namespace, &name, &patch)),
                namespace,
                name,
            });
        }

        Ok(found)
    }

    /// Takes back what was done to DaemonSets.
    async fn unpatch(&self, is_dry: bool) -> Result<Vec<Found>, InitError> {
        let mut undone = Vec::new();
        for set in &self.list().await? {
            let Some(patch) = daemonsets::unpatch(set) else { continue };
            let (namespace, name) = names(set);
            if !is_dry {
                self.patch(&namespace, &name, &patch).await?;
            }
            undone.push(Found {
                namespace,
                name,
                tolerates: daemonsets::tolerates(set),
                result: if is_dry { "nothing" } else { "unpatched" },
                command: None,
            });
        }

        Ok(undone)
    }

    /// Where machines reach cloudcore.
    async fn address(&self, namespace: &str) -> Result<Option<String>, InitError> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let service = services.get(SERVICE).await;
        let service = service.map_err(self.failed("get service cloudcore"))?;
        let nodes: Api<Node> = Api::all(self.client.clone());
        let nodes = nodes.list(&ListParams::default()).await;
        let nodes = nodes.map_err(self.failed("list nodes"))?.items;

        Ok(address::of(&service, &nodes))
    }
}

fn names(set: &DaemonSet) -> (String, String) {
    let metadata = &set.metadata;

    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::OutputArgs;
    use crate::args::cluster::ClusterArgs;

    fn args() -> InitArgs {
        InitArgs {
            set: vec!["service.type=NodePort".to_owned()],
            values: vec!["my values.yaml".into()],
            cloudcore: Some("edge.example:443".to_owned()),
            patch_daemonsets: false,
            unpatch_daemonsets: false,
            dry_run: false,
            output: OutputArgs::default(),
            cluster: ClusterArgs { kubeconfig: Some("-x".into()), namespace: "h".to_owned() },
        }
    }

    #[test]
    fn helm_is_given_what_was_given() {
        let words = arguments(&args(), "/tmp/chart".into());
        let expected = [
            "upgrade",
            "--install",
            "holdfast",
            "/tmp/chart",
            "--namespace=h",
            "--timeout=5m",
            "--values=my values.yaml",
            "--set=service.type=NodePort",
            "--set-string=joinAddress=edge.example:443",
            "--kubeconfig=-x",
            "--create-namespace",
            "--reset-then-reuse-values",
            "--wait",
        ];
        assert_eq!(words, expected.map(OsString::from));
    }

    #[test]
    fn the_answer_says_what_is_there_what_lands_on_edges_and_how_to_join() {
        let set = Found {
            namespace: "kube-system".to_owned(),
            name: "proxy".to_owned(),
            tolerates: "all",
            result: "nothing",
            command: Some("kubectl patch it".to_owned()),
        };
        let mut report = Report {
            namespace: "h".to_owned(),
            result: "installed",
            cloudcore: Some("c:1".to_owned()),
            daemon_sets: vec![set],
            join_command: Some("edgeadm join".to_owned()),
        };
        let expected = "cloudcore runs in namespace h.

DaemonSets that run on every node:

NAMESPACE     DAEMONSET   TOLERATES   RESULT
kube-system   proxy       all         nothing

They would also run on edge nodes. To keep them off, give --patch-daemonsets, or:

  kubectl patch it

To make a machine with containerd or CRI-O an edge node, run there as root, within a day:

  edgeadm join";
        assert_eq!(report.text(), expected);
        report.cloudcore = None;
        assert!(report.text().contains("is not known"), "{}", report.text());
        let nothing =
            Report { daemon_sets: Vec::new(), result: "unpatched", join_command: None, ..report };
        assert_eq!(nothing.text(), "No DaemonSet was kept off edge nodes by edgeadm.");
    }
}
