//! What the runtime is told of pods: each `tests/golden/NAME.pod.json` gives `NAME.cri.json`, with
//! what is empty or zero left out. Its field `node` says what is special of the node.
//!
//! `UPDATE_GOLDEN=1 cargo test -p podcore --test golden` writes the files anew; the difference is to
//! be read before it is kept.

#![expect(clippy::unwrap_used, reason = "this crate is one test")]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};
use podcore::claims::Claim;
use podcore::dns::{ResolvConf, Resolvers};
use podcore::env::{EnvFile, NodeFields, environment};
use podcore::hosts;
use podcore::materials::{Materials, references};
use podcore::pod::PodView;
use podcore::resources::{CgroupDriver, Machine, page_size_name, pod_limits};
use podcore::sub_path::sub_paths;
use podcore::support::refuse;
use podcore::translate::{
    ContainerContext, ContainerPaths, ImageUser, MountedImage, SandboxContext, UserRange,
    container_config, sandbox_config,
};
use podcore::volumes::{Medium, Place, VolumeSetup, is_relabelled, place, setup};
use serde_json::{Map, Value, json};

/// The attempt that everything is translated for.
const ATTEMPT: u32 = 2;

/// A node of which the pod's object says this.
fn node(special: &Value) -> NodeFields {
    let is = |name: &str| special[name].as_bool().unwrap_or(false);
    let huge_pages = special["hugePages"].as_array().into_iter().flatten();
    let machine = Machine {
        memory_bytes: 8 << 30,
        huge_pages: huge_pages.filter_map(Value::as_i64).collect(),
        unified: is("unified"),
        swap: is("swap"),
        seccomp_root: "/kubelet/seccomp".to_owned(),
        masked_paths: Vec::new(),
    };

    NodeFields {
        name: "edge-1".to_owned(),
        ips: vec!["192.0.2.5".to_owned()],
        pod_ips: vec!["10.1.0.7".to_owned()],
        cpu_milli: 4000,
        memory_bytes: 8 << 30,
        storage_bytes: 32 << 30,
        machine: machine.into(),
    }
}

fn parse_claim(metadata: &Value, volume: &str) -> Claim {
    let claim = json!({ "metadata": metadata, "spec": { "volumeName": volume },
        "status": { "phase": "Bound" } });

    serde_json::from_value(claim).unwrap()
}

fn materials() -> Materials {
    let parse = |value: Value| serde_json::from_value(value).unwrap();
    let mut materials = Materials::default();
    let map = json!({ "data": { "color": "red", "file.conf": "a=1\n" },
        "binaryData": { "blob": "AAEC" } });
    materials.config_maps.insert("map".to_owned(), serde_json::from_value(map).unwrap());
    let secret = json!({ "data": { "password": "czNjcmV0" } });
    materials.secrets.insert("secret".to_owned(), serde_json::from_value(secret).unwrap());
    for (claim, volume, spec) in [
        (
            "data",
            "disk-1",
            json!({ "local": { "path": "/mnt/disk", "fsType": "xfs" }, "mountOptions": ["noatime"] }),
        ),
        (
            "web-scratch",
            "disk-2",
            json!({ "hostPath": { "path": "/mnt/scratch", "type": "Directory" } }),
        ),
        (
            "films",
            "share-1",
            json!({ "nfs": { "server": "files.example", "path": "/films" },
            "mountOptions": ["nfsvers=4.1"] }),
        ),
    ] {
        let owners = json!([{ "uid": "u-1", "controller": true }]);
        let metadata = json!({ "uid": claim, "ownerReferences": owners });
        let made = parse_claim(&metadata, volume);
        materials.claims.insert(claim.to_owned(), made);
        let mut spec = spec;
        spec["claimRef"] = json!({ "uid": claim });
        let group = json!({ "pv.beta.kubernetes.io/gid": "1234" });
        let made = json!({ "metadata": { "name": volume, "annotations": group }, "spec": spec });
        materials.volumes.insert(volume.to_owned(), serde_json::from_value(made).unwrap());
    }
    let (path, text) = ("/pods/u-1/vars".to_owned(), Some("A='1'\nB='two'\n".to_owned()));
    let place = ("scratch".to_owned(), "vars".to_owned());
    materials.env_files.insert(place, EnvFile { path, text });
    let service = |namespace: &str, name: &str, ports: Value| {
        json!({ "metadata": { "namespace": namespace, "name": name },
            "spec": { "clusterIP": "10.96.0.9", "ports": ports } })
    };
    materials.services = vec![
        parse(service("default", "kubernetes", json!([{ "name": "https", "port": 443 }]))),
        parse(service("shop", "db", json!([{ "port": 5432 }, { "name": "m", "port": 9 }]))),
    ];

    materials
}

