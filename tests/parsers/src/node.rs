//! What users, containers and the machine give the agent.

use std::collections::BTreeMap;
use std::path::Path;

use edgecore::config::{CloudAddress, Config};
use edgecore::dbus::Message;
use edgecore::inputs;
use edgecore::link::proxy::answer::{self, Head};
use edgecore::link::proxy::of_environment;
use edgecore::pods::credentials::Keyring;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podcore::admission::Claim;
use podcore::dns::{ResolvConf, Resolvers};
use podcore::env::{EnvFile, NodeFields, environment, expand};
use podcore::materials::{Materials, references, refresh_at};
use podcore::memory::Memory;
use podcore::observed::Observed;
use podcore::plan::plan;
use podcore::pod::PodView;
use podcore::resources::{CgroupDriver, pod_limits};
use podcore::status::{StatusContext, status};
use podcore::sub_path::sub_paths;
use podcore::support::refuse;
use podcore::translate::{
    ContainerContext, ContainerPaths, SandboxContext, container_config, sandbox_config,
};
use podcore::url::Url;
use podcore::volumes::setup;
use podcore::{hosts, image_name, quantity, static_pod};
use proto::ids::NodeName;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Fed, cloud, halves, text_of};

/// Passes a pod takes through plans before anything of it is there.
const PLANS: usize = 4;

/// Bytes that the agent is sent of one pod cost this many times as much: it is translated for each of its
/// containers.
const POD_FACTOR: usize = 8;

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn node() -> NodeFields {
    NodeFields {
        name: "edge-1".to_owned(),
        ips: vec!["192.0.2.5".to_owned()],
        pod_ips: vec!["10.1.0.7".to_owned()],
        cpu_milli: 4000,
        memory_bytes: 8 << 30,
        storage_bytes: 32 << 30,
        ..NodeFields::default()
    }
}

fn resolvers() -> Resolvers {
    Resolvers {
        cluster: vec!["10.96.0.10".to_owned()],
        domain: "cluster.local".to_owned(),
        node: ResolvConf::parse("nameserver 192.0.2.1\n"),
    }
}

/// Everything that is worked out of a pod, and of what it refers to, before the runtime is asked for anything.
fn take_in(pod: &PodView, materials: &Materials) {
    let mut memory = Memory::default();
    let observed = Observed::default();
    for _ in 0..PLANS {
        memory = plan(pod, &memory, &observed, now()).memory;
    }
    drop(status(pod, &memory, &observed, &StatusContext::default(), now()));
    drop(Claim::of(pod));
    drop(pod_limits(pod));
    let node = node();
    drop(references(pod).missing(pod, materials));
    drop(hosts::own(pod, &node.pod_ips, "cluster.local"));
    for volume in pod.spec().volumes.iter().flatten() {
        drop(setup(pod, volume, materials, &node));
    }
    translate(pod, materials, &node);
}

/// The messages to the runtime.
fn translate(pod: &PodView, materials: &Materials, node: &NodeFields) {
    let context = SandboxContext {
        node: node.name.clone(),
        resolvers: resolvers(),
        log_directory: "/var/log/pods/p".to_owned(),
        cgroup_root: "/".to_owned(),
        cgroup_driver: CgroupDriver::Systemd,
        users: None,
    };
    if let Ok(sandbox) = sandbox_config(pod, 0, &context) {
        let uid = sandbox.metadata.map(|metadata| metadata.uid);
        assert_eq!(uid.as_deref(), Some(pod.uid.as_str()), "a pod that passes for another");
    }
    let paths = ContainerPaths::default();
    for container in pod.all_containers() {
        let variables = environment(pod, container, materials, node).unwrap_or_default();
        for part in sub_paths(container, &variables).into_iter().flatten().map(|(_, part)| part) {
            let leads_out = Path::new(&part.path).components().any(|c| c.as_os_str() == "..");
            assert!(!leads_out, "a part of a volume is at {}", part.path);
        }
        let context = ContainerContext {
            materials,
            node,
            paths: &paths,
            target: pod.target_of(&container.name),
            image_user: None,
            users: None,
            recursive_read_only: true,
        };
        drop(container_config(pod, container, 0, "sha256:0", &context));
        drop(container.image.as_deref().map(image_name::check));
    }
}

