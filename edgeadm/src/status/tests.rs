//! What people are shown.

use serde_json::json;

use super::*;

fn status(link: &serde_json::Value) -> Status {
    let agent = json!({
        "node": "edge-1", "version": "0.1.0", "pid": 7, "startedAt": "2026-01-01T00:00:00Z",
        "residentBytes": 9_961_472, "link": link,
        "backlog": { "reports": 2, "events": 1, "droppedEvents": 0 },
        "runtime": { "endpoint": "unix:///run/c.sock", "name": "containerd", "version": "1.7.2", "ageMs": 5 },
        "podLoopAgeMs": 100, "storeBytes": 1_048_576,
    });
    let certificate = Certificate {
        subject: "O=system:nodes, CN=system:node:edge-1".to_owned(),
        issuer: "CN=holdfast".to_owned(),
        not_before: "2026-01-01T00:00:00Z".to_owned(),
        not_after: "2026-01-11T00:00:00Z".to_owned(),
        problem: None,
    };

    Status {
        node: "edge-1".to_owned(),
        agent: Some(serde_json::from_value(agent).unwrap()),
        problem: None,
        upgrade: None,
        certificate: Some(certificate),
        certificate_problem: None,
        pods: Some(Vec::new()),
        now: "2026-01-01T01:00:00Z".parse().unwrap(),
    }
}

#[test]
fn a_node_that_is_connected() {
    let link = json!({
        "state": "Up", "since": "2026-01-01T00:30:00Z", "address": "c:1", "generation": 3, "synced": true,
    });
    let mut status = status(&link);
    status.pods = Some(vec![Summary {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        ready: "1/1".to_owned(),
        status: "Running".to_owned(),
        restarts: 0,
        age: "5m".to_owned(),
        ip: String::new(),
    }]);
    let expected = "\
Node:          edge-1
Agent:         0.1.0, process 7, since 2026-01-01T00:00:00Z (60m)
Link:          up since 2026-01-01T00:30:00Z (30m), to c:1, in sync
Backlog:       2 reports and 1 events wait for the cloud
Runtime:       containerd 1.7.2 at unix:///run/c.sock
Use:           9.5 MiB of memory, 1.0 MiB of state
Certificate:   until 2026-01-11T00:00:00Z (9d)

NAMESPACE   NAME   READY   STATUS    RESTARTS   AGE
shop        web    1/1     Running   0          5m";
    assert_eq!(status.text(), expected);
}

#[test]
fn a_node_that_is_not() {
    let link = json!({
        "state": "Down", "since": "2026-01-01T00:30:00Z", "address": "c:1",
        "proxy": "http://proxy:3128", "reason": "no route",
    });
    let mut status = status(&link);
    let text = status.text();
    let expected = "Link:          down since 2026-01-01T00:30:00Z (30m), to c:1 through http://proxy:3128: no route";
    assert!(text.contains(expected), "{text}");
    assert!(text.ends_with("No pods."), "{text}");

    status.agent = None;
    status.pods = None;
    status.upgrade = Some("version 1.1 is on trial".to_owned());
    status.certificate.as_mut().unwrap().problem = Some("expired".to_owned());
    let expected = "\
Node:          edge-1
Agent:         does not answer
Upgrade:       version 1.1 is on trial
Certificate:   until 2026-01-11T00:00:00Z (9d); cloudcore will not take it: expired";
    assert_eq!(status.text(), expected);
}
