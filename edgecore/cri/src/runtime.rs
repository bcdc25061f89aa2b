//! The client of the runtime: where its socket is, how long it may take, and its calls by subject.
//!
//! Every call is boxed: its future holds the whole request and tonic's layers, up to 16 KiB, which
//! would otherwise be part of each task that may ever make the call.

mod containers;
mod images;
mod sandboxes;
mod stats;
mod streams;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::error::CriError;
use crate::grpc::runtime::image_service_client::ImageServiceClient;
use crate::grpc::runtime::runtime_service_client::RuntimeServiceClient;
use crate::version::RuntimeVersion;

/// Longest answer taken: what gRPC runtimes themselves allow. A list of 500 pods with long
/// annotations is about 2 MiB.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much of one answer, and of all answers together, may be on the way unread. Small: a socket on
/// the same machine has no latency to hide.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Calls that may wait for the connection. More than the pods of a node at once; further callers
/// wait their turn (backpressure).
const CALLS_WAITING_MAX: usize = 128;

/// A socket on the same machine is accepted at once or not at all.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Reads of what the runtime holds in memory. Slower than this on any machine means that it hangs;
/// as long as the cloud waits before it calls the runtime of a node unhealthy.
const READ_DEADLINE: Duration = Duration::from_secs(30);

/// Changes to one container or image. What the kubelet grants by default.
const CHANGE_DEADLINE: Duration = Duration::from_mins(2);

/// A sandbox may need its network set up by slow plugins: twice the others, as the kubelet grants.
const RUN_SANDBOX_DEADLINE: Duration = Duration::from_mins(4);

/// 2 GiB over 5 Mbit/s take 57 minutes. A hanging pull is cancelled by dropping the call.
const PULL_DEADLINE: Duration = Duration::from_hours(1);

/// The interface version sent with `Version`; runtimes ignore it.
const INTERFACE_VERSION: &str = "0.1.0";

/// Why an endpoint cannot be a runtime's.
#[derive(Debug, thiserror::Error)]
#[error("{endpoint:?} is not a runtime's endpoint: write unix:///PATH/TO/SOCKET")]
pub struct EndpointError {
    /// What was given.
    pub endpoint: String,
}

/// A client of the runtime at one socket. Cheap to clone; all clones share one connection, which is
/// made at the first call and made anew when the runtime was restarted.
#[derive(Clone, Debug)]
pub struct Runtime {
    channel: Channel,
    socket: Arc<str>,
}

impl Runtime {
    /// A client for `endpoint`: `unix:///path` or a bare absolute path. Connects at the first call,
    /// within the tokio runtime this is called from.
    pub fn new(endpoint: &str) -> Result<Self, EndpointError> {
        let refused = || EndpointError { endpoint: endpoint.to_owned() };
        let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !socket.starts_with('/') {
            return Err(refused());
        }
        let channel = Endpoint::from_shared(format!("unix://{socket}"))
            .map_err(|_| refused())?
            .connect_timeout(CONNECT_DEADLINE)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .buffer_size(CALLS_WAITING_MAX)
            .connect_lazy();

        Ok(Self { channel, socket: socket.into() })
    }

    /// Path of the socket.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// Which runtime answers; an error says what to do if none does, or one that is too old.
    pub async fn version(&self) -> Result<RuntimeVersion, CriError> {
        let request = v1::VersionRequest { version: INTERFACE_VERSION.to_owned() };
        let answer = Box::pin(self.runtime().version(within(READ_DEADLINE, request))).await;
        let answer = match self.answered(answer, || "ask the runtime for its version".to_owned()) {
            Err(error) if error.is_unimplemented() => {
                return Err(CriError::NoCriV1 { socket: self.socket.to_string() });
            }
            other => other?,
        };
        let version = RuntimeVersion { name: answer.runtime_name, version: answer.runtime_version };

        version.check(&self.socket)
    }

    /// Whether the runtime and its network are ready.
    pub async fn status(&self) -> Result<v1::StatusResponse, CriError> {
        let request = v1::StatusRequest { verbose: false };
        let answer = Box::pin(self.runtime().status(within(READ_DEADLINE, request))).await;

        self.answered(answer, || "ask the runtime for its status".to_owned())
    }

