//! Whether the user of the kubeconfig may do what installing takes: asked before anything is changed, all at
//! once.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

/// Something that may be done, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Right {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    /// In cloudcore's namespace; in all otherwise.
    is_namespaced: bool,
}

const fn cluster(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource, is_namespaced: false }
}

const fn within(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource, is_namespaced: true }
}

const RBAC: &str = "rbac.authorization.k8s.io";
const FLOW_CONTROL: &str = "flowcontrol.apiserver.k8s.io";

/// What the chart has, Helm's own record of it, and what is looked at afterwards. Who may create roles must
/// also have the rights that they give: that only the API server can tell.
const INSTALL: [Right; 16] = [
    cluster("create", "", "namespaces"),
    cluster("create", RBAC, "clusterroles"),
    cluster("create", RBAC, "clusterrolebindings"),
    cluster("create", FLOW_CONTROL, "flowschemas"),
    cluster("create", FLOW_CONTROL, "prioritylevelconfigurations"),
    cluster("list", "apps", "daemonsets"),
    cluster("list", "", "nodes"),
    within("create", "", "secrets"),
    within("get", "", "secrets"),
    within("create", "", "configmaps"),
    within("create", "", "services"),
    within("create", "", "serviceaccounts"),
    within("create", "apps", "deployments"),
    within("create", "policy", "poddisruptionbudgets"),
    within("create", RBAC, "roles"),
    within("create", RBAC, "rolebindings"),
];
const LIST: [Right; 1] = [cluster("list", "apps", "daemonsets")];
const PATCH: [Right; 1] = [cluster("patch", "apps", "daemonsets")];

/// What these need.
pub(super) fn needed(installs: bool, patches: bool) -> Vec<Right> {
    let base: &[Right] = if installs { &INSTALL } else { &LIST };
    let more: &[Right] = if patches { &PATCH } else { &[] };

    [base, more].concat()
}

impl Right {
    /// As `kubectl auth can-i` has it.
    fn text(self, namespace: &str) -> String {
        let Self { verb, group, resource, is_namespaced } = self;
        let dot = if group.is_empty() { "" } else { "." };
        let place =
            if is_namespaced { format!(" in namespace {namespace}") } else { String::new() };

        format!("{verb} {resource}{dot}{group}{place}")
    }

    fn review(self, namespace: &str) -> SelfSubjectAccessReview {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let attributes = ResourceAttributes {
            namespace: self.is_namespaced.then(|| namespace.to_owned()),
            verb: text(self.verb),
            group: text(self.group),
            resource: text(self.resource),
            ..ResourceAttributes::default()
        };

        SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        }
    }
}

/// Those of `needed` that this user has not.
pub(super) async fn missing(
    client: &Client,
    namespace: &str,
    needed: &[Right],
) -> Result<Vec<String>, kube::Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let mut missing = Vec::new();
    for right in needed {
        let answer = reviews.create(&PostParams::default(), &right.review(namespace)).await?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(right.text(namespace));
        }
    }

    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_asked_for_and_told_as_kubernetes_has_them() {
        let deployments = within("create", "apps", "deployments");
        assert_eq!(deployments.text("h"), "create deployments.apps in namespace h");
        let review = deployments.review("h").spec.resource_attributes.unwrap();
        assert_eq!(review.namespace.as_deref(), Some("h"));
        let namespaces = cluster("create", "", "namespaces");
        assert_eq!(namespaces.text("h"), "create namespaces");
        let review = namespaces.review("h").spec.resource_attributes.unwrap();
        assert_eq!((review.namespace, review.group), (None, None));
        assert_eq!(needed(false, true).len(), 2);
        assert_eq!(needed(true, false), INSTALL);
    }

    #[test]
    fn every_kind_of_the_chart_that_is_always_there_is_asked_for() {
        let chart = include_str!("../../../helm/golden/default.yaml");
        for kind in chart.lines().filter_map(|line| line.strip_prefix("kind: ")) {
            let resource = format!("{}s", kind.to_lowercase());
            let is_asked = |right: &Right| right.verb == "create" && right.resource == resource;
            assert!(INSTALL.iter().any(is_asked), "{kind}");
        }
    }
}
