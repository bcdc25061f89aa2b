//! What the API server adds to a pod that says nothing (`SetObjectDefaults_Pod`): for pods that never
//! pass through it.

use serde_json::{Map, Value, json};

/// Fills in what `pod` leaves out, and writes numbers as the quantities that they mean.
pub fn apply(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let hosts = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers"] {
        for container in items(spec, list) {
            of_container(container, hosts);
        }
    }
    for volume in items(spec, "volumes") {
        of_volume(volume);
    }
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    fill(spec, "securityContext", json!({}));
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "schedulerName", "default-scheduler");
    fill(spec, "enableServiceLinks", true);
    quantities(spec, "overhead");
}

fn of_container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = pull_policy(image);
    fill(container, "imagePullPolicy", policy);
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    fill(container, "resources", json!({}));
    if let Some(resources) = object(container, "resources") {
        quantities(resources, "limits");
        quantities(resources, "requests");
        requests_from_limits(resources);
    }
    for port in items(container, "ports") {
        fill(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            fill(port, "hostPort", number);
        }
    }
    for variable in items(container, "env") {
        if let Some(source) = object(variable, "valueFrom") {
            of_field(source);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = object(container, probe) else { continue };
        of_handler(probe);
        for (field, value) in [
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ] {
            fill(probe, field, value);
        }
    }
    if let Some(lifecycle) = object(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = object(lifecycle, hook) {
                of_handler(hook);
            }
        }
    }
}

/// `Always` for what moves: the tag `latest`, or none.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, d)| (name, Some(d)));
    let tag = name.rsplit_once(':').map(|(_, tag)| tag).filter(|tag| !tag.contains('/'));

    match (tag, digest) {
        (Some("latest"), _) | (None, None) => "Always",
        (Some(_), _) | (None, Some(_)) => "IfNotPresent",
    }
}

fn requests_from_limits(resources: &mut Map<String, Value>) {
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    fill(resources, "requests", json!({}));
    let Some(requests) = object(resources, "requests") else { return };
    for (name, limit) in limits {
        requests.entry(name).or_insert(limit);
    }
}

fn of_handler(handler: &mut Map<String, Value>) {
    if let Some(http) = object(handler, "httpGet") {
        fill(http, "path", "/");
        fill(http, "scheme", "HTTP");
    }
    if let Some(grpc) = object(handler, "grpc") {
        grpc.entry("service").or_insert_with(|| json!(""));
    }
}

fn of_volume(volume: &mut Map<String, Value>) {
    if volume.iter().all(|(key, value)| key == "name" || value.is_null()) {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = object(volume, source) {
            fill(source, "defaultMode", 0o644);
        }
    }
    if let Some(files) = object(volume, "downwardAPI") {
        of_files(files);
    }
    if let Some(projected) = object(volume, "projected") {
        for source in items(projected, "sources") {
            if let Some(files) = object(source, "downwardAPI") {
                of_files(files);
            }
            if let Some(token) = object(source, "serviceAccountToken") {
                fill(token, "expirationSeconds", 3600);
            }
        }
    }
    if let Some(path) = object(volume, "hostPath") {
        path.entry("type").or_insert_with(|| json!(""));
    }
    if let Some(dir) = object(volume, "emptyDir") {
        quantity(dir, "sizeLimit");
    }
    if let Some(disk) = object(volume, "iscsi") {
        fill(disk, "iscsiInterface", "default");
    }
    if let Some(image) = object(volume, "image") {
        let reference = image.get("reference").and_then(Value::as_str).unwrap_or_default();
        let policy = pull_policy(reference);
        fill(image, "pullPolicy", policy);
    }
}

fn of_files(source: &mut Map<String, Value>) {
    for file in items(source, "items") {
        of_field(file);
    }
}

/// A reference to a field of the pod or of a container's resources.
fn of_field(holder: &mut Map<String, Value>) {
    if let Some(field) = object(holder, "fieldRef") {
        fill(field, "apiVersion", "v1");
    }
    if let Some(resource) = object(holder, "resourceFieldRef") {
        fill(resource, "divisor", "0");
        quantity(resource, "divisor");
    }
}

/// Sets a field that is not there, or says nothing: null, empty or zero.
fn fill(fields: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    let says_nothing = match fields.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0) && may_not_be_zero(name),
        Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => false,
    };
    if says_nothing {
        fields.insert(name.to_owned(), value.into());
    }
}

/// Numbers that the API does not tell from none (no pointers).
fn may_not_be_zero(name: &str) -> bool {
    matches!(
        name,
        "timeoutSeconds" | "periodSeconds" | "successThreshold" | "failureThreshold" | "hostPort"
    )
}

fn object<'a>(
    fields: &'a mut Map<String, Value>,
    name: &str,
) -> Option<&'a mut Map<String, Value>> {
    fields.get_mut(name)?.as_object_mut()
}

fn items<'a>(
    fields: &'a mut Map<String, Value>,
    name: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let items = fields.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten();

    items.filter_map(Value::as_object_mut)
}

fn quantities(fields: &mut Map<String, Value>, name: &str) {
    let Some(amounts) = object(fields, name) else { return };
    for amount in amounts.values_mut() {
        as_text(amount);
    }
}

fn quantity(fields: &mut Map<String, Value>, name: &str) {
    if let Some(amount) = fields.get_mut(name) {
        as_text(amount);
    }
}

/// YAML's `cpu: 1` is the quantity "1".
fn as_text(amount: &mut Value) {
    if amount.is_number() {
        *amount = Value::String(amount.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `defaults/cases.json` holds pods as sent and as a real API server gave them back; the system test
    /// `an_api_server_defaults_pods_as_we_do` asks one again.
    #[test]
    fn a_pod_is_completed_as_the_api_server_does() {
        let cases: Value = serde_json::from_str(include_str!("defaults/cases.json")).unwrap();
        for case in cases.as_array().unwrap() {
            let mut pod = json!({ "spec": case["sent"] });
            apply(&mut pod);
            assert_eq!(pod["spec"], case["given"], "{}", case["what"]);
        }
    }

    #[test]
    fn what_moves_is_pulled_always() {
        let check = |image, expected| assert_eq!(pull_policy(image), expected, "{image}");
        check("a", "Always");
        check("host:5000/a", "Always");
        check("host:5000/a:1", "IfNotPresent");
        check("a:latest@sha256:00", "Always");
        check("a@sha256:00", "IfNotPresent");
    }
}
