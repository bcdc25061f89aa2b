//! What nodes must hold, told as events and answers.

use proto::ids::Kind;
use serde_json::{Value, json};

use super::*;

fn bytes(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

fn pod(name: &str, node: &str, revision: u64, extra: &Value) -> Bytes {
    let mut spec = json!({ "nodeName": node });
    for (key, value) in extra.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    bytes(&json!({
        "metadata": {
            "namespace": "default", "name": name, "uid": format!("uid-{name}"),
            "resourceVersion": revision.to_string(),
        },
        "spec": spec,
        "status": { "phase": revision.to_string() },
    }))
}

fn named(name: &str, revision: u64, data: &str) -> Bytes {
    bytes(&json!({
        "metadata": {
            "namespace": "default", "name": name, "uid": format!("uid-{name}"),
            "resourceVersion": revision.to_string(),
        },
        "data": { "key": data },
    }))
}

const KINDS: [Kind; 8] = [
    Kind::Pod,
    Kind::ConfigMap,
    Kind::Secret,
    Kind::Service,
    Kind::Node,
    Kind::PersistentVolumeClaim,
    Kind::PersistentVolume,
    Kind::RuntimeClass,
];

fn edge() -> NodeName {
    NodeName::new("edge-1").unwrap()
}

/// An index that serves the edge.
fn serving(epoch: u64) -> Index {
    let mut index = Index::new(epoch);
    index.serve(&edge());

    index
}

fn held(index: &Index) -> Vec<String> {
    index.desired(&edge()).iter().map(|object| object.key.to_string()).collect()
}

#[test]
fn references_come_before_the_pod_and_only_while_it_refers() {
    let mut index = serving(1);
    let uses = json!({ "volumes": [{ "name": "v", "configMap": { "name": "map" } }] });
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &uses)).unwrap();
    assert_eq!(held(&index), [""; 0], "the pod waits for what it refers to");
    let map = Reference::new(Kind::ConfigMap, "default", "map");
    assert_eq!(index.stale(), std::slice::from_ref(&map));

    let touched = index.fetched(&map, Some(named("map", 6, "red"))).unwrap();
    assert_eq!(touched, Touched::from([edge()]));
    assert_eq!(held(&index), ["ConfigMap default/map", "Pod uid-web"]);

    index.apply(Kind::Pod, pod("web", "edge-1", 7, &json!({}))).unwrap();
    assert_eq!(held(&index), ["Pod uid-web"]);
}

#[test]
fn a_pod_stays_while_what_it_refers_to_is_made_anew() {
    let mut index = serving(1);
    let uses = json!({ "volumes": [{ "name": "v", "configMap": { "name": "map" } }] });
    let map = Reference::new(Kind::ConfigMap, "default", "map");
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &uses)).unwrap();
    assert_eq!(index.is_wanted(&edge(), &map.key()), None, "nobody has answered");
    let touched = index.fetched(&map, None).unwrap();
    assert_eq!(touched, Touched::from([edge()]), "the pod need not wait any longer");
    assert_eq!(held(&index), ["Pod uid-web"]);
    assert_eq!(index.is_wanted(&edge(), &map.key()), Some(false));

    index.apply(Kind::ConfigMap, named("map", 7, "")).unwrap();
    assert_eq!(index.stale(), std::slice::from_ref(&map));
    assert_eq!(held(&index), ["Pod uid-web"], "the map is made anew: the pod stays");
    index.fetched(&map, Some(named("map", 7, "red"))).unwrap();
    index.delete(Kind::ConfigMap, &named("map", 8, "")).unwrap();
    assert_eq!(held(&index), ["ConfigMap default/map", "Pod uid-web"]);
    assert_eq!(index.is_wanted(&edge(), &map.key()), Some(true));
}

#[test]
fn what_is_heard_while_asking_is_asked_for_again() {
    let mut index = serving(1);
    let uses = json!({ "volumes": [{ "name": "v", "configMap": { "name": "map" } }] });
    let map = Reference::new(Kind::ConfigMap, "default", "map");
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &uses)).unwrap();
    index.asking(&map);
    assert_eq!(index.stale(), []);
    index.apply(Kind::ConfigMap, named("map", 7, "")).unwrap();
    index.fetched(&map, Some(named("map", 6, "old"))).unwrap();
    assert_eq!(index.stale(), std::slice::from_ref(&map), "the answer was given before the change");

    index.asking(&map);
    index.fetched(&map, Some(named("map", 7, "new"))).unwrap();
    assert_eq!(index.stale(), []);
    index.asking(&map);
    index.ask_again(&map);
    assert_eq!(index.stale(), std::slice::from_ref(&map));
}

