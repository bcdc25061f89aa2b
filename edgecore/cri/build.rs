//! Generates the gRPC clients. The messages of CRI come from the crate `cri-api`.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .extern_path(".runtime.v1", "::cri_api::v1")
        .compile_protos(&["../cri-api/proto/runtime_v1.proto"], &["../cri-api/proto"])?;

    tonic_prost_build::configure().build_server(false).build_transport(false).compile_protos(
        &["proto/containerd_events.proto", "proto/containerd_tasks.proto"],
        &["proto"],
    )
}
