//! Who calls, and whether they may: client certificates of the cluster's authority or bearer tokens,
//! then a SubjectAccessReview, by the kubelet's rules (`pkg/kubelet/server/auth.go`).

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use proto::ids::NodeName;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_rustls::rustls;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::server::WebPkiClientVerifier;

use super::Shared;
use crate::pki::PkiError;

/// Where the API server says which authority its callers have.
const AUTHENTICATION: &str = "extension-apiserver-authentication";

/// Within a caller's handshake.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The group of everybody who has proved who they are.
const AUTHENTICATED: &str = "system:authenticated";

/// Why a node's port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The ConfigMap cannot be read.
    #[error("cannot get configmap kube-system/{AUTHENTICATION}")]
    Read(#[source] kube::Error),
    /// The API server takes too long.
    #[error(
        "the API server does not give configmap kube-system/{AUTHENTICATION} within {} s",
        ANSWER_MAX.as_secs()
    )]
    Silent,
    /// It names no authority.
    #[error(
        "configmap kube-system/{AUTHENTICATION} has no usable client-ca-file: the API server needs --client-ca-file"
    )]
    NoAuthority,
    /// No serving certificate.
    #[error("cannot make a serving certificate")]
    Serving(#[source] PkiError),
    /// TLS does not take the certificates.
    #[error("TLS does not take the certificates")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
}

/// The authority of the cluster's callers, PEM: the API server publishes it.
pub(super) async fn callers_authority(client: &Client) -> Result<String, AccessError> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let map = timeout(ANSWER_MAX, maps.get(AUTHENTICATION)).await;
    let map = map.map_err(|_elapsed| AccessError::Silent)?.map_err(AccessError::Read)?;

    map.data.and_then(|mut data| data.remove("client-ca-file")).ok_or(AccessError::NoAuthority)
}

/// TLS of every port: callers may show a certificate of this authority.
pub(super) fn server_tls(
    shared: &Shared,
    authority: &str,
) -> Result<rustls::ServerConfig, AccessError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        let certificate = certificate.map_err(|_| AccessError::NoAuthority)?;
        roots.add(certificate).map_err(tls)?;
    }
    if roots.is_empty() {
        return Err(AccessError::NoAuthority);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(tls)?;
    let names = vec![shared.address.to_string()];
    let (chain, key) = shared.authority.serving(names).map_err(AccessError::Serving)?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];

    Ok(config)
}

fn tls(error: impl std::error::Error + Send + Sync + 'static) -> AccessError {
    AccessError::Tls(Box::new(error))
}

/// The caller that a verified certificate names: common name and organizations.
pub(super) fn caller_of(certificate: &CertificateDer<'_>) -> Option<Caller> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let organizations = subject.iter_organization().filter_map(|group| group.as_str().ok());
    // Token reviews name this group; for certificates a kubelet adds it.
    let groups = organizations.chain([AUTHENTICATED]).map(str::to_owned).collect();

    Some(Caller { user, groups })
}

/// The caller that a bearer token names, as the API server says.
pub(super) async fn review_token(client: &Client, token: &str) -> Option<Caller> {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": { "token": token },
    });
    let reviewed = review_status(client, "authentication.k8s.io/v1/tokenreviews", &review).await;
    // A kubelet calls that unauthorized, too.
    let status = reviewed
        .inspect_err(|error| tracing::warn!(error = %crate::telemetry::chain(error), "a caller cannot be known"))
        .ok()?;
    if status["authenticated"] != true {
        return None;
    }
    let groups = status["user"]["groups"].as_array().into_iter().flatten();

    Some(Caller {
        user: status["user"]["username"].as_str()?.to_owned(),
        groups: groups.filter_map(|group| Some(group.as_str()?.to_owned())).collect(),
    })
}

/// The API server did not say who a caller is or whether it may: it does not answer, or cloudcore may not ask.
#[derive(Debug, thiserror::Error)]
#[error("cannot create {what}")]
pub(super) struct ReviewError {
    /// Group, version and resource.
    what: &'static str,
    #[source]
    source: kube::Error,
}