#[test]
fn a_status_of_ours_does_not_echo() {
    let mut index = serving(1);
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &json!({}))).unwrap();
    let before = versions(&index.desired(&edge()));
    index.apply(Kind::Pod, pod("web", "edge-1", 9, &json!({}))).unwrap();
    let after = versions(&index.desired(&edge()));
    let key = ObjectKey::pod(&Uid::new("uid-web").unwrap());

    assert_eq!(before[&key].hash, after[&key].hash);
}

#[test]
fn what_an_administrator_puts_on_a_node_is_told_and_what_the_node_has_is_not() {
    let hash = |allocatable: Value| {
        let mut index = serving(1);
        let node = json!({ "metadata": { "name": "edge-1", "uid": "u", "resourceVersion": "5" },
            "status": { "allocatable": allocatable } });
        index.apply(Kind::Node, bytes(&node)).unwrap();
        index.node(&edge()).unwrap().version.hash
    };
    let plain = hash(json!({ "cpu": "1" }));
    let one = hash(json!({ "cpu": "1", "example.com/dongle": "1" }));

    assert_eq!(hash(json!({ "cpu": "2", "hugepages-2Mi": "4Mi" })), plain);
    assert_ne!(one, plain);
    assert_ne!(hash(json!({ "example.com/dongle": "2" })), one);
}

#[test]
fn what_a_relist_lacks_stays_until_a_get_says_it_is_gone() {
    let mut index = serving(1);
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &json!({}))).unwrap();
    index.reset(Kind::Pod, Vec::new(), 9);
    assert_eq!(held(&index), ["Pod uid-web"]);
    assert_eq!(index.missing(&edge()).len(), 1);

    let uid = Uid::new("uid-web").unwrap();
    assert_eq!(index.confirm_gone(&uid), Touched::from([edge()]));
    assert_eq!(held(&index), [""; 0]);
}

#[test]
fn a_pod_that_a_later_list_shows_is_not_missing() {
    let mut index = serving(1);
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &json!({}))).unwrap();
    index.reset(Kind::Pod, Vec::new(), 9);
    index.reset(Kind::Pod, vec![pod("web", "edge-1", 5, &json!({}))], 10);

    assert_eq!(index.confirm_gone(&Uid::new("uid-web").unwrap()), Touched::new());
    assert_eq!(held(&index), ["Pod uid-web"]);
}

#[test]
fn nothing_may_be_said_before_the_watches_have_passed_the_edge() {
    let mut index = serving(1);
    let mut edge = HighWater::default();
    edge.raise(Kind::Pod, Point { epoch: 1, revision: 8 });
    assert!(!index.has_passed(&edge));
    for kind in KINDS {
        index.reset(kind, Vec::new(), 7);
    }
    assert!(!index.has_passed(&edge), "lags behind by one");
    index.pass(Kind::Pod, 8);
    assert!(index.has_passed(&edge));
}

#[test]
fn a_new_epoch_beats_any_revision_and_asks_for_everything_again() {
    let mut index = serving(1);
    let uses = json!({ "volumes": [{ "name": "v", "configMap": { "name": "map" } }] });
    let map = Reference::new(Kind::ConfigMap, "default", "map");
    for kind in KINDS {
        index.reset(kind, Vec::new(), 900);
    }
    index.apply(Kind::Pod, pod("web", "edge-1", 905, &uses)).unwrap();
    index.fetched(&map, Some(named("map", 904, "red"))).unwrap();
    let mut edge_has = HighWater::default();
    edge_has.raise(Kind::Pod, Point { epoch: 1, revision: 905 });
    edge_has.raise(Kind::Service, Point { epoch: 1, revision: 901 });
    assert!(!index.has_passed(&edge_has));

    index.begin_epoch(2);
    assert!(!index.has_passed(&edge_has), "nothing of the new history is known yet");
    assert_eq!(held(&index), ["ConfigMap default/map", "Pod uid-web"], "absence is no evidence");
    assert_eq!(index.stale(), std::slice::from_ref(&map));
    for kind in KINDS {
        let listed =
            if kind == Kind::Pod { vec![pod("web", "edge-1", 40, &uses)] } else { Vec::new() };
        index.reset(kind, listed, 50);
    }
    assert!(index.has_passed(&edge_has), "revision 50 of epoch 2 is after 905 of epoch 1");
    let touched = index.fetched(&map, Some(named("map", 41, "blue"))).unwrap();
    assert_eq!(touched, Touched::from([edge()]), "lower revisions are taken");
    let points: Vec<_> = index.desired(&edge()).iter().map(|o| o.version.point()).collect();
    let of = |revision| Point { epoch: 2, revision };
    assert_eq!(points, [of(41), of(40)]);

    index.apply(Kind::ConfigMap, named("map", 60, "green")).unwrap();
    assert_eq!(index.stale(), [map], "and so are the changes after them");
}

