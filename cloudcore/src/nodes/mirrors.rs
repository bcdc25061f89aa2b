//! Mirrors: what a node runs from files of its own, shown in the API server. Made, replaced and removed
//! for the node of the session only, and never with a reference to another object (invariant 12), as
//! Kubernetes lets a kubelet do (`NodeRestriction`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use http::Request;
use index::Mirror;
use kube::Client;
use proto::backoff::{Backoff, Rng};
use proto::ids::{NameError, NodeName, Uid};
use proto::static_pod::{HASH, MIRROR, refers_to};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::hub::SessionHandle;
use crate::{clock, telemetry};

/// More than an agent reads files; the rest is left out.
const PODS_MAX: usize = 256;

/// What was made is in the watch by then.
const SEEN_WAIT: Duration = Duration::from_secs(1);

const RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_mins(1) };

/// A pod of a file, as its mirror is to be, but for the owner.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Static {
    namespace: String,
    name: String,
    pub(super) object: Value,
}

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0} is not told or no name")]
    Name(&'static str, #[source] NameError),
    #[error("its name does not end with the node's")]
    OtherNode,
    #[error("static pods may not reference {0}")]
    Reference(&'static str),
    #[error("its {0} is no object")]
    Shape(&'static str),
}

/// What is to be done in the API server.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Delete { path: String, uid: Uid },
    Create { pod: Box<Static> },
}

/// The mirrors of one node.
pub(super) struct Mirrors {
    client: Client,
    session: SessionHandle,
    /// By the UID under which the node runs it; `None` until it said what it runs.
    wanted: Option<BTreeMap<Uid, Static>>,
    /// At most one round of steps.
    work: JoinSet<Result<(), String>>,
    failures: u32,
    retry_at: Option<Instant>,
    told: String,
    rng: Rng,
}

impl Mirrors {
    pub(super) fn new(client: Client, session: SessionHandle) -> Self {
        let rng = Rng::new(session.generation());
        let (work, told) = (JoinSet::new(), String::new());

        Self { client, session, wanted: None, work, failures: 0, retry_at: None, told, rng }
    }

    /// The node says what it runs from files: all of it. Returns the UIDs.
    pub(super) fn report(&mut self, bytes: &[u8]) -> Result<BTreeSet<Uid>, serde_json::Error> {
        let wanted = wanted(bytes, self.session.node())?;
        let uids = wanted.keys().cloned().collect();
        self.wanted = Some(wanted);
        (self.failures, self.retry_at) = (0, None);

        Ok(uids)
    }

    /// Does what makes the mirrors of the API server those that are wanted. `owner` is the Node's UID.
    pub(super) fn settle<'a>(
        &mut self,
        existing: impl Iterator<Item = Mirror<'a>>,
        owner: Option<&Uid>,
    ) {
        let now = clock::now();
        let (Some(wanted), Some(owner)) = (&self.wanted, owner) else { return };
        if !self.work.is_empty() || self.retry_at.is_some_and(|at| now < at) {
            return;
        }
        self.retry_at = None;
        let steps = steps(wanted, existing);
        if steps.is_empty() {
            self.failures = 0;
            return;
        }
        let (client, session) = (self.client.clone(), self.session.clone());
        let owner = owner.clone();
        self.work.spawn(async move { carry_out(&client, &session, &owner, steps).await });
    }

    /// Resolves when it is time to settle again. May be dropped and called again.
    pub(super) async fn ready(&mut self) {
        tokio::select! {
            Some(ended) = self.work.join_next() => match ended {
                Ok(Ok(())) => self.retry_at = Some(clock::now() + SEEN_WAIT),
                Ok(Err(reason)) => self.failed(reason),
                Err(panicked) => self.failed(panicked.to_string()),
            },
            () = sleep_until(self.retry_at.unwrap_or_else(clock::now).into()),
                if self.retry_at.is_some() && self.work.is_empty() => self.retry_at = None,
            else => std::future::pending().await,
        }
    }

    fn failed(&mut self, reason: String) {
        if self.told != reason {
            let node = self.session.node();
            tracing::warn!(%node, reason, "cannot mirror static pods as the node runs them");
            self.told = reason;
        }
        self.failures = self.failures.saturating_add(1);
        let wait = RETRY.patient_delay(self.failures, &mut self.rng);
        self.retry_at = Some(clock::now() + wait);
    }
}