fn sandbox_context(users: Option<UserRange>) -> SandboxContext {
    SandboxContext {
        users,
        node: "edge-1".to_owned(),
        resolvers: Resolvers {
            cluster: vec!["10.96.0.10".to_owned()],
            domain: "cluster.local".to_owned(),
            node: ResolvConf::parse("nameserver 192.0.2.1\nsearch site.example\noptions edns0\n"),
        },
        log_directory: "/var/log/pods/shop_web_u-1".to_owned(),
        cgroup_root: "/".to_owned(),
        cgroup_driver: CgroupDriver::Cgroupfs,
    }
}

/// Tokens that say what they were asked for as.
fn add_tokens(pod: &PodView, materials: &mut Materials) {
    for ask in references(pod).tokens {
        let token =
            format!("{} for {:?}, {} s", ask.service_account, ask.audience, ask.expiration_seconds);
        let token = json!({ "spec": { "audiences": [] }, "status": {
            "token": token, "expirationTimestamp": "2026-01-01T00:00:00Z" } });
        materials.tokens.insert(ask.source, serde_json::from_value(token).unwrap());
    }
}

/// Everything that is told of a pod.
fn translated(pod: &PodView, special: &Value) -> Value {
    assert_eq!(refuse(pod), None);
    assert!(pod.unknown_fields.is_empty(), "{:?}", pod.unknown_fields);
    let (mut materials, node) = (materials(), node(special));
    add_tokens(pod, &mut materials);
    let image_user = special["imageUser"].as_str().map(|user| match user.parse() {
        Ok(id) => ImageUser::Id(id),
        Err(_) => ImageUser::Name(user.to_owned()),
    });
    let users = special["users"]
        .as_u64()
        .map(|first| UserRange { first: first.try_into().unwrap(), length: 65_536 });
    let volumes = pod.spec().volumes.iter().flatten();
    let path = |volume: &Volume| match place(pod, volume, &materials) {
        Ok(Place::Host(path)) => path,
        Ok(Place::Own { plugin, name }) => {
            format!("/pods/u-1/volumes/{}/{name}", plugin.replace('/', "~"))
        }
        Err(error) => error.to_string(),
    };
    let mut containers = Map::new();
    for container in pod.all_containers() {
        let paths = ContainerPaths {
            volumes: volumes.clone().map(|volume| (volume.name.clone(), path(volume))).collect(),
            relabelled: volumes
                .clone()
                .filter(|v| place(pod, v, &materials).is_ok_and(|place| is_relabelled(v, &place)))
                .map(|volume| volume.name.clone())
                .collect(),
            sub_paths: parts(pod, container, &materials, &node),
            images: images(pod, container),
            etc_hosts: Some("/pods/u-1/etc-hosts".to_owned()),
            termination_log: format!("/pods/u-1/containers/{}/00000002", container.name),
        };
        // Its name in the place of its id.
        let target = pod.target_of(&container.name);
        let context = ContainerContext {
            materials: &materials,
            node: &node,
            paths: &paths,
            target,
            image_user: image_user.as_ref(),
            users,
            recursive_read_only: true,
        };
        let made = container_config(pod, container, ATTEMPT, "sha256:0123", &context);
        let told = match made {
            Ok(config) => value_of(&config),
            Err(error) => json!({ "error": error.to_string() }),
        };
        containers.insert(container.name.clone(), told);
    }
    let volumes = volumes.filter(|volume| volume.image.is_none()).map(|volume| {
        let told = setup(pod, volume, &materials, &node);
        (volume.name.clone(), told.map_or_else(|error| json!(error.to_string()), of_volume))
    });
    let hosts = if pod.host_network() {
        hosts::of_host(pod, "127.0.0.1\tlocalhost edge-1\n")
    } else {
        hosts::own(pod, &node.pod_ips, "cluster.local")
    };
    let sandbox = sandbox_config(pod, ATTEMPT, &sandbox_context(users));

    json!({
        "sandbox": sandbox.map_or_else(|error| json!(error.to_string()), |made| value_of(&made)),
        "containers": containers,
        "volumes": volumes.collect::<Map<_, _>>(),
        "hosts": hosts.lines().collect::<Vec<_>>(),
        "cgroup": of_cgroup(pod),
    })
}