#[test]
fn a_node_that_a_relist_lacks_wakes_its_worker() {
    let mut index = serving(1);
    let node = json!({ "metadata": { "name": "edge-1", "uid": "n-1", "resourceVersion": "3" } });
    index.apply(Kind::Node, bytes(&node)).unwrap();
    let (touched, _) = index.reset(Kind::Node, Vec::new(), 9);

    assert_eq!(touched, Touched::from([edge()]));
    assert!(index.node(&edge()).is_none());
}

#[test]
fn services_of_the_pods_namespaces_and_the_api_server() {
    let mut index = serving(1);
    let service = |namespace: &str, name: &str| {
        bytes(&json!({
            "metadata": { "namespace": namespace, "name": name, "uid": format!("s-{name}"), "resourceVersion": "3" },
            "spec": { "clusterIP": "10.96.0.1" },
        }))
    };
    for (namespace, name) in [("default", "db"), ("default", "kubernetes"), ("other", "hidden")] {
        index.apply(Kind::Service, service(namespace, name)).unwrap();
    }
    assert_eq!(held(&index), [""; 0]);
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &json!({}))).unwrap();

    assert_eq!(held(&index), ["Service default/db", "Service default/kubernetes", "Pod uid-web"]);
}

#[test]
fn an_object_of_another_shape_is_an_error_and_nothing_else() {
    let mut index = serving(1);
    for bad in ["null", "{}", r#"{"metadata":{"name":"x","uid":"u","resourceVersion":"abc"}}"#] {
        assert!(index.apply(Kind::Pod, Bytes::from_static(bad.as_bytes())).is_err(), "{bad}");
    }
    assert_eq!(held(&index), [""; 0]);
}

#[test]
fn nothing_is_asked_for_the_pods_of_other_nodes() {
    let mut index = Index::new(1);
    let uses = json!({ "volumes": [{ "name": "v", "secret": { "secretName": "secret" } }] });
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &uses)).unwrap();
    index.apply(Kind::Pod, pod("other", "elsewhere", 6, &uses)).unwrap();
    assert_eq!(index.stale(), [], "no node is served");
    index.serve(&edge());
    assert_eq!(index.stale(), [Reference::new(Kind::Secret, "default", "secret")]);

    // What a list lacks is gone at once, where nobody is told.
    index.reset(Kind::Pod, Vec::new(), 9);
    let uid = |name: &str| Uid::new(format!("uid-{name}")).unwrap();
    assert!(index.pod(&uid("web")).is_some() && index.pod(&uid("other")).is_none());
}

