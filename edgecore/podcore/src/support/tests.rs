//! Every field of the pod types is listed with what becomes of it; a new one fails here.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, ConfigMapEnvSource, ConfigMapKeySelector, ConfigMapProjection,
    ConfigMapVolumeSource, ContainerPort, DownwardAPIProjection, DownwardAPIVolumeFile,
    DownwardAPIVolumeSource, EmptyDirVolumeSource, EnvFromSource, EnvVar, EnvVarSource,
    EphemeralVolumeSource, FileKeySelector, HostAlias, HostPathVolumeSource, ImageVolumeSource,
    KeyToPath, LocalObjectReference, NFSVolumeSource, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, PodDNSConfig, PodDNSConfigOption, ProjectedVolumeSource,
    ResourceFieldSelector, ResourceRequirements, SeccompProfile, SecretEnvSource,
    SecretKeySelector, SecretProjection, SecretVolumeSource, ServiceAccountTokenProjection, Sysctl,
    Volume, VolumeMount, VolumeProjection,
};
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
    assert!(!found.is_empty());

    found
}

/// What is honoured without a word to the runtime.
const UNTOLD: [&str; 12] = [
    "activeDeadlineSeconds",
    "affinity",
    "imagePullSecrets",
    "livenessProbe",
    "nodeSelector",
    "os",
    "readinessGates",
    "readinessProbe",
    // The API server fills in the other name of the same.
    "serviceAccount",
    "startupProbe",
    "tolerations",
    // The API server adds the volume.
    "automountServiceAccountToken",
];

/// The fields that pods of `tests/golden` have.
fn golden_fields() -> BTreeSet<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.to_string_lossy().ends_with(".pod.json") {
            let pod: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            collect(&pod["spec"], &mut found);
        }
    }

    found
}

fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.keys().cloned());
            fields.values().for_each(|value| collect(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Honoured, refused, and of no concern to a node. What is honoured and the runtime is told of, is in a pod
/// of `tests/golden`.
fn check<T: for<'de> Deserialize<'de>>(honoured: &str, refused: &str, irrelevant: &str) {
    let listed: Vec<_> =
        [honoured, refused, irrelevant].iter().flat_map(|list| list.split_whitespace()).collect();
    let listed_once: BTreeSet<_> = listed.iter().copied().collect();
    assert_eq!(listed.len(), listed_once.len(), "a field is listed twice");
    assert_eq!(listed_once, fields::<T>());
    let golden = golden_fields();
    let is_lacking = |field: &&str| !golden.contains(*field) && !UNTOLD.contains(field);
    let lacking: Vec<_> = honoured.split_whitespace().filter(is_lacking).collect();
    assert_eq!(lacking, [""; 0], "no golden pod has these fields");
}

#[test]
fn every_field_of_the_pod_spec_has_a_fate() {
    check::<PodSpec>(
        "activeDeadlineSeconds affinity automountServiceAccountToken containers dnsConfig dnsPolicy
         enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname hostnameOverride
         imagePullSecrets initContainers nodeName nodeSelector os overhead priority priorityClassName readinessGates resources restartPolicy runtimeClassName
         securityContext serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace subdomain
         terminationGracePeriodSeconds tolerations volumes",
        "resourceClaims",
        "evictionResponders preemptionPolicy schedulerName schedulingGates
         schedulingGroup topologySpreadConstraints",
    );
}

#[test]
fn every_field_of_a_container_has_a_fate() {
    check::<Container>(
        "args command env envFrom image imagePullPolicy livenessProbe name ports readinessProbe resources
         restartPolicy securityContext startupProbe stdin stdinOnce terminationMessagePath
         terminationMessagePolicy tty volumeMounts workingDir",
        "lifecycle restartPolicyRules volumeDevices",
        "resizePolicy",
    );
}

#[test]
fn every_field_of_the_security_contexts_has_a_fate() {
    check::<PodSecurityContext>(
        "appArmorProfile fsGroup fsGroupChangePolicy runAsGroup runAsNonRoot runAsUser seLinuxOptions
         seccompProfile supplementalGroups supplementalGroupsPolicy sysctls",
        "windowsOptions",
        "seLinuxChangePolicy",
    );
    check::<SecurityContext>(
        "allowPrivilegeEscalation appArmorProfile capabilities privileged procMount readOnlyRootFilesystem
         runAsGroup runAsNonRoot runAsUser seLinuxOptions seccompProfile",
        "windowsOptions",
        "",
    );
}

#[test]
fn every_field_of_volumes_has_a_fate() {
    check::<Volume>(
        "configMap downwardAPI emptyDir ephemeral hostPath image name nfs persistentVolumeClaim projected
         secret",
        "awsElasticBlockStore azureDisk azureFile cephfs cinder csi fc flexVolume flocker
         gcePersistentDisk gitRepo glusterfs iscsi
         photonPersistentDisk portworxVolume quobyte rbd scaleIO storageos vsphereVolume",
        "",
    );
    check::<VolumeMount>(
        "mountPath mountPropagation name readOnly recursiveReadOnly subPath subPathExpr",
        "bindMountOptions",
        "",
    );
    check::<ImageVolumeSource>("pullPolicy reference", "", "");
    check::<PersistentVolumeClaimVolumeSource>("claimName readOnly", "", "");
    check::<EphemeralVolumeSource>("", "", "volumeClaimTemplate");
    check::<EmptyDirVolumeSource>("medium sizeLimit", "mode", "");
    check::<NFSVolumeSource>("path readOnly server", "", "");
    check::<HostPathVolumeSource>("path type", "", "");
    check::<ConfigMapVolumeSource>("defaultMode items name optional", "defaultUser", "");
    check::<SecretVolumeSource>("defaultMode items optional secretName", "defaultUser", "");
    check::<DownwardAPIVolumeSource>("defaultMode items", "defaultUser", "");
    check::<DownwardAPIVolumeFile>("fieldRef mode path resourceFieldRef", "user", "");
    check::<KeyToPath>("key mode path", "user", "");
    check::<ProjectedVolumeSource>("defaultMode sources", "defaultUser", "");
    check::<VolumeProjection>(
        "configMap downwardAPI secret serviceAccountToken",
        "clusterTrustBundle podCertificate",
        "",
    );
    check::<ConfigMapProjection>("items name optional", "", "");
    check::<SecretProjection>("items name optional", "", "");
    check::<DownwardAPIProjection>("items", "", "");
    check::<ServiceAccountTokenProjection>("audience expirationSeconds path", "user", "");
}

#[test]
fn every_field_of_the_environment_has_a_fate() {
    check::<EnvVar>("name value valueFrom", "", "");
    check::<EnvVarSource>(
        "configMapKeyRef fieldRef fileKeyRef resourceFieldRef secretKeyRef",
        "",
        "",
    );
    check::<FileKeySelector>("key optional path volumeName", "", "");
    check::<EnvFromSource>("configMapRef prefix secretRef", "", "");
    check::<ConfigMapKeySelector>("key name optional", "", "");
    check::<SecretKeySelector>("key name optional", "", "");
    check::<ConfigMapEnvSource>("name optional", "", "");
    check::<SecretEnvSource>("name optional", "", "");
    // Every version of a field's path that the API server lets pass means the same.
    check::<ObjectFieldSelector>("fieldPath", "", "apiVersion");
    check::<ResourceFieldSelector>("containerName divisor resource", "", "");
}

#[test]
fn every_field_of_the_small_types_has_a_fate() {
    check::<ContainerPort>("containerPort hostIP hostPort name protocol", "", "");
    check::<ResourceRequirements>("limits requests", "claims", "");
    check::<PodDNSConfig>("nameservers options searches", "", "");
    check::<PodDNSConfigOption>("name value", "", "");
    check::<HostAlias>("hostnames ip", "", "");
    check::<SeccompProfile>("localhostProfile type", "", "");
    check::<AppArmorProfile>("localhostProfile type", "", "");
    check::<Capabilities>("add drop", "", "");
    check::<Sysctl>("name value", "", "");
    check::<LocalObjectReference>("name", "", "");
}

fn refused(spec: &Value) -> Option<String> {
    let pod = json!({
        "metadata": { "uid": "u", "namespace": "default", "name": "web" }, "spec": spec,
    });

    refuse(&PodView::parse(pod.to_string().as_bytes()).unwrap()).map(|refusal| refusal.message)
}

/// What is refused of a pod with this in its spec, or in its container `a`.
fn check_refused(in_spec: &Value, in_container: &Value, expected: &str) {
    let mut spec = json!({ "containers": [{ "name": "a", "image": "x" }] });
    for (field, value) in in_spec.as_object().unwrap() {
        spec[field] = value.clone();
    }
    for (field, value) in in_container.as_object().unwrap() {
        spec["containers"][0][field] = value.clone();
    }
    let expected = format!("this node does not support {expected}");
    assert_eq!(refused(&spec), Some(expected), "{spec}");
}

#[test]
fn what_a_pod_may_not_ask_for() {
    for (spec, expected) in [
        (json!({ "resourceClaims": [{ "name": "c" }] }), "resourceClaims"),
        (
            json!({ "securityContext": { "windowsOptions": { "hostProcess": true } } }),
            "securityContext.windowsOptions",
        ),
    ] {
        check_refused(&spec, &json!({}), expected);
    }
}

#[test]
fn what_a_container_may_not_ask_for() {
    for (container, expected) in [
        (json!({ "lifecycle": { "stopSignal": "SIGINT" } }), "lifecycle.stopSignal"),
        (
            json!({ "lifecycle": { "preStop": { "tcpSocket": { "port": 80 } } } }),
            "lifecycle.tcpSocket",
        ),
        (
            json!({ "restartPolicyRules": [{ "action": "RestartAllContainers" }] }),
            "restartPolicyRules of another action than Restart",
        ),
        (json!({ "volumeDevices": [{ "name": "d", "devicePath": "/d" }] }), "volumeDevices"),
        (json!({ "resources": { "claims": [{ "name": "c" }] } }), "resources.claims"),
        (
            json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v", "bindMountOptions": ["noexec"] }] }),
            "bindMountOptions",
        ),
        (
            json!({ "securityContext": { "windowsOptions": { "hostProcess": true } } }),
            "securityContext.windowsOptions",
        ),
    ] {
        check_refused(&json!({}), &container, &format!("a: {expected}"));
    }
}

#[test]
fn what_a_volume_may_not_ask_for() {
    let owned = "volume v: a user of its files";
    let item = json!([{ "key": "k", "path": "p", "user": 7 }]);
    let field = json!([{ "path": "p", "fieldRef": { "fieldPath": "metadata.name" }, "user": 7 }]);
    let projected = |source: Value| json!({ "projected": { "sources": [source] } });
    for (volume, expected) in [
        (json!({ "csi": { "driver": "d" } }), "the kind of volume v"),
        (json!({ "emptyDir": { "medium": "Tape" } }), "volume v: medium Tape"),
        (json!({ "emptyDir": { "mode": 448 } }), "volume v: mode"),
        (projected(json!({ "clusterTrustBundle": { "path": "p" } })), "a source of volume v"),
        (
            projected(json!({ "podCertificate": { "keyType": "ED25519", "signerName": "s" } })),
            "a source of volume v",
        ),
        (json!({ "configMap": { "name": "m", "defaultUser": 7 } }), owned),
        (json!({ "configMap": { "name": "m", "items": item } }), owned),
        (json!({ "secret": { "secretName": "s", "defaultUser": 7 } }), owned),
        (json!({ "secret": { "secretName": "s", "items": item } }), owned),
        (json!({ "downwardAPI": { "defaultUser": 7 } }), owned),
        (json!({ "downwardAPI": { "items": field } }), owned),
        (json!({ "projected": { "defaultUser": 7 } }), owned),
        (projected(json!({ "configMap": { "name": "m", "items": item } })), owned),
        (projected(json!({ "secret": { "name": "s", "items": item } })), owned),
        (projected(json!({ "downwardAPI": { "items": field } })), owned),
        (projected(json!({ "serviceAccountToken": { "path": "p", "user": 7 } })), owned),
    ] {
        let mut volume = volume;
        volume["name"] = json!("v");
        check_refused(&json!({ "volumes": [volume] }), &json!({}), expected);
    }
}

#[test]
fn a_refusal_names_the_fields() {
    let spec = json!({
        "resourceClaims": [{ "name": "c" }],
        "containers": [{ "name": "a", "volumeDevices": [{ "name": "v", "devicePath": "/dev/v" }] }],
        "volumes": [{ "name": "v", "csi": { "driver": "d" } }],
    });

    assert_eq!(
        refused(&spec).unwrap(),
        "this node does not support resourceClaims, the kind of volume v, a: volumeDevices"
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