fn of_cgroup(pod: &PodView) -> Value {
    let limits = pod_limits(pod);
    let mut cgroup = json!({ "cpuShares": limits.cpu_shares, "cpuQuota": limits.cpu_quota,
        "memory": limits.memory });
    for (size, limit) in &limits.huge_pages {
        cgroup[page_size_name(*size)] = json!(limit);
    }

    cgroup
}

/// The parts of volumes that a container mounts, in places of their own.
fn parts(
    pod: &PodView,
    container: &Container,
    materials: &Materials,
    node: &NodeFields,
) -> BTreeMap<usize, String> {
    let environment = environment(pod, container, materials, node).unwrap_or_default();
    let parts = sub_paths(container, &environment).unwrap();

    parts.into_iter().map(|(at, part)| (at, format!("{} of {}", part.path, part.volume))).collect()
}

/// The images that a container mounts, found under names of their own.
fn images(pod: &PodView, container: &Container) -> BTreeMap<usize, MountedImage> {
    let image = |(at, mount): (usize, &VolumeMount)| {
        let mut volumes = pod.spec().volumes.iter().flatten();
        let reference =
            volumes.find(|v| v.name == mount.name)?.image.as_ref()?.reference.clone()?;
        let image_ref = format!("sha256:{}", mount.name);
        let sub_path = mount.sub_path.clone().unwrap_or_default();
        Some((at, MountedImage { reference, image_ref, sub_path }))
    };

    container.volume_mounts.iter().flatten().enumerate().filter_map(image).collect()
}

fn of_volume(volume: VolumeSetup) -> Value {
    match volume {
        VolumeSetup::EmptyDir(medium) => {
            let (memory, size_limit) = match medium {
                Medium::Memory { size_limit } => (true, size_limit),
                Medium::Disk | Medium::HugePages(_) => (false, None),
            };
            json!({ "emptyDir": { "memory": memory, "sizeLimit": size_limit } })
        }
        VolumeSetup::Nfs { server, path, options, read_only } => {
            json!({ "nfs": server, "path": path, "options": options, "readOnly": read_only })
        }
        VolumeSetup::Local { path, fs_type, options, read_only, only_if_mismatch } => {
            json!({ "local": path, "fsType": fs_type, "options": options, "readOnly": read_only,
                "onlyIfMismatch": only_if_mismatch })
        }
        VolumeSetup::HostPath { path, kind } => json!({ "hostPath": path, "type": kind }),
        VolumeSetup::Files { files, memory } => {
            let files: BTreeMap<_, _> = files
                .iter()
                .map(|(path, file)| {
                    let text = String::from_utf8_lossy(&file.data).into_owned();
                    (path.clone(), json!({ "text": text, "mode": format!("{:o}", file.mode) }))
                })
                .collect();
            json!({ "files": files, "memory": memory })
        }
    }
}

/// A message as JSON, read from what Debug writes: `prost` has no JSON of its own.
fn value_of(message: &impl Debug) -> Value {
    let text = format!("{message:?}");
    let mut reader = Reader { rest: &text };
    let value = reader.value();
    assert!(reader.rest.is_empty(), "not read: {}", reader.rest);

    value
}

