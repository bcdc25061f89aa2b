//! Pods of a node that is short of memory or process numbers.

use podcore::pressure::{Policy, Texts, parse};

use super::*;

/// Thresholds that every machine is below: pressure that is real and costs nobody anything.
fn short_of(hard: &[(&str, &str)], soft: &[(&str, &str)]) -> Policy {
    let map = |texts: &[(&str, &str)]| -> BTreeMap<String, String> {
        texts.iter().map(|(signal, text)| ((*signal).to_owned(), (*text).to_owned())).collect()
    };
    let (hard, soft) = (map(hard), map(soft));
    let graces = soft.keys().map(|signal| (signal.clone(), "1s".to_owned())).collect();
    let texts = Texts {
        hard: &hard,
        soft: &soft,
        soft_grace: &graces,
        min_reclaim: &BTreeMap::new(),
        transition: "0s",
        pod_grace_max_s: 2,
    };

    parse(&texts).unwrap()
}

/// A pod whose container says `full` once it has that much memory and that many processes.
fn hungry(
    uid: &str,
    priority: i64,
    requested: Option<&str>,
    (mib, processes): (u32, u32),
) -> Value {
    let mut spec = sleeper(&format!(
        "trap 'exit 0' TERM; dd if=/dev/zero of=/ram/fill bs=1M count={mib}; \
         for i in $(seq {processes}); do sleep 3600 & done; echo full; sleep 3600 & wait $!"
    ));
    spec["priority"] = json!(priority);
    if let Some(requested) = requested {
        spec["containers"][0]["resources"] = json!({ "requests": { "memory": requested } });
    }

    pod(uid, &spec)
}

fn evicted(status: &Value, _done: bool) -> bool {
    status["phase"] == "Failed" && status["reason"] == "Evicted"
}

#[test]
#[ignore = "needs a site, which scripts/test makes"]
fn who_takes_most_of_what_the_node_is_short_of_is_evicted_first() {
    run(async {
        let site = Site::find();
        let state = tempfile::tempdir().unwrap();
        let mut config = site.config(state.path());
        let mut agent = Agent::start(&config);
        let mut changes = vec![words(&mut agent, "hello")];
        let all = [
            ("greedy", 0, None, (48, 1)),
            ("many", 0, None, (1, 30)),
            ("modest", 0, Some("256Mi"), (96, 1)),
            ("critical", 2_000_000_000, None, (96, 40)),
        ];
        for (uid, priority, requested, has) in all {
            let pod = hungry(uid, priority, requested, has);
            changes.push(agent.put(pod_key(uid), uid, &pod));
        }
        agent.deliver(changes).await;
        for (uid, ..) in all {
            agent.wait(uid, ready).await;
            let log = logs(&site, uid, 0);
            eventually("it is full", || {
                std::fs::read_to_string(&log).is_ok_and(|text| text.contains("full"))
            })
            .await;
        }
        agent.stop().await;

        // Too little memory for a second: a soft threshold.
        config.eviction = short_of(&[], &[("memory.available", "99.999%")]);
        let mut agent = Agent::start(&config);
        let status = agent.wait("greedy", evicted).await;
        let others: Vec<_> =
            agent.statuses.values().filter(|(s, done)| evicted(s, *done)).collect();
        assert_eq!(others.len(), 1, "{others:#?}");
        let message = status["message"].as_str().unwrap();
        assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "));
        let blame = "request is 0, has larger consumption of memory. ";
        assert!(message.contains("Container main was using ") && message.ends_with(blame));
        agent.wait_for_node("MemoryPressure", "kubelet has insufficient memory available").await;
        agent
            .wait_for_events(&[
                "\"NodeHasInsufficientMemory\"",
                "\"EvictionThresholdMet\" \"Attempting to reclaim memory\"",
            ])
            .await;
        let late = agent.put(pod_key("late"), "late", &hungry("late", 0, None, (1, 1)));
        agent.deliver(vec![late]).await;
        let late = agent.wait("late", evicted).await;
        let message = "Pod was rejected: The node had condition: [MemoryPressure]. ";
        assert_eq!(late["message"], message);
        agent.stop().await;

        // Too few process numbers: a hard one.
        config.eviction = short_of(&[("pid.available", "99.999%")], &[]);
        let mut agent = Agent::start(&config);
        let status = agent.wait("many", evicted).await;
        let message = status["message"].as_str().unwrap();
        assert!(message.starts_with("The node was low on resource: pids. "), "{message}");
        agent.wait_for_node("PIDPressure", "kubelet has insufficient PID available").await;
        agent.wait_for_node("MemoryPressure", "kubelet has sufficient memory available").await;
        agent.wait_for_events(&["\"NodeHasInsufficientPID\""]).await;
        let critical = agent.wait("critical", ready).await;
        assert_eq!(critical["containerStatuses"][0]["restartCount"], 0);
        let uids = all.map(|(uid, ..)| uid).into_iter().chain(["late"]);
        let gone = uids
            .clone()
            .map(|uid| Change::Delete { key: pod_key(uid), uid: Uid::new(uid).unwrap() });
        agent.deliver(gone.collect()).await;
        for uid in uids {
            agent.wait(uid, done).await;
        }
        agent.stop().await;
    });
}