/// A pod of the API server.
pub(crate) fn pod(bytes: &[u8]) -> Fed {
    if let Ok(pod) = PodView::parse(bytes)
        && refuse(&pod).is_none()
    {
        take_in(&pod, &Materials::default());
    }

    Fed { allowed: POD_FACTOR * Fed::tree(bytes).allowed, check: None }
}

/// A pod, then what it refers to: objects by their names, under the names of their lists.
pub(crate) fn materials(bytes: &[u8]) -> Fed {
    let fed = Fed { allowed: POD_FACTOR * Fed::tree(bytes).allowed, check: None };
    let text = text_of(bytes);
    let (pod, held) = halves(&text);
    let Ok(pod) = PodView::parse(pod.as_bytes()) else { return fed };
    let held: Value = serde_json::from_str(held).unwrap_or_default();
    let mut materials = Materials {
        config_maps: listed(&held["configMaps"]),
        secrets: listed(&held["secrets"]),
        tokens: listed(&held["tokens"]),
        claims: listed(&held["claims"]),
        volumes: listed(&held["volumes"]),
        services: listed(&held["services"]).into_values().collect(),
        runtime_class: serde_json::from_value(held["runtimeClass"].clone()).ok(),
        ..Materials::default()
    };
    // Each token that is asked for, if there is any: its name is a hash.
    if let Some(token) = materials.tokens.values().next().cloned() {
        for ask in references(&pod).tokens {
            materials.tokens.insert(ask.source, token.clone());
        }
        refresh_at(&token);
    }
    take_in(&pod, &materials);

    fed
}

/// The objects of a list that can be read.
fn listed<T: DeserializeOwned>(list: &Value) -> BTreeMap<String, T> {
    let read = |(name, object): (&String, &Value)| {
        Some((name.clone(), serde_json::from_value(object.clone()).ok()?))
    };

    list.as_object().into_iter().flatten().filter_map(read).collect()
}

/// A file with a static pod.
pub(crate) fn manifest(bytes: &[u8]) -> Fed {
    let fed = Fed { allowed: POD_FACTOR * Fed::tree(bytes).allowed, check: None };
    let Some(manifest) = inputs::manifest(&text_of(bytes)) else { return fed };
    let node = NodeName::new("edge-1").expect("it is a name");
    let Ok(made) = static_pod::read(&manifest, "/etc/pods/web.yaml", &node, now()) else {
        return fed;
    };
    assert!(made.name.ends_with("-edge-1"), "a static pod is called {}", made.name);
    let pod = PodView::parse(made.object.to_string().as_bytes());
    let pod = pod.expect("what is made of a file is a pod");
    if refuse(&pod).is_none() {
        take_in(&pod, &Materials::default());
    }

    fed
}

/// The config files of both programs.
pub(crate) fn config(bytes: &[u8]) -> Fed {
    let text = text_of(bytes);
    drop(Config::parse(Path::new("fed"), &text));
    cloud::config(&text);

    Fed::tree(bytes)
}

/// A Secret with users and passwords of registries.
pub(crate) fn pull_secret(bytes: &[u8]) -> Fed {
    for key in [".dockerconfigjson", ".dockercfg"] {
        let mut keyring = Keyring::default();
        keyring.add(&BTreeMap::from([(key.to_owned(), bytes.to_vec())]));
        drop(keyring.lookup("registry.example:5000/shop/web:1"));
        drop(keyring.lookup("web"));
    }

    Fed::tree(bytes)
}