    /// The image that sandboxes are made of; `None` from runtimes that do not say. containerd says it in
    /// its own words (`info.config` of a verbose status), CRI-O and containerd 2 pin the image instead.
    pub async fn sandbox_image(&self) -> Result<Option<String>, CriError> {
        let config = self.config().await?;

        Ok(config["sandboxImage"].as_str().map(str::to_owned))
    }

    /// The folder of CNI configurations; `None` from runtimes that do not say.
    pub async fn cni_dir(&self) -> Result<Option<String>, CriError> {
        let config = self.config().await?;

        Ok(config["cni"]["confDir"].as_str().map(str::to_owned))
    }

    /// What the runtime says of its configuration, null if nothing.
    async fn config(&self) -> Result<serde_json::Value, CriError> {
        let request = v1::StatusRequest { verbose: true };
        let answer = Box::pin(self.runtime().status(within(READ_DEADLINE, request))).await;
        let answer =
            self.answered(answer, || "ask the runtime for its configuration".to_owned())?;
        let config = answer.info.get("config");

        Ok(config.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
    }

    /// The cgroup driver the runtime is configured for; `None` from runtimes that cannot say
    /// (containerd before 2.0).
    pub async fn cgroup_driver(&self) -> Result<Option<v1::CgroupDriver>, CriError> {
        let request = v1::RuntimeConfigRequest {};
        let answer = Box::pin(self.runtime().runtime_config(within(READ_DEADLINE, request))).await;
        match self.answered(answer, || "ask the runtime for its cgroup driver".to_owned()) {
            Ok(answer) => Ok(answer.linux.map(|linux| linux.cgroup_driver())),
            Err(error) if error.is_unimplemented() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The message of an answer, or the error that says what `attempted` was.
    fn answered<T>(
        &self,
        answer: Result<Response<T>, Status>,
        attempted: impl FnOnce() -> String,
    ) -> Result<T, CriError> {
        match answer {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(CriError::from_status(attempted(), &self.socket, &status)),
        }
    }
}

/// A request that both the runtime and the client give up after `deadline`.
fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);

    request
}

/// A field that the interface says is always there.
fn required<T>(
    field: Option<T>,
    missing: &'static str,
    attempted: impl FnOnce() -> String,
) -> Result<T, CriError> {
    field.ok_or_else(|| CriError::Incomplete { attempted: attempted(), missing })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn an_endpoint_is_a_unix_socket() {
        let rt = runtime();
        let _entered = rt.enter();
        for taken in ["unix:///run/containerd/containerd.sock", "/run/crio/crio.sock"] {
            assert!(Runtime::new(taken).is_ok(), "{taken}");
        }
        for refused in ["", "tcp://127.0.0.1:1", "run/x.sock", "unix://run/x.sock", "http://x/"] {
            let error = Runtime::new(refused).unwrap_err().to_string();
            assert!(error.contains("unix:///PATH/TO/SOCKET"), "{error}");
        }
    }

    #[test]
    fn no_runtime_at_the_socket_is_said_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("none.sock");
        let error = runtime().block_on(async {
            let client = Runtime::new(socket.to_str().unwrap()).unwrap();
            client.version().await.unwrap_err()
        });

        let text = error.to_string();
        assert!(error.is_unavailable() && !error.is_not_found(), "{text}");
        assert!(text.contains("none.sock") && text.contains("runtimeEndpoint"), "{text}");
    }

    #[test]
    fn something_else_at_the_socket_is_no_answer() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("mute.sock");
        let error = runtime().block_on(async {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let client = Runtime::new(socket.to_str().unwrap()).unwrap();
            let close_all = async {
                loop {
                    drop(listener.accept().await);
                }
            };
            tokio::select! {
                error = client.version() => error.unwrap_err(),
                () = close_all => unreachable!(),
            }
        });

        assert!(matches!(error, CriError::NoAnswer { .. }), "{error:?}");
        assert!(error.is_unavailable());
    }
}
