//! Generates the message types of the link from `frames.proto`.

use std::io;

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=frames.proto");

    prost_build::Config::new().bytes(["."]).compile_protos(&["frames.proto"], &["."])
}
