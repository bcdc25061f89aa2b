//! Generates the messages of the Container Runtime Interface, without clients.

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=proto/runtime_v1.proto");

    prost_build::Config::new()
        .btree_map(["."])
        // It holds passwords; lib.rs writes the Debug that leaves them out.
        .skip_debug(["runtime.v1.AuthConfig"])
        .compile_protos(&["proto/runtime_v1.proto"], &["proto"])
}
