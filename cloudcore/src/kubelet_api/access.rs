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
    pub(super) uid: String,
    pub(super) groups: Vec<String>,
    /// What else the API server knows of it, as it says it: authorizers may go by that.
    pub(super) extra: Value,
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
    let (chain, key) = shared.authority.now().serving(names).map_err(AccessError::Serving)?;
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

    Some(Caller { user, uid: String::new(), groups, extra: Value::Null })
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
    let user = &status["user"];
    let groups = user["groups"].as_array().into_iter().flatten();

    Some(Caller {
        user: user["username"].as_str()?.to_owned(),
        uid: user["uid"].as_str().unwrap_or_default().to_owned(),
        groups: groups.filter_map(|group| Some(group.as_str()?.to_owned())).collect(),
        extra: user["extra"].clone(),
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

/// What somebody asks for.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) caller: &'a Caller,
    pub(super) node: &'a NodeName,
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
}

impl Ask<'_> {
    /// The specs of the reviews of which any has to say yes.
    pub(super) fn reviews(&self) -> impl Iterator<Item = Value> {
        let Caller { user, uid, groups, extra } = self.caller;

        subresources(self.path).iter().map(move |subresource| {
            json!({
                "user": user, "uid": uid, "groups": groups, "extra": extra,
                "resourceAttributes": {
                    "verb": verb(self.method), "resource": "nodes", "version": "v1",
                    "subresource": subresource, "name": self.node.as_str(),
                },
            })
        })
    }
}

/// As a kubelet says it, and of which node.
impl std::fmt::Display for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (user, verb, node) = (&self.caller.user, verb(self.method), self.node);
        let subresources = subresources(self.path).join(" ");

        write!(
            f,
            "user={user}, verb={verb}, resource=nodes, subresource(s)=[{subresources}], node={node}"
        )
    }
}

/// What the API server says to a review of access.
pub(super) async fn review_access(client: &Client, spec: &Value) -> Result<bool, ReviewError> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec,
    });
    let status =
        review_status(client, "authorization.k8s.io/v1/subjectaccessreviews", &review).await?;

    // An evaluation error beside a refusal is none for a kubelet either: roles may be missing.
    Ok(status["allowed"] == true)
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

    fn caller() -> Caller {
        Caller {
            user: "u".to_owned(),
            uid: "1".to_owned(),
            groups: vec!["g".to_owned()],
            extra: json!({ "scopes": ["few"] }),
        }
    }

    #[test]
    fn who_cannot_ask_does_not_say_no() {
        use crate::hub::tests::api::Api;

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ask = async |client: &Client| review_access(client, &json!({})).await;
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
    fn authorizers_are_told_all_that_is_known_of_a_caller() {
        let (caller, node) = (caller(), NodeName::new("edge").unwrap());
        let ask = Ask { caller: &caller, node: &node, method: &Method::GET, path: "/pods" };
        let expected = |subresource: &str| {
            json!({
                "user": "u", "uid": "1", "groups": ["g"], "extra": { "scopes": ["few"] },
                "resourceAttributes": {
                    "verb": "get", "resource": "nodes", "version": "v1",
                    "subresource": subresource, "name": "edge",
                },
            })
        };
        assert_eq!(ask.reviews().collect::<Vec<_>>(), [expected("pods"), expected("proxy")]);
        let said = "user=u, verb=get, resource=nodes, subresource(s)=[pods proxy], node=edge";
        assert_eq!(ask.to_string(), said);
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
