//! As much of an API server as the hub needs: objects by path, created once, replaced by version.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

/// Serves until it is dropped.
pub(crate) struct Api {
    objects: Objects,
    pub(crate) client: kube::Client,
    _server: JoinSet<()>,
}

impl Api {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let objects = Objects::default();
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&objects)));

        Self { objects, client, _server: server }
    }

    pub(crate) fn put(&self, path: &str, object: Value) {
        self.objects.lock().unwrap().insert(path.to_owned(), object);
    }

    /// What a POST to `path` is answered with, as reviews are.
    pub(crate) fn answer(&self, path: &str, answer: Value) {
        self.put(&format!("POST {path}"), answer);
    }

    /// POSTs to `path` are answered with an error.
    pub(crate) fn refuse(&self, path: &str, code: u16) {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "", "reason": "",
            "code": code,
        });
        self.answer(path, status);
    }

    /// No longer.
    pub(crate) fn accept(&self, path: &str) {
        self.objects.lock().unwrap().remove(&format!("POST {path}"));
    }

    /// Makes it the API server of the cluster with this UID.
    pub(crate) fn name_cluster(&self, uid: &str) {
        let metadata = json!({ "name": "kube-system", "uid": uid });
        self.put("/api/v1/namespaces/kube-system", json!({ "metadata": metadata }));
    }

    /// The object there.
    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(path).cloned()
    }

    /// The objects whose paths begin with this.
    pub(crate) fn under(&self, path: &str) -> Vec<Value> {
        let objects = self.objects.lock().unwrap();

        objects
            .iter()
            .filter(|(key, _)| key.starts_with(path))
            .map(|(_, value)| value.clone())
            .collect()
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.objects.lock().unwrap().contains_key(path)
    }
}

async fn serve(listener: TcpListener, objects: Objects) {
    let mut connections = JoinSet::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let objects = Arc::clone(&objects);
        connections.spawn(async move {
            let service = service_fn(|request| answer(request, Arc::clone(&objects)));
            drop(http1::Builder::new().serve_connection(TokioIo::new(socket), service).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    objects: Objects,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let (status, value) = decide(&method, path, &body, &mut objects.lock().unwrap());
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())));
    *answer.status_mut() = status;

    Ok(answer)
}

fn decide(
    method: &Method,
    path: String,
    body: &[u8],
    objects: &mut BTreeMap<String, Value>,
) -> (StatusCode, Value) {
    let refuse = |status: StatusCode| {
        let reason = if status == StatusCode::NOT_FOUND { "NotFound" } else { "Conflict" };
        let status_object = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "message": status.to_string(), "reason": reason, "code": status.as_u16(),
        });
        (status, status_object)
    };
    let mut sent: Value = serde_json::from_slice(body).unwrap_or_default();
    let version =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    match *method {
        Method::GET => match objects.get(&path) {
            Some(object) => (StatusCode::OK, object.clone()),
            None => refuse(StatusCode::NOT_FOUND),
        },
        Method::POST => {
            if let Some(answer) = objects.get(&format!("POST {path}")) {
                let code = answer["code"].as_u64().and_then(|code| u16::try_from(code).ok());
                let status = code.and_then(|code| StatusCode::from_u16(code).ok());
                return (status.unwrap_or(StatusCode::CREATED), answer.clone());
            }
            let path = format!("{path}/{}", sent["metadata"]["name"].as_str().unwrap_or_default());
            if objects.contains_key(&path) {
                return refuse(StatusCode::CONFLICT);
            }
            sent["metadata"]["resourceVersion"] = json!("1");
            objects.insert(path, sent.clone());
            (StatusCode::CREATED, sent)
        }
        Method::PUT => {
            let Some(kept) = objects.get(&path) else { return refuse(StatusCode::NOT_FOUND) };
            if version(kept) != version(&sent) {
                return refuse(StatusCode::CONFLICT);
            }
            let next = version(kept).unwrap().parse::<u64>().unwrap() + 1;
            sent["metadata"]["resourceVersion"] = json!(next.to_string());
            objects.insert(path, sent.clone());
            (StatusCode::OK, sent)
        }
        Method::DELETE => match objects.remove(&path) {
            Some(object) => (StatusCode::OK, object),
            None => refuse(StatusCode::NOT_FOUND),
        },
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED),
    }
}
