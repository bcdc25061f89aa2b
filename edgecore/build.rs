//! Links what an agent at rest runs close together, see `code-order.ld`: the kernel maps code 64 KiB at
//! a time, and what is used seldom is not to be in memory beside what is used always. GNU ld and lld both
//! add such a script to their own.

use std::env;

const ORDER: &str = "code-order.ld";

fn main() {
    println!("cargo::rerun-if-changed={ORDER}");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/{ORDER}");
    }
}
