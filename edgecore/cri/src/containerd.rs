//! What requests to containerd's own services carry, which are served at the socket of CRI.

use tonic::Request;

/// The namespace in which its CRI plugin keeps everything.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// Carries the namespace with a request.
const NAMESPACE_HEADER: &str = "containerd-namespace";

/// The request, about what CRI keeps.
pub(crate) fn in_namespace<T>(mut request: Request<T>) -> Request<T> {
    request.metadata_mut().insert(
        NAMESPACE_HEADER,
        NAMESPACE.parse().expect("the constant holds header characters only"),
    );

    request
}