#[test]
fn a_mirror_is_run_by_nobody_and_found_by_what_it_shows() {
    let mut index = serving(1);
    let mirror = |uid: &str, revision: u64, deleted: bool| {
        let mut mirror = json!({
            "metadata": {
                "namespace": "default", "name": "web-edge-1", "uid": uid,
                "resourceVersion": revision.to_string(),
                "annotations": { "kubernetes.io/config.mirror": "hash" },
            },
            "spec": { "nodeName": "edge-1", "runtimeClassName": "kata",
                "imagePullSecrets": [{ "name": "pull" }] },
        });
        if deleted {
            mirror["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        bytes(&mirror)
    };
    let shows = Uid::new("hash").unwrap();
    let found =
        |index: &Index| index.pod_of(&edge(), &shows).map(|pod| pod.object.version.uid.to_string());
    index.apply(Kind::Pod, mirror("m1", 5, false)).unwrap();
    assert_eq!((held(&index), found(&index)), (vec![], Some("m1".to_owned())));
    let other = NodeName::new("edge-2").unwrap();
    assert!(index.pod_of(&other, &shows).is_none() && index.mirrors_on(&other).next().is_none());

    index.apply(Kind::Pod, mirror("m1", 6, true)).unwrap();
    index.apply(Kind::Pod, mirror("m2", 7, false)).unwrap();
    assert_eq!(found(&index), Some("m2".to_owned()), "the one that stays");
    index.fetched(&Reference::new(Kind::RuntimeClass, "", "kata"), Some(class("kata"))).unwrap();
    let pull = Reference::new(Kind::Secret, "default", "pull");
    index.fetched(&pull, Some(named("pull", 3, "secret"))).unwrap();
    assert_eq!(held(&index), ["RuntimeClass kata"], "the node runs its file's pod with it");
    let seen: Vec<_> = index.mirrors_on(&edge()).map(|m| (m.uid.as_str(), m.is_deleted)).collect();
    assert_eq!(seen, [("m2", false), ("m1", true)]);
}

fn class(name: &str) -> Bytes {
    bytes(&json!({ "metadata": { "name": name, "uid": "c", "resourceVersion": "3" },
        "handler": "kata-qemu" }))
}

/// A claim `default/NAME` that names a volume.
fn claim(name: &str, revision: u64, volume: &str, phase: &str) -> Bytes {
    bytes(&json!({
        "metadata": { "namespace": "default", "name": name, "uid": format!("uid-{name}"),
            "resourceVersion": revision.to_string() },
        "spec": { "volumeName": volume }, "status": { "phase": phase },
    }))
}

/// A volume that is bound to a claim `default/CLAIM`.
fn volume(name: &str, revision: u64, claim: &str) -> Bytes {
    bytes(&json!({
        "metadata": { "name": name, "uid": format!("uid-{name}"),
            "resourceVersion": revision.to_string() },
        "spec": { "local": { "path": "/data" }, "claimRef": {
            "namespace": "default", "name": claim, "uid": format!("uid-{claim}") } },
    }))
}

fn with_claim(name: &str, revision: u64, claim: &str) -> Bytes {
    let source = json!({ "claimName": claim });

    pod(
        name,
        "edge-1",
        revision,
        &json!({ "volumes": [{ "name": "v", "persistentVolumeClaim": source }] }),
    )
}

#[test]
fn a_claim_leads_to_its_volume_and_both_come_before_the_pod() {
    let mut index = serving(1);
    let data = Reference::new(Kind::PersistentVolumeClaim, "default", "data");
    let disk = Reference::new(Kind::PersistentVolume, "", "disk");
    index.apply(Kind::Pod, with_claim("web", 5, "data")).unwrap();
    assert_eq!(index.stale(), std::slice::from_ref(&data));
    index.asking(&data);
    index.fetched(&data, Some(claim("data", 4, "", "Pending"))).unwrap();
    assert_eq!(held(&index), ["PersistentVolumeClaim default/data", "Pod uid-web"]);

    // It is bound later: nothing new is said before the volume is there too.
    index.apply(Kind::PersistentVolumeClaim, claim("data", 6, "", "")).unwrap();
    index.asking(&data);
    index.fetched(&data, Some(claim("data", 6, "disk", "Bound"))).unwrap();
    assert_eq!(held(&index), [""; 0]);
    assert_eq!(index.is_wanted(&edge(), &disk.key()), None);
    assert_eq!(index.is_wanted(&edge(), &data.key()), Some(true));
    assert_eq!(index.stale(), std::slice::from_ref(&disk));
    index.asking(&disk);
    let touched = index.fetched(&disk, Some(volume("disk", 7, "data"))).unwrap();
    assert_eq!(touched, Touched::from([edge()]));
    let all = ["PersistentVolumeClaim default/data", "PersistentVolume disk", "Pod uid-web"];
    assert_eq!(held(&index), all);
    assert_eq!(index.is_wanted(&edge(), &disk.key()), Some(true));

    // A phase is part of what the edge uses; other statuses are not.
    let hash = |index: &Index| versions(&index.desired(&edge()))[&data.key()].hash;
    let bound = hash(&index);
    index.fetched(&data, Some(claim("data", 8, "disk", "Lost"))).unwrap();
    assert_ne!(hash(&index), bound);

    index.apply(Kind::Pod, pod("web", "edge-1", 9, &json!({}))).unwrap();
    assert_eq!(held(&index), ["Pod uid-web"]);
    assert_eq!(index.is_wanted(&edge(), &disk.key()), Some(false));
    assert_eq!(index.stale(), [], "nobody uses the volume");
}

#[test]
fn a_claim_that_names_the_volume_of_another_does_not_get_it() {
    let mut index = serving(1);
    let disk = Reference::new(Kind::PersistentVolume, "", "disk");
    index.apply(Kind::Pod, with_claim("thief", 5, "mine")).unwrap();
    let mine = Reference::new(Kind::PersistentVolumeClaim, "default", "mine");
    index.fetched(&mine, Some(claim("mine", 4, "disk", "Pending"))).unwrap();
    index.fetched(&disk, Some(volume("disk", 4, "data"))).unwrap();
    assert_eq!(held(&index), ["PersistentVolumeClaim default/mine", "Pod uid-thief"]);
    assert_eq!(index.is_wanted(&edge(), &disk.key()), Some(false));

    // One that has it by right brings it, for as long as it is there.
    index.apply(Kind::Pod, with_claim("web", 6, "data")).unwrap();
    let data = Reference::new(Kind::PersistentVolumeClaim, "default", "data");
    index.fetched(&data, Some(claim("data", 4, "disk", "Bound"))).unwrap();
    assert_eq!(index.is_wanted(&edge(), &disk.key()), Some(true));
    index.delete(Kind::Pod, &with_claim("web", 7, "data")).unwrap();
    assert_eq!(index.is_wanted(&edge(), &disk.key()), Some(false));
    // The same name, another claim.
    index.apply(Kind::Pod, with_claim("web", 8, "data")).unwrap();
    let other = String::from_utf8(claim("data", 9, "disk", "Bound").to_vec()).unwrap();
    let other = Bytes::from(other.replace("uid-data", "uid-other"));
    index.fetched(&data, Some(other)).unwrap();
    assert_eq!(index.is_wanted(&edge(), &disk.key()), Some(false));
}

#[test]
fn ephemeral_claims_and_runtime_classes_are_referred_to() {
    let mut index = serving(1);
    let spec =
        json!({ "runtimeClassName": "kata", "volumes": [{ "name": "scratch", "ephemeral": {} }] });
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &spec)).unwrap();
    let claim = Reference::new(Kind::PersistentVolumeClaim, "default", "web-scratch");
    let class_of_pod = Reference::new(Kind::RuntimeClass, "", "kata");
    assert_eq!(index.stale(), [claim.clone(), class_of_pod.clone()]);
    index.fetched(&claim, None).unwrap();
    index.fetched(&class_of_pod, Some(class("kata"))).unwrap();

    assert_eq!(held(&index), ["RuntimeClass kata", "Pod uid-web"]);
}

