//! Plans as they are printed.

use ring::rand::SystemRandom;

use super::*;

fn args(node: Option<&str>, cloudcore: &str, endpoint: Option<&str>) -> JoinArgs {
    JoinArgs {
        cloudcore: cloudcore.to_owned(),
        token: String::new(),
        node_name: node.map(str::to_owned),
        runtime_endpoint: endpoint.map(str::to_owned),
        proxy: None,
        labels: Vec::new(),
        taints: Vec::new(),
        set: Vec::new(),
        config_dir: "/etc/holdfast".into(),
        no_start: false,
        dry_run: false,
    }
}

fn token() -> Token {
    Token::generate(b"ca", &SystemRandom::new()).unwrap()
}

fn facts(config: Option<&str>) -> Facts {
    let parse = |text| Config::parse(Path::new("test"), text).unwrap();

    Facts {
        is_root: true,
        host_name: "host-1".to_owned(),
        config_path: "/etc/holdfast/edgecore.yaml".into(),
        config: config.map(parse),
        runtimes: Vec::new(),
        systemd: None,
        journal: None,
        variables: Variables::default(),
    }
}

fn shown(outcome: Result<Plan, PlanError>) -> String {
    match outcome {
        Ok(plan) => plan.to_string(),
        Err(error) => crate::ui::chain(&error),
    }
}

fn check(args: &JoinArgs, config: Option<&str>, expected: &str) {
    let shown = shown(Plan::new(args, &token(), facts(config)));
    assert!(shown.contains(expected), "{shown}");
}

#[test]
fn the_plan_of_a_bare_machine() {
    let mut args = args(None, "c:1", None);
    args.labels = vec!["site=north".to_owned(), "example.com/gpu=".to_owned()];
    args.taints = vec!["dedicated=camera:NoSchedule".to_owned(), "edge:NoExecute".to_owned()];
    args.set = vec!["maxPods=20".to_owned(), "clusterDNS=[10.96.0.10]".to_owned()];
    let systemd =
        Systemd { program: "/usr/bin/edgecore".into(), has_program: true, ..Systemd::default() };
    let facts = Facts {
        runtimes: vec!["/run/crio/crio.sock".to_owned()],
        systemd: Some(systemd),
        ..facts(None)
    };
    let mut plan = Plan::new(&args, &token(), facts).unwrap();
    plan.network = Network::Default;
    let expected = r#"ask c:1 for a certificate of node host-1
write its key and certificates to /etc/holdfast
write /etc/holdfast/edgecore.yaml:
# Written by edgeadm join. `edgecore config example` prints every field.
nodeName: "host-1"
cloudcore: "c:1"
identityDir: "/etc/holdfast"
runtimeEndpoint: "unix:///run/crio/crio.sock"
nodeLabels:
  "site": "north"
  "example.com/gpu": ""
taints:
- { key: "dedicated", value: "camera", effect: "NoSchedule" }
- { key: "edge", value: "", effect: "NoExecute" }
maxPods: 20
clusterDNS: [10.96.0.10]
write /etc/cni/net.d/10-holdfast.conflist: the runtime has no network for pods
write /etc/systemd/system/edgecore.service
have edgecore.service started with the machine
start it, and wait until it is connected to c:1"#;
    assert_eq!(plan.to_string(), expected);
    assert_eq!(plan.config.pods_max, 20);
}

#[test]
fn plans_follow_what_is_there() {
    let there = "nodeName: edge-1\ncloudcore: c:1\n";
    check(&args(None, "c:1", None), None, "a certificate of node host-1");
    check(&args(None, "c:1", None), None, "leave it to you to start the agent");
    check(&args(Some("edge-1"), "c:1", None), None, "nodeName: \"edge-1\"");
    let endpoint = "runtimeEndpoint: \"unix:///run/crio.sock\"";
    check(&args(None, "c:1", Some("/run/crio.sock")), None, endpoint);
    check(&args(None, "c:1", None), Some(there), "keep /etc/holdfast/edgecore.yaml");
    check(&args(None, "c:2", None), Some(there), "give --cloudcore c:1, or remove");
    check(&args(Some("b"), "c:1", None), Some(there), "has nodeName edge-1, not b");
    check(&args(None, "c:1", Some("/x")), Some(there), "has runtimeEndpoint");
    check(&args(Some("A b"), "c:1", None), None, "nodeName");
    check(&args(None, "nowhere", None), None, "cloudcore");
    for (labels, taints, set, expected) in [
        (vec!["a"], vec![], vec![], "--labels \"a\" is not of the form KEY=VALUE"),
        (vec![], vec!["a=b"], vec![], "--taints \"a=b\" is not of the form"),
        (vec![], vec!["a=b:Never"], vec![], "taints[0].effect"),
        (vec![], vec![], vec!["maxPods"], "--set \"maxPods\" is not of the form"),
        (vec![], vec![], vec!["odd=1"], "odd"),
        (vec![], vec![], vec!["nodeName=other"], "nodeName"),
    ] {
        let own = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
        let args = JoinArgs {
            labels: own(labels),
            taints: own(taints),
            set: own(set),
            ..args(None, "c:1", None)
        };
        check(&args, None, expected);
    }
    let mut more = args(None, "c:1", None);
    more.labels = vec!["a=b".to_owned()];
    check(&more, Some(there), "change it there");
    check(&more, Some("nodeName: edge-1\ncloudcore: c:1\nnodeLabels: { a: b }\n"), "keep");
}