/// The mirrors of what the node says that it runs from files.
pub(super) fn wanted(
    bytes: &[u8],
    node: &NodeName,
) -> Result<BTreeMap<Uid, Static>, serde_json::Error> {
    let pods: Vec<Value> = serde_json::from_slice(bytes)?;
    let mut wanted = BTreeMap::new();
    for pod in pods.iter().take(PODS_MAX) {
        match read(pod, node) {
            Ok((uid, pod)) => {
                wanted.insert(uid, pod);
            }
            Err(refused) => {
                let (name, reason) = (&pod["metadata"]["name"], telemetry::chain(&refused));
                tracing::warn!(%node, %name, reason, "a static pod gets no mirror");
            }
        }
    }

    Ok(wanted)
}

/// The mirror of a pod that the node reported.
fn read(pod: &Value, node: &NodeName) -> Result<(Uid, Static), Refused> {
    let metadata = &pod["metadata"];
    let text = |field: &str| metadata[field].as_str().unwrap_or_default().to_owned();
    let uid = Uid::new(text("uid")).map_err(|error| Refused::Name("uid", error))?;
    let (namespace, name) = (text("namespace"), text("name"));
    // Both become parts of a path. A node's name is as strict as theirs.
    NodeName::new(namespace.clone()).map_err(|error| Refused::Name("namespace", error))?;
    NodeName::new(name.clone()).map_err(|error| Refused::Name("name", error))?;
    if !name.ends_with(&format!("-{node}")) {
        return Err(Refused::OtherNode);
    }
    if let Some(kind) = refers_to(&pod["spec"]) {
        return Err(Refused::Reference(kind));
    }
    // Something is put into both below.
    if !pod["spec"].is_object() {
        return Err(Refused::Shape("spec"));
    }
    let annotations = &metadata["annotations"];
    if !annotations.is_object() && !annotations.is_null() {
        return Err(Refused::Shape("metadata.annotations"));
    }
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name,
            "labels": metadata["labels"], "annotations": metadata["annotations"],
        },
        "spec": pod["spec"],
    });
    for annotation in [HASH, MIRROR] {
        object["metadata"]["annotations"][annotation] = json!(uid.as_str());
    }
    object["spec"]["nodeName"] = json!(node.as_str());

    Ok((uid, Static { namespace, name, object }))
}

/// First what is in the way, then what is missing.
fn steps<'a>(
    wanted: &BTreeMap<Uid, Static>,
    existing: impl Iterator<Item = Mirror<'a>>,
) -> Vec<Step> {
    let (mut steps, mut shown) = (Vec::new(), BTreeSet::new());
    for mirror in existing {
        let is_right = wanted.get(mirror.shows).is_some_and(|pod| {
            pod.namespace == mirror.pod.namespace && pod.name == mirror.pod.name
        });
        if is_right && !mirror.is_deleted && shown.insert(mirror.shows.clone()) {
            continue;
        }
        let path = format!("{}/{}", collection(mirror.pod.namespace), mirror.pod.name);
        steps.push(Step::Delete { path, uid: mirror.uid.clone() });
    }
    let missing = wanted.iter().filter(|(uid, _)| !shown.contains(*uid));
    steps.extend(missing.map(|(_, pod)| Step::Create { pod: Box::new(pod.clone()) }));

    steps
}