#[test]
fn what_is_no_name_is_not_asked_for() {
    let mut index = serving(1);
    let mut volumes = ["?watch=true", "../secrets/other", "..", "a/b", "Upper", "a b", "-a", ""]
        .map(|name| json!({ "name": "v", "persistentVolumeClaim": { "claimName": name } }))
        .to_vec();
    volumes.push(json!({ "name": "m", "configMap": { "name": "?watch=true" } }));
    let spec = json!({ "runtimeClassName": "a%2f", "volumes": volumes });
    index.apply(Kind::Pod, pod("web", "edge-1", 5, &spec)).unwrap();
    assert_eq!(index.stale(), []);
    assert_eq!(held(&index), ["Pod uid-web"], "as a pod that refers to nothing");

    let data = Reference::new(Kind::PersistentVolumeClaim, "default", "data");
    index.apply(Kind::Pod, with_claim("db", 6, "data")).unwrap();
    index.asking(&data);
    index.fetched(&data, Some(claim("data", 7, "../nodes?watch=true", "Bound"))).unwrap();
    assert_eq!(index.stale(), []);
    let longest = "a".repeat(253);
    assert!(references::is_name("a") && references::is_name("a.b-0"));
    assert!(references::is_name(&longest) && !references::is_name(&(longest + "a")));
}
