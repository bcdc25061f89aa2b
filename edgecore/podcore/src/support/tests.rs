//! Every field of the pod types is listed with what becomes of it; a new one fails here.

use std::collections::BTreeSet;

use serde::de::value::Error as ValueError;
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Value, json};

use super::*;

/// Learns the field names of a struct from its own Deserialize.
struct Fields<'a>(&'a mut BTreeSet<&'static str>);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = ValueError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ValueError> {
        Err(ValueError::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, ValueError> {
        self.0.extend(fields);
        Err(ValueError::custom("only the names are wanted"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: for<'de> Deserialize<'de>>() -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    assert!(T::deserialize(Fields(&mut found)).is_err());
    assert!(found.len() > 3, "{found:?}");

    found
}

/// Honoured, refused, and of no concern to a node.
fn check<T: for<'de> Deserialize<'de>>(honoured: &str, refused: &str, irrelevant: &str) {
    let listed: Vec<_> =
        [honoured, refused, irrelevant].iter().flat_map(|list| list.split_whitespace()).collect();
    let listed_once: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!(listed.len(), listed_once.len(), "a field is listed twice");
    assert_eq!(listed_once, fields::<T>());
}

#[test]
fn every_field_of_the_pod_spec_has_a_fate() {
    check::<PodSpec>(
        "activeDeadlineSeconds automountServiceAccountToken containers dnsConfig dnsPolicy
         enableServiceLinks hostAliases hostIPC hostNetwork hostPID hostname hostnameOverride
         imagePullSecrets initContainers nodeName overhead priority priorityClassName restartPolicy securityContext
         serviceAccount serviceAccountName shareProcessNamespace subdomain
         terminationGracePeriodSeconds volumes",
        "ephemeralContainers hostUsers os readinessGates resourceClaims resources runtimeClassName
         setHostnameAsFQDN",
        "affinity evictionResponders nodeSelector preemptionPolicy schedulerName schedulingGates
         schedulingGroup tolerations topologySpreadConstraints",
    );
}

#[test]
fn every_field_of_a_container_has_a_fate() {
    check::<Container>(
        "args command env envFrom image imagePullPolicy name ports resources securityContext stdin
         stdinOnce terminationMessagePath terminationMessagePolicy tty volumeMounts workingDir",
        "lifecycle livenessProbe readinessProbe restartPolicy restartPolicyRules startupProbe
         volumeDevices",
        "resizePolicy",
    );
}

#[test]
fn every_field_of_the_security_contexts_has_a_fate() {
    check::<PodSecurityContext>(
        "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seccompProfile
         supplementalGroups sysctls",
        "seLinuxOptions supplementalGroupsPolicy windowsOptions",
        "seLinuxChangePolicy",
    );
    check::<SecurityContext>(
        "allowPrivilegeEscalation appArmorProfile capabilities privileged readOnlyRootFilesystem runAsGroup
         runAsNonRoot runAsUser seccompProfile",
        "procMount seLinuxOptions windowsOptions",
        "",
    );
}

fn refused(spec: &Value) -> Option<String> {
    let pod = json!({
        "metadata": { "uid": "u", "namespace": "default", "name": "web" }, "spec": spec,
    });

    refuse(&PodView::parse(pod.to_string().as_bytes()).unwrap())
}

#[test]
fn a_refusal_names_the_fields() {
    let probe = json!({ "httpGet": { "port": 80 } });
    let spec = json!({
        "runtimeClassName": "gvisor",
        "containers": [{ "name": "a", "livenessProbe": probe }],
        "volumes": [{ "name": "v", "nfs": { "server": "s", "path": "/" } }],
    });

    assert_eq!(
        refused(&spec).unwrap(),
        "this node does not support runtimeClassName, the kind of volume v, a: livenessProbe"
    );
}

#[test]
fn what_admission_adds_to_every_pod_is_taken() {
    let spec = json!({
        "containers": [{ "name": "a", "image": "x", "resources": {},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "volumeMounts": [{ "name": "t", "mountPath": "/t", "readOnly": true,
                "recursiveReadOnly": "Disabled" }],
            "securityContext": { "procMount": "Default", "appArmorProfile": { "type": "RuntimeDefault" } } }],
        "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true,
        "preemptionPolicy": "PreemptLowerPriority", "priority": 0, "serviceAccount": "default",
        "volumes": [{ "name": "t", "projected": { "sources": [
            { "serviceAccountToken": { "path": "token" } } ] } }],
    });

    assert_eq!(refused(&spec), None);
}
