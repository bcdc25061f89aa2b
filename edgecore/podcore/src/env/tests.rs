//! Environments as data: a container and what it gets.

use serde_json::{Value, json};

use super::*;

fn check(spec: &Value, expected: &[&str]) {
    let pod = json!({
        "metadata": {
            "uid": "u", "namespace": "shop", "name": "web", "labels": { "app": "web", "tier": "x" },
        },
        "spec": spec,
    });
    let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
    let mut materials = Materials::default();
    let map = json!({ "data": { "color": "red", "bad=name": "x" } });
    materials.config_maps.insert("map".to_owned(), serde_json::from_value(map).unwrap());
    let secret = json!({ "data": { "key": "czNjcmV0" } });
    materials.secrets.insert("secret".to_owned(), serde_json::from_value(secret).unwrap());
    let service = |namespace: &str, name: &str, port: u16| {
        serde_json::from_value(json!({
            "metadata": { "namespace": namespace, "name": name },
            "spec": { "clusterIP": "10.96.0.9", "ports": [{ "port": port }] },
        }))
        .unwrap()
    };
    materials.services = vec![service("default", "kubernetes", 443), service("shop", "db-1", 5432)];
    let node = NodeFields {
        name: "edge-1".to_owned(),
        ips: vec!["192.0.2.5".to_owned()],
        pod_ips: vec!["10.1.0.7".to_owned()],
        cpu_milli: 4000,
        memory_bytes: 1 << 30,
        ..NodeFields::default()
    };
    let made = match environment(&pod, &pod.containers()[0], &materials, &node) {
        Ok(variables) => variables.into_iter().map(|v| format!("{}={}", v.key, v.value)).collect(),
        Err(error) => vec![format!("error: {error}")],
    };

    assert_eq!(made, expected, "{spec}");
}

/// A container with `env` and no service links, so that only the API server's variables follow.
fn env(env: &Value) -> Value {
    json!({ "enableServiceLinks": false, "containers": [{ "name": "a", "env": env,
        "resources": { "limits": { "memory": "64Mi" } } }] })
}

const MASTER: [&str; 7] = [
    "KUBERNETES_PORT=tcp://10.96.0.9:443",
    "KUBERNETES_PORT_443_TCP=tcp://10.96.0.9:443",
    "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.9",
    "KUBERNETES_PORT_443_TCP_PORT=443",
    "KUBERNETES_PORT_443_TCP_PROTO=tcp",
    "KUBERNETES_SERVICE_HOST=10.96.0.9",
    "KUBERNETES_SERVICE_PORT=443",
];

fn with_master(first: &[&'static str]) -> Vec<&'static str> {
    [first, &MASTER].concat()
}

#[test]
fn literals_expand_what_was_set_before() {
    check(
        &env(&json!([
            { "name": "A", "value": "1" },
            { "name": "B", "value": "$(A)-$(LATER)-$$(A)-$(KUBERNETES_SERVICE_PORT)" },
            { "name": "LATER", "value": "x" },
        ])),
        &with_master(&["A=1", "B=1-$(LATER)-$(A)-443", "LATER=x"]),
    );
}

#[test]
fn fields_of_pod_node_and_resources() {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let resource = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "resourceFieldRef": { "resource": path } } });
    check(
        &env(&json!([
            field("NAME", "metadata.name"),
            field("LABEL", "metadata.labels['app']"),
            field("NODE", "spec.nodeName"),
            field("HOST", "status.hostIP"),
            field("IP", "status.podIP"),
            resource("CPU", "limits.cpu"),
            resource("MEM", "limits.memory"),
        ])),
        &with_master(&[
            "NAME=web",
            "LABEL=web",
            "NODE=edge-1",
            "HOST=192.0.2.5",
            "IP=10.1.0.7",
            "CPU=4",
            "MEM=67108864",
        ]),
    );
}

#[test]
fn maps_and_secrets() {
    check(
        &json!({ "enableServiceLinks": false, "containers": [{ "name": "a",
            "envFrom": [{ "configMapRef": { "name": "map" }, "prefix": "P_" },
                { "configMapRef": { "name": "none", "optional": true } }],
            "env": [{ "name": "S", "valueFrom": { "secretKeyRef": { "name": "secret", "key": "key" } } },
                { "name": "O", "valueFrom": { "configMapKeyRef":
                    { "name": "map", "key": "none", "optional": true } } }] }] }),
        &with_master(&["P_color=red", "S=s3cret"]),
    );
    check(
        &env(&json!([{ "name": "S", "valueFrom":
            { "secretKeyRef": { "name": "secret", "key": "none" } } }])),
        &["error: couldn't find key none in Secret shop/secret"],
    );
    check(
        &json!({ "containers": [{ "name": "a", "envFrom": [{ "secretRef": { "name": "none" } }] }] }),
        &["error: secret \"none\" not found"],
    );
}

#[test]
fn services_of_the_namespace_are_linked_unless_refused() {
    let all = [
        "DB_1_PORT=tcp://10.96.0.9:5432",
        "DB_1_PORT_5432_TCP=tcp://10.96.0.9:5432",
        "DB_1_PORT_5432_TCP_ADDR=10.96.0.9",
        "DB_1_PORT_5432_TCP_PORT=5432",
        "DB_1_PORT_5432_TCP_PROTO=tcp",
        "DB_1_SERVICE_HOST=10.96.0.9",
        "DB_1_SERVICE_PORT=5432",
    ];
    check(&json!({ "containers": [{ "name": "a" }] }), &[&all[..], &MASTER].concat());
}
