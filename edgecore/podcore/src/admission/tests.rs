//! Who is taken in, who is refused with which words, and who goes for a critical pod.

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, spec: &Value) -> PodView {
    let mut spec = spec.clone();
    if spec["containers"].is_null() {
        spec["containers"] = json!([{ "name": "a", "image": "x" }]);
    }
    let pod = json!({
        "metadata": { "uid": name, "namespace": "default", "name": name },
        "spec": spec,
    });

    PodView::parse(pod.to_string().as_bytes()).unwrap()
}

/// What an administrator has put on the node.
const DONGLE: &str = "example.com/dongle";

/// A pod of one container that requests this.
fn asks(name: &str, priority: i32, requests: &Value) -> PodView {
    let container = json!({ "name": "a", "image": "x", "resources": { "requests": requests } });

    pod(name, &json!({ "priority": priority, "containers": [container] }))
}

fn node() -> Node {
    Node {
        name: "edge".into(),
        labels: [("zone", "west"), ("level", "5"), (OS_LABEL, "linux")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        allocatable: Requests {
            cpu_milli: 2000,
            memory: 1 << 30,
            storage: 1 << 30,
            scalars: [("hugepages-2Mi", 8 << 20), (DONGLE, 2)]
                .map(|(name, amount)| (name.to_owned(), amount))
                .into(),
        },
        pods_max: 3,
        abilities: Arc::new(Abilities {
            app_armor: true,
            supplemental_groups_policy: true,
            ..Abilities::default()
        }),
        ..Node::default()
    }
}

fn claims(pods: &[PodView]) -> BTreeMap<Uid, Claim> {
    pods.iter().map(|pod| (pod.uid.clone(), Claim::of(pod))).collect()
}

/// What becomes of the pod on this node: the reason and message of a refusal.
#[track_caller]
fn check_on(node: &Node, pod: &PodView, others: &[PodView], expected: Option<(&str, &str)>) {
    let admitted = admit(pod, node, &claims(others));
    let refused = admitted.as_ref().err().map(|r| (r.reason.as_str(), r.message.as_str()));

    assert_eq!(refused, expected, "{:?}", pod.spec());
}

fn check(spec: &Value, expected: Option<(&str, &str)>) {
    check_on(&node(), &pod("new", spec), &[], expected);
}

const AFFINITY: Option<(&str, &str)> = Some((
    "NodeAffinity",
    "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
));

#[test]
fn resources_that_are_not_there_are_named() {
    let half = asks("half", 0, &json!({ "cpu": "1500m", "memory": "512Mi" }));
    let others = [half];
    for (requests, expected) in [
        (json!({ "cpu": "500m" }), None),
        (
            json!({ "cpu": "501m" }),
            Some((
                "OutOfcpu",
                "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000",
            )),
        ),
        (
            json!({ "memory": "1Gi", "ephemeral-storage": "2Gi" }),
            Some((
                "OutOfmemory",
                "Node didn't have enough resource: memory, requested: 1073741824, used: 536870912, capacity: 1073741824",
            )),
        ),
        (
            json!({ "ephemeral-storage": "2Gi" }),
            Some((
                "OutOfephemeral-storage",
                "Node didn't have enough resource: ephemeral-storage, requested: 2147483648, used: 0, capacity: 1073741824",
            )),
        ),
    ] {
        check_on(&node(), &asks("new", 0, &requests), &others, expected);
    }
    let three = ["a", "b", "c"].map(|name| asks(name, 0, &json!({})));
    check_on(
        &node(),
        &asks("new", 0, &json!({})),
        &three,
        Some((
            "OutOfpods",
            "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
        )),
    );
    // One that asks for nothing fits in what is overdrawn.
    let large = [asks("large", 0, &json!({ "cpu": "9" }))];
    check_on(&node(), &asks("new", 0, &json!({ "memory": "1Mi" })), &large, None);
}

#[test]
fn huge_pages_and_extended_resources_are_counted() {
    let others = [asks("half", 0, &json!({ "hugepages-2Mi": "6Mi", DONGLE: "1", "a.b/c": "9" }))];
    for (requests, expected) in [
        (json!({ "hugepages-2Mi": "2Mi", DONGLE: "1" }), None),
        (json!({ "hugepages-2Mi": "0", DONGLE: "0" }), None),
        // The node does not have it: it is the cluster's.
        (json!({ "a.b/c": "1" }), None),
        (
            json!({ "hugepages-2Mi": "4Mi" }),
            Some((
                "OutOfhugepages-2Mi",
                "Node didn't have enough resource: hugepages-2Mi, requested: 4194304, used: 6291456, capacity: 8388608",
            )),
        ),
        (
            json!({ "hugepages-1Gi": "1Gi" }),
            Some((
                "OutOfhugepages-1Gi",
                "Node didn't have enough resource: hugepages-1Gi, requested: 1073741824, used: 0, capacity: 0",
            )),
        ),
        (
            json!({ DONGLE: "2" }),
            Some((
                "OutOfexample.com/dongle",
                "Node didn't have enough resource: example.com/dongle, requested: 2, used: 1, capacity: 2",
            )),
        ),
        (
            json!({ "kubernetes.io/batteries": "1" }),
            Some((
                "OutOfkubernetes.io/batteries",
                "Node didn't have enough resource: kubernetes.io/batteries, requested: 1, used: 0, capacity: 0",
            )),
        ),
    ] {
        check_on(&node(), &asks("new", 0, &requests), &others, expected);
    }
}

#[test]
fn a_pod_requests_what_it_needs_at_once() {
    let cpu = |amount: &str| json!({ "requests": { "cpu": amount } });
    let spec = json!({
        "overhead": { "cpu": "10m", "memory": "1Mi" },
        "initContainers": [
            { "name": "s", "image": "x", "restartPolicy": "Always", "resources": cpu("100m") },
            { "name": "i", "image": "x", "resources": cpu("900m") },
        ],
        "containers": [
            { "name": "a", "image": "x", "resources": cpu("300m") },
            { "name": "b", "image": "x", "resources": cpu("200m") },
        ],
    });
    let expected = Requests { cpu_milli: 1010, memory: 1 << 20, ..Requests::default() };
    assert_eq!(Requests::of(&pod("p", &spec)), expected);

    let mut whole = spec;
    whole["resources"] = json!({ "requests": { "cpu": "50m" } });
    assert_eq!(Requests::of(&pod("p", &whole)).cpu_milli, 60);
}

#[test]
fn a_pod_runs_only_where_it_wants_to() {
    let required = |expression: Value| {
        let terms = json!([{}, { "matchExpressions": [expression] }]);
        json!({ "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
    };
    let expression = |key: &str, operator: &str, values: Value| {
        required(json!({ "key": key, "operator": operator, "values": values }))
    };
    for (spec, expected) in [
        (json!({ "nodeSelector": { "zone": "west" } }), None),
        (json!({ "nodeSelector": { "zone": "east" } }), AFFINITY),
        (expression("zone", "In", json!(["east", "west"])), None),
        (expression("zone", "NotIn", json!(["west"])), AFFINITY),
        (expression("rack", "NotIn", json!(["1"])), None),
        (expression("rack", "Exists", json!([])), AFFINITY),
        (expression("rack", "DoesNotExist", json!([])), None),
        (expression("level", "Gt", json!(["4"])), None),
        (expression("level", "Lt", json!(["5"])), AFFINITY),
        (expression("zone", "Gt", json!(["1"])), AFFINITY),
    ] {
        check(&spec, expected);
    }
    for (operator, name, expected) in
        [("In", "edge", None), ("In", "other", AFFINITY), ("NotIn", "edge", AFFINITY)]
    {
        let fields = json!([{ "key": "metadata.name", "operator": operator, "values": [name] }]);
        check(
            &json!({ "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution":
                    { "nodeSelectorTerms": [{ "matchFields": fields }] } } } }),
            expected,
        );
    }
    check(&json!({ "nodeName": "edge" }), None);
    check(
        &json!({ "nodeName": "other" }),
        Some((
            "NodeName",
            "Predicate NodeName failed: node(s) didn't match the requested node name",
        )),
    );
}

#[test]
fn a_port_of_the_node_has_one_pod() {
    let on = |name: &str, port: Value| {
        let ports = json!([port]);
        pod(name, &json!({ "containers": [{ "name": "a", "image": "x", "ports": ports }] }))
    };
    let taken = [on("old", json!({ "containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1" }))];
    let refused = Some((
        "NodePorts",
        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
    ));
    for (port, expected) in [
        (json!({ "containerPort": 80 }), None),
        (json!({ "containerPort": 1, "hostPort": 80 }), refused),
        (json!({ "containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.1" }), refused),
        (json!({ "containerPort": 1, "hostPort": 80, "hostIP": "10.0.0.2" }), None),
        (json!({ "containerPort": 1, "hostPort": 80, "protocol": "UDP" }), None),
        (json!({ "containerPort": 1, "hostPort": 81 }), None),
    ] {
        check_on(&node(), &on("new", port), &taken, expected);
    }
}

#[test]
fn taints_that_let_nothing_run_keep_pods_out() {
    let mut tainted = node();
    let taint = |effect: &str| Taint {
        key: "k".into(),
        value: Some("v".into()),
        effect: effect.into(),
        time_added: None,
    };
    tainted.taints = vec![taint("NoSchedule")];
    check_on(&tainted, &pod("new", &json!({})), &[], None);
    tainted.taints.push(taint("NoExecute"));
    let refused = Some((
        "TaintToleration",
        "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
    ));
    for (toleration, expected) in [
        (json!({ "key": "k", "value": "v" }), None),
        (json!({ "key": "k", "value": "w" }), refused),
        (json!({ "operator": "Exists" }), None),
        (json!({ "operator": "Exists", "effect": "NoSchedule" }), refused),
        (json!({ "key": "k", "operator": "Equal", "value": "v", "effect": "NoExecute" }), None),
    ] {
        let tolerant = pod("new", &json!({ "tolerations": [toleration] }));
        check_on(&tainted, &tolerant, &[], expected);
    }
    let mut own = pod("new", &json!({}));
    own.pod.metadata.annotations = Some([(SOURCE_ANNOTATION.into(), "file".into())].into());
    check_on(&tainted, &own, &[], None);
    // One of the API server is not the node's, whatever it says.
    own.pod.metadata.resource_version = Some("7".into());
    check_on(&tainted, &own, &[], refused);
}

#[test]
fn what_a_node_cannot_enforce_it_refuses() {
    let sysctls = |name: &str| json!({ "sysctls": [{ "name": name, "value": "1" }] });
    let forbidden = |why| Some(("SysctlForbidden", why));
    for (spec, expected) in [
        (json!({ "os": { "name": "linux" } }), None),
        (
            json!({ "os": { "name": "windows" } }),
            Some((
                "PodOSNotSupported",
                "Failed to admit pod as the OS field doesn't match node OS",
            )),
        ),
        (json!({ "securityContext": sysctls("net.ipv4.tcp_syncookies") }), None),
        (json!({ "securityContext": sysctls("net/ipv4/tcp_syncookies") }), None),
        (
            json!({ "securityContext": sysctls("kernel.msgmax") }),
            forbidden("forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
        ),
        (
            json!({ "hostNetwork": true, "securityContext": sysctls("net.ipv4.tcp_rmem") }),
            forbidden("forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host Net enabled"),
        ),
        (
            json!({ "hostIPC": true, "securityContext": sysctls("kernel.shm_rmid_forced") }),
            forbidden(
                "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host IPC enabled",
            ),
        ),
    ] {
        check(&spec, expected);
    }
    let mut labelled = pod("new", &json!({}));
    labelled.pod.metadata.labels = Some([(OS_LABEL.into(), "windows".into())].into());
    check_on(
        &node(),
        &labelled,
        &[],
        Some((
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        )),
    );
    let plain = Node { abilities: Arc::default(), ..node() };
    let refused =
        Some(("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"));
    let strict = Some((
        "SupplementalGroupsPolicyNotSupported",
        "SupplementalGroupsPolicy=Strict is not supported in this node",
    ));
    let profile = |kind: &str| json!({ "appArmorProfile": { "type": kind } });
    for (context, expected) in [
        (profile("RuntimeDefault"), refused),
        (profile("Localhost"), refused),
        (profile("Unconfined"), None),
        (json!({ "supplementalGroupsPolicy": "Strict" }), strict),
        (json!({ "supplementalGroupsPolicy": "Merge" }), None),
    ] {
        let spec = json!({ "securityContext": context });
        check_on(&plain, &pod("new", &spec), &[], expected);
        check(&spec, None);
    }
}

#[test]
fn a_node_in_need_takes_only_what_it_cannot_do_without() {
    let critical = || asks("new", 2_000_000_000, &json!({}));
    let modest = || asks("new", 0, &json!({ "cpu": "1m" }));
    let greedy = || pod("new", &json!({}));
    let tolerant = || {
        let toleration =
            json!({ "key": "node.kubernetes.io/memory-pressure", "operator": "Exists" });
        pod("new", &json!({ "tolerations": [toleration] }))
    };
    let memory = "The node had condition: [MemoryPressure]. ";
    let both = "The node had condition: [DiskPressure MemoryPressure]. ";
    for (pod, memory, both) in [
        (Box::new(critical()), None, None),
        (Box::new(modest()), None, Some(both)),
        (Box::new(greedy()), Some(memory), Some(both)),
        (Box::new(tolerant()), None, Some(both)),
    ] {
        let mut pressed = Node { pressure: vec!["MemoryPressure"], ..node() };
        check_on(&pressed, &pod, &[], memory.map(|message| ("Evicted", message)));
        pressed.pressure = vec!["DiskPressure", "MemoryPressure"];
        check_on(&pressed, &pod, &[], both.map(|message| ("Evicted", message)));
    }
    let leaving = Node { shuts_down: true, ..node() };
    let message = "Pod was rejected as the node is shutting down.";
    check_on(&leaving, &critical(), &[], Some(("NodeShutdown", message)));
}

#[test]
fn only_what_can_change_lifts_a_refusal() {
    let from = |source: &str, spec: &Value| {
        let mut pod = pod("new", spec);
        let source = (SOURCE_ANNOTATION.to_owned(), source.to_owned());
        pod.pod.metadata.annotations = Some([source].into());
        pod
    };
    let leaving = Node { shuts_down: true, ..node() };
    let elsewhere = json!({ "nodeSelector": { "zone": "east" } });
    let foreign = json!({ "os": { "name": "windows" } });
    for (source, spec, lift) in [
        ("file", &json!({}), Some(Lift::EndOfShutdown)),
        ("api", &json!({}), None),
        ("file", &elsewhere, Some(Lift::NodeObject)),
        ("api", &elsewhere, Some(Lift::NodeObject)),
        ("file", &foreign, None),
    ] {
        let pod = from(source, spec);
        let refusal = admit(&pod, &leaving, &BTreeMap::new()).unwrap_err();
        assert_eq!(refusal.lifted_by(&pod), lift, "{refusal:?}");
    }
}

/// Who goes so that a critical pod with these requests fits.
#[track_caller]
fn check_preempted(requests: &Value, others: &[PodView], expected: &[&str]) {
    let new = asks("new", 2_000_000_000, requests);
    let preempted = admit(&new, &node(), &claims(others)).unwrap();
    let preempted: Vec<_> = preempted.iter().map(Uid::as_str).collect();

    assert_eq!(preempted, expected, "{requests}");
}

#[test]
fn as_few_and_as_little_needed_pods_as_possible_make_room_for_a_critical_one() {
    let guaranteed = |name: &str, cpu: &str| {
        let all = json!({ "cpu": cpu, "memory": "1Mi" });
        let container =
            json!({ "name": "a", "image": "x", "resources": { "limits": all, "requests": all } });
        pod(name, &json!({ "priority": 0, "containers": [container] }))
    };
    let burstable = |name: &str, cpu: &str| asks(name, 0, &json!({ "cpu": cpu }));
    let others = [guaranteed("sure", "1"), burstable("large", "800m"), burstable("small", "200m")];
    check_preempted(&json!({}), &[], &[]);
    check_preempted(&json!({ "memory": "1Mi" }), &others[..2], &[]);
    // The fourth pod; the one that requests least of those of the lowest class goes.
    check_preempted(&json!({}), &others, &["small"]);
    let two = [guaranteed("sure", "1"), burstable("large", "900m")];
    check_preempted(&json!({ "cpu": "500m" }), &two, &["large"]);
    check_preempted(&json!({ "cpu": "1500m" }), &two, &["large", "sure"]);

    // Huge pages and what else is counted count here too.
    let pages = [
        asks("paged", 0, &json!({ "memory": "1Mi", "hugepages-2Mi": "6Mi" })),
        asks("small", 0, &json!({ "memory": "1Ki", "hugepages-2Mi": "2Mi", DONGLE: "2" })),
    ];
    check_preempted(&json!({ "hugepages-2Mi": "6Mi" }), &pages, &["paged"]);
    check_preempted(&json!({ DONGLE: "1" }), &pages, &["small"]);

    // One more critical is not touched.
    let system = [asks("system", 2_000_001_000, &json!({ "cpu": "1500m" }))];
    let new = asks("new", 2_000_000_000, &json!({ "cpu": "1" }));
    check_on(
        &node(),
        &new,
        &system,
        Some((
            "UnexpectedAdmissionError",
            "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to preempt: no set of running pods found to reclaim resources: [(res: cpu, q: 500), ]",
        )),
    );
    // Nor does anyone go for a pod that does not fit anyhow.
    let mut elsewhere = new.pod.clone();
    elsewhere.spec = Some(k8s_openapi::api::core::v1::PodSpec {
        node_name: Some("other".into()),
        ..new.spec().clone()
    });
    let elsewhere = serde_json::to_vec(&elsewhere).unwrap();
    let elsewhere = PodView::parse(&elsewhere).unwrap();
    let refused = admit(&elsewhere, &node(), &claims(&two)).unwrap_err();
    assert_eq!(refused.reason, "NodeName");
}