/// Whether the caller may do this to the node: any of the subresources that the path stands for.
pub(super) async fn is_allowed(
    client: &Client,
    caller: &Caller,
    node: &NodeName,
    method: &Method,
    path: &str,
) -> Result<bool, ReviewError> {
    for subresource in subresources(path) {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": caller.user,
                "groups": caller.groups,
                "resourceAttributes": {
                    "verb": verb(method), "resource": "nodes", "version": "v1",
                    "subresource": subresource, "name": node.as_str(),
                },
            },
        });
        let what = "authorization.k8s.io/v1/subjectaccessreviews";
        let status = review_status(client, what, &review).await?;
        // An evaluation error beside a refusal is none for a kubelet either: roles may be missing.
        if status["allowed"] == true {
            return Ok(true);
        }
    }

    Ok(false)
}

async fn review_status(
    client: &Client,
    what: &'static str,
    review: &Value,
) -> Result<Value, ReviewError> {
    let failed = |source| ReviewError { what, source };
    let request = Request::post(format!("/apis/{what}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(review.to_string().into_bytes())
        .map_err(|error| failed(kube::Error::HttpError(error)))?;
    let mut review = client.request::<Value>(request).await.map_err(failed)?;

    Ok(review["status"].take())
}

/// The kubelet leaves the verb of other methods empty, which no sensible rule allows.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Fine-grained ones first (KEP-2862), then what covers everything. Only whole first parts count:
/// anything unusual needs the right to everything.
fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.strip_prefix('/').and_then(|rest| rest.split('/').next());
    match first.unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        "statusz" => &["statusz"],
        "flagz" => &["configz"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        "pods" | "runningpods" => &["pods", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_the_kubelets_subresources() {
        for (path, expected) in [
            ("/containerLogs/ns/pod/c", "proxy"),
            ("/exec/ns/pod/c", "proxy"),
            ("/metrics/cadvisor", "metrics"),
            ("/stats/summary", "stats"),
            ("/healthz", "healthz,proxy"),
            ("/pods", "pods,proxy"),
            ("/runningpods/", "pods,proxy"),
            ("/logs/", "log"),
            ("/checkpoint/ns/pod/c", "checkpoint"),
            ("/statusz", "statusz"),
            ("/flagz", "configz"),
            ("/statsx", "proxy"),
            ("//stats", "proxy"),
            ("/", "proxy"),
        ] {
            assert_eq!(subresources(path).join(","), expected, "{path}");
        }
    }

    #[test]
    fn who_cannot_ask_does_not_say_no() {
        use crate::hub::tests::api::Api;

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let caller = Caller { user: "u".to_owned(), groups: Vec::new() };
            let node = NodeName::new("edge").unwrap();
            let ask = async |client: &Client| {
                is_allowed(client, &caller, &node, &Method::GET, "/stats/summary").await
            };
            // This one keeps what it is sent as it is: it neither allows nor fails.
            let api = Api::start().await;
            assert!(!ask(&api.client).await.unwrap());
            let away = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
            let error = ask(&Client::try_from(away).unwrap()).await.unwrap_err();
            let expected = "cannot create authorization.k8s.io/v1/subjectaccessreviews";
            assert_eq!(error.to_string(), expected);
        });
    }

    #[test]
    fn only_known_methods_have_verbs() {
        for (method, expected) in [
            (Method::GET, "get"),
            (Method::POST, "create"),
            (Method::DELETE, "delete"),
            (Method::HEAD, ""),
            (Method::OPTIONS, ""),
        ] {
            assert_eq!(verb(&method), expected, "{method}");
        }
    }

    #[test]
    fn callers_by_certificate_are_authenticated() {
        let mut params = rcgen::CertificateParams::default();
        let name = &mut params.distinguished_name;
        name.push(rcgen::DnType::CommonName, "apiserver");
        name.push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().unwrap();
        let caller = caller_of(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!(caller.user, "apiserver");
        assert_eq!(caller.groups, ["system:masters", "system:authenticated"]);
    }
}