#[test]
fn a_runtime_is_found_and_two_are_asked_about() {
    let both = Facts { runtimes: vec!["/a".to_owned(), "/b".to_owned()], ..facts(None) };
    let outcome = Plan::new(&args(None, "c:1", None), &token(), both);
    assert!(shown(outcome).contains("--runtime-endpoint: /a or /b"));
    let one = Facts { runtimes: vec!["/a".to_owned()], ..facts(None) };
    let plan = Plan::new(&args(None, "c:1", None), &token(), one).unwrap();
    assert_eq!(plan.config.runtime_socket, Path::new("/a"));
}

#[test]
fn a_join_that_failed_goes_on_by_the_same_token_only() {
    let (token, args) = (token(), args(None, "c:1", None));
    let config = Config::with_defaults("host-1", "c:1").unwrap();
    let journal = Plan::journal(&config, &token);
    let begun = || Facts { journal: Some(journal.clone()), ..facts(None) };
    assert!(
        shown(Plan::new(&args, &token, begun())).starts_with("keep the identity of node host-1")
    );
    assert!(shown(Plan::new(&args, &self::token(), begun())).starts_with("ask c:1"));
}

#[test]
fn units_of_others_stay() {
    let config = Path::new("/etc/holdfast/edgecore.yaml");
    let program = PathBuf::from("/usr/bin/edgecore");
    let ours = unit::text(&program, config);
    let theirs = "[Service]\nExecStart=/opt/edgecore run\n".to_owned();
    let with = |unit: Option<&String>, packaged: Option<&String>| Systemd {
        unit: unit.cloned(),
        packaged: packaged.cloned(),
        program: program.clone(),
        has_program: true,
    };
    let keep = Service::Unit { text: None, start: true };
    let write = Service::Unit { text: Some(ours.clone()), start: true };
    let old = ours.replace("WatchdogSec=60", "WatchdogSec=6");
    for (unit, packaged, expected) in [
        (None, None, &write),
        (Some(&ours), None, &keep),
        (Some(&old), None, &write),
        (Some(&theirs), None, &keep),
        (None, Some(&theirs), &keep),
    ] {
        let found = service(&args(None, "c:1", None), Some(&with(unit, packaged)), config).unwrap();
        assert_eq!(found, *expected, "{unit:?} {packaged:?}");
    }
    let none = Systemd { has_program: false, ..with(None, None) };
    let outcome = service(&args(None, "c:1", None), Some(&none), config);
    assert!(outcome.unwrap_err().to_string().contains("install edgecore beside edgeadm"));
    let mut by_hand = args(None, "c:1", None);
    by_hand.no_start = true;
    assert_eq!(service(&by_hand, Some(&none), config).unwrap(), Service::ByHand);
}

#[test]
fn the_proxy_that_join_takes_is_the_agents_and_its_password_is_not_shown() {
    let plan = |asked: Option<&str>, variables: &[(&'static str, &str)]| {
        let own = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let facts = Facts { variables: Variables(own.collect()), ..facts(None) };
        let args = JoinArgs { proxy: asked.map(str::to_owned), ..args(None, "c.test:1", None) };
        Plan::new(&args, &token(), facts).unwrap()
    };
    let (nothing, environment): ([(&str, &str); 0], _) =
        ([], [("HTTPS_PROXY", "http://me:secret@proxy:3128")]);
    for (asked, variables, expected) in [
        (None, &nothing[..], None),
        (None, &environment[..], Some("proxy: \"http://proxy:3128\" # and credentials")),
        (None, &[environment[0], ("NO_PROXY", "test")][..], None),
        (Some("none"), &environment[..], Some("proxy: \"none\"")),
        (Some("other:1"), &environment[..], Some("proxy: \"other:1\"")),
    ] {
        let shown = plan(asked, variables).to_string();
        let found = shown.lines().find(|line| line.starts_with("proxy:"));
        assert_eq!(found, expected, "{asked:?} {variables:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }
    let text = plan(None, &environment).config_text.unwrap();
    assert!(text.ends_with("proxy: \"http://me:secret@proxy:3128\"\n"), "{text}");
}