/// Long lists in a form that is easier to read: variables as text, paths in one line.
fn in_short(name: &str, value: Value) -> Value {
    let Value::Array(items) = value else { return value };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match name {
        "envs" => items
            .iter()
            .map(|item| format!("{}={}", text(&item["key"]), text(&item["value"])))
            .collect(),
        "masked_paths" | "readonly_paths" => {
            Value::String(items.iter().map(text).collect::<Vec<_>>().join(" "))
        }
        _ => Value::Array(items),
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start();
        let Some(rest) = rest.strip_prefix(token) else { return false };
        self.rest = rest;

        true
    }

    fn word(&mut self) -> String {
        self.rest = self.rest.trim_start();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        assert!(!word.is_empty(), "a word before {rest:?}");
        self.rest = rest;

        word.to_owned()
    }

    fn text(&mut self) -> String {
        let mut out = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return out;
                }
                '\\' => match chars.next().unwrap().1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    plain @ ('"' | '\\' | '\'') => out.push(plain),
                    other => panic!("escape {other} in a golden pod"),
                },
                other => out.push(other),
            }
        }
        panic!("text without end");
    }

    /// What is worth telling: not empty, not zero.
    fn put(object: &mut Map<String, Value>, name: String, value: Value) {
        let is_empty = match &value {
            Value::Null => true,
            Value::Bool(is) => !is,
            Value::Number(number) => number.as_i64() == Some(0),
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(_) => false,
        };
        if !is_empty {
            let value = in_short(&name, value);
            object.insert(name, value);
        }
    }

    fn value(&mut self) -> Value {
        if self.eat("\"") {
            return Value::String(self.text());
        }
        if self.eat("[") {
            let mut items = Vec::new();
            while !self.eat("]") {
                items.push(self.value());
                self.eat(",");
            }
            return Value::Array(items);
        }
        if self.eat("{") {
            return self.entries();
        }
        let word = self.word();
        if word == "Some" {
            assert!(self.eat("("));
            let value = self.value();
            assert!(self.eat(")"));
            return value;
        }
        if self.eat("{") {
            return self.entries();
        }
        match (word.as_str(), word.parse::<i64>()) {
            ("None", _) => Value::Null,
            ("true" | "false", _) => Value::Bool(word == "true"),
            (_, Ok(number)) => json!(number),
            (_, Err(_)) => Value::String(word),
        }
    }

    /// Of a struct or a map.
    fn entries(&mut self) -> Value {
        let mut object = Map::new();
        let mut is_empty_struct = true;
        while !self.eat("}") {
            let is_map = self.eat("\"");
            // A field whose name is a word of the language.
            self.eat("r#");
            let name = if is_map { self.text() } else { self.word() };
            assert!(self.eat(":"));
            let value = self.value();
            if is_map {
                object.insert(name, value);
            } else {
                Self::put(&mut object, name, value);
            }
            is_empty_struct = false;
            self.eat(",");
        }
        if is_empty_struct { Value::Null } else { Value::Object(object) }
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

#[test]
fn every_golden_pod_is_translated_as_written_down() {
    let is_update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut names: Vec<_> = fs::read_dir(directory())
        .unwrap()
        .filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            name.strip_suffix(".pod.json").map(str::to_owned)
        })
        .collect();
    names.sort();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let spec = fs::read_to_string(directory().join(format!("{name}.pod.json"))).unwrap();
        let mut object: Value = serde_json::from_str(&spec).unwrap();
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("uid".to_owned(), json!("u-1"));
        metadata.insert("namespace".to_owned(), json!("shop"));
        metadata.entry("name").or_insert_with(|| json!("web"));
        let special = object["node"].take();
        let pod = PodView::parse(object.to_string().as_bytes()).unwrap();
        let told = serde_json::to_string_pretty(&translated(&pod, &special)).unwrap() + "\n";
        let file = directory().join(format!("{name}.cri.json"));
        if is_update {
            fs::write(&file, &told).unwrap();
            continue;
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            told == expected,
            "{name} is told differently now:\n{}",
            difference(&expected, &told)
        );
    }
}

/// The lines that only one of the two has.
fn difference(before: &str, after: &str) -> String {
    let lacks = |text: &str, line: &str| !text.lines().any(|other| other == line);
    let gone = before.lines().filter(|line| lacks(after, line)).map(|line| format!("- {line}\n"));
    let new = after.lines().filter(|line| lacks(before, line)).map(|line| format!("+ {line}\n"));

    gone.chain(new).collect()
}