/// The query of a request for logs, to the node or into a container.
pub(crate) fn query(bytes: &[u8]) -> Fed {
    inputs::is_query(&text_of(bytes));

    Fed::tree(bytes)
}

/// A URL that is probed, and where it is led from there.
pub(crate) fn url(bytes: &[u8]) -> Fed {
    let text = text_of(bytes);
    let (path, location) = halves(&text);
    let url = Url::of(false, "10.1.0.7", 80, path);
    if let Ok(Some(onward)) = url.redirected(location) {
        assert!(onward.authority().starts_with("10.1.0.7"), "led to {}", onward.authority());
    }
    let text = Quantity(text);
    drop((quantity::milli(&text), quantity::units(&text), image_name::check(&text.0)));

    Fed::tree(bytes)
}

/// A query, then the file of a log.
pub(crate) fn log(bytes: &[u8]) -> Fed {
    let at = bytes.windows(2).position(|two| two == b"\n\n");
    let (query, file) = at.map_or((&[][..], bytes), |at| (&bytes[..at], &bytes[at + 2..]));
    let printed = inputs::printed(&text_of(query), file).unwrap_or_default();
    // Times are filled up with zeros.
    assert!(printed.len() <= file.len() + 16 * file.split(|b| *b == b'\n').count());

    Fed::tree(bytes)
}

/// Variables of the environment about proxies, or what one answers.
pub(crate) fn proxy(bytes: &[u8]) -> Fed {
    let text = text_of(bytes);
    let cloudcore = CloudAddress { host: "cloud.example.com".to_owned(), port: 10000 };
    if let Ok(Some((_, proxy))) = of_environment(&cloudcore, |_| Some(text.clone())) {
        assert!(!proxy.to_string().contains('@'), "credentials are shown: {proxy}");
    }
    if let Head::Whole { schemes, .. } = answer::read(bytes) {
        assert!(!schemes.contains(char::is_control), "{schemes:?}");
    }

    Fed::tree(bytes)
}

/// A file of variables that a container wrote, and a text with references to them.
pub(crate) fn variables(bytes: &[u8]) -> Fed {
    let text = text_of(bytes);
    let key = |name: &str| {
        json!({ "name": name, "valueFrom": { "fileKeyRef":
            { "volumeName": "v", "path": "vars", "key": name, "optional": true } } })
    };
    let container = json!({ "name": "c", "image": "x", "env": [key("A"), key("B"), { "name": "C", "value": text }] });
    let pod = json!({
        "metadata": { "uid": "u", "namespace": "n", "name": "p" },
        "spec": { "containers": [container], "volumes": [{ "name": "v", "emptyDir": {} }] },
    });
    let pod = PodView::parse(pod.to_string().as_bytes()).expect("it is a pod");
    let mut materials = Materials::default();
    let file = EnvFile { path: "/vars".to_owned(), text: Some(text.clone()) };
    materials.env_files.insert(("v".to_owned(), "vars".to_owned()), file);
    drop(environment(&pod, &pod.containers()[0], &materials, &node()));
    drop(expand(&text, |name| Some(name.to_owned())));

    Fed::tree(bytes)
}

/// What is heard on the message bus.
pub(crate) fn bus(bytes: &[u8]) -> Fed {
    let fed = Fed::tree(bytes);
    let Ok(Some((message, len))) = Message::decode(bytes) else { return fed };
    assert!(len <= bytes.len());
    drop((message.first_text(), message.all_texts(), message.variant_number()));

    fed.and(move || {
        let (again, _) =
            Message::decode(&message.encode()).expect("it can be read").expect("whole");
        assert_eq!(message, again);
    })
}

/// Tables of the kernel.
pub(crate) fn kernel(bytes: &[u8]) -> Fed {
    let text = text_of(bytes);
    inputs::counted(&text);
    drop(ResolvConf::parse(&text));

    Fed::tree(bytes)
}