fn collection(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// All steps, whatever becomes of one; the first failure.
async fn carry_out(
    client: &Client,
    session: &SessionHandle,
    owner: &Uid,
    steps: Vec<Step>,
) -> Result<(), String> {
    let mut failed = Ok(());
    for step in steps {
        if !session.is_current() {
            return Err("a newer session writes for this node".to_owned());
        }
        let (what, done) = match step {
            Step::Delete { path, uid } => (path.clone(), delete(client, &path, &uid).await),
            Step::Create { pod } => {
                let path = format!("{}/{}", collection(&pod.namespace), pod.name);
                (path, create(client, session.node(), owner, *pod).await)
            }
        };
        if let (Ok(()), Err(error)) = (&failed, done) {
            failed = Err(format!("{what}: {}", telemetry::chain(&error)));
        }
    }

    failed
}

/// At once: what it shows is stopped by the node, not by this.
async fn delete(client: &Client, path: &str, uid: &Uid) -> Result<(), kube::Error> {
    let options = json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
        "preconditions": { "uid": uid.as_str() },
    });
    let request = Request::delete(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(options.to_string().into_bytes());
    match client.request::<Value>(request.map_err(kube::Error::HttpError)?).await {
        Ok(_) => Ok(()),
        // Gone, or another's.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

async fn create(
    client: &Client,
    node: &NodeName,
    owner: &Uid,
    pod: Static,
) -> Result<(), kube::Error> {
    let Static { namespace, name, mut object } = pod;
    object["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Node", "name": node.as_str(), "uid": owner.as_str(),
        "controller": true,
    }]);
    let request = Request::post(collection(&namespace))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(object.to_string().into_bytes());
    match client.request::<Value>(request.map_err(kube::Error::HttpError)?).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            // Perhaps it was made, and the watch is behind.
            let path = format!("{}/{name}", collection(&namespace));
            let get = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
            let found = client.request::<Value>(get).await?;
            let shows = |pod: &Value| pod["metadata"]["annotations"][MIRROR].clone();
            if shows(&found) == shows(&object) { Ok(()) } else { Err(kube::Error::Api(status)) }
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use index::Index;
    use proto::ids::Kind;

    use super::*;

    fn node() -> NodeName {
        NodeName::new("edge").unwrap()
    }

    fn reported(uid: &str, name: &str) -> Value {
        json!({
            "metadata": { "uid": uid, "namespace": "default", "name": name, "finalizers": ["x"] },
            "spec": { "nodeName": "another", "containers": [] },
        })
    }

    fn wanted(pods: &[(&str, &str)]) -> BTreeMap<Uid, Static> {
        pods.iter().map(|(uid, name)| read(&reported(uid, name), &node()).unwrap()).collect()
    }

    fn index(pods: &[(&str, &str, &str, bool)]) -> Index {
        let mut index = Index::new(1);
        for (uid, name, shows, is_deleted) in pods {
            let mut pod = json!({
                "metadata": {
                    "uid": uid, "namespace": "default", "name": name, "resourceVersion": "5",
                    "annotations": { MIRROR: shows },
                },
                "spec": { "nodeName": "edge" },
            });
            if *is_deleted {
                pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            index.apply(Kind::Pod, Bytes::from(pod.to_string())).unwrap();
        }

        index
    }

    fn check(wants: &[(&str, &str)], has: &[(&str, &str, &str, bool)], expected: &[&str]) {
        let index = index(has);
        let said =
            steps(&wanted(wants), index.mirrors_on(&node())).into_iter().map(|step| match step {
                Step::Delete { uid, .. } => format!("delete {uid}"),
                Step::Create { pod } => format!("create {}", pod.name),
            });
        assert_eq!(said.collect::<Vec<_>>(), expected, "{wants:?} {has:?}");
    }

    #[test]
    fn mirrors_become_what_the_node_runs() {
        let web = [("h1", "web-edge")];
        check(&web, &[], &["create web-edge"]);
        check(&web, &[("m1", "web-edge", "h1", false)], &[]);
        check(&web, &[("m1", "web-edge", "h1", true)], &["delete m1", "create web-edge"]);
        check(&web, &[("m1", "web-edge", "h0", false)], &["delete m1", "create web-edge"]);
        check(&web, &[("m1", "other-edge", "h1", false)], &["delete m1", "create web-edge"]);
        check(&[], &[("m1", "web-edge", "h1", false)], &["delete m1"]);
        check(&[], &[("m1", "web-edge", "../odd", false)], &["delete m1"]);
    }

    #[test]
    fn a_mirror_is_of_the_node_and_has_nothing_else_of_what_was_reported() {
        let (uid, pod) = read(&reported("h1", "web-edge"), &node()).unwrap();
        assert_eq!(uid.as_str(), "h1");
        assert_eq!(pod.object["spec"]["nodeName"], "edge");
        assert!(pod.object["metadata"]["finalizers"].is_null());
        assert_eq!(pod.object["metadata"]["annotations"][MIRROR], "h1");
    }

    #[test]
    fn what_is_not_the_nodes_is_refused() {
        let check = |change: fn(&mut Value), expected: &str| {
            let mut pod = reported("h1", "web-edge");
            change(&mut pod);
            let error = telemetry::chain(&read(&pod, &node()).unwrap_err());
            assert!(error.contains(expected), "{error} lacks {expected}");
        };
        check(|pod| pod["metadata"]["name"] = json!("web-other"), "node's");
        check(|pod| pod["metadata"]["name"] = json!("a/../b-edge"), "name");
        check(|pod| pod["metadata"]["namespace"] = json!("../kube-system"), "namespace");
        check(|pod| pod["metadata"]["uid"] = json!(""), "uid");
        check(|pod| pod["metadata"]["annotations"] = json!("text"), "annotations");
        check(|pod| pod["metadata"]["annotations"] = json!([1]), "annotations");
        check(|pod| pod["spec"] = json!([]), "spec");
        check(|pod| pod["spec"] = json!("text"), "spec");
        check(|pod| *pod = json!(1), "uid");
        check(|pod| pod["spec"]["serviceAccountName"] = json!("admin"), "serviceaccounts");
        check(
            |pod| {
                pod["spec"]["volumes"] = json!([{ "name": "v", "secret": { "secretName": "s" } }]);
            },
            "secrets",
        );
    }
}
