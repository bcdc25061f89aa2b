//! Tells the program when it was built, and links what an agent at rest runs close together, see `code-order.ld`:
//! the kernel maps code 64 KiB at a time, and what is used seldom is not to be in memory beside what is used
//! always. GNU ld and lld both add such a script to their own.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

const ORDER: &str = "code-order.ld";
/// For builds that are to be the same whenever they are made.
const EPOCH: &str = "SOURCE_DATE_EPOCH";
const DAY_S: u64 = 24 * 60 * 60;

fn main() {
    println!("cargo::rerun-if-changed={ORDER}");
    println!("cargo::rerun-if-env-changed={EPOCH}");
    // The day is enough, and builds of one day are the same.
    println!("cargo::rustc-env=HOLDFAST_BUILT={}", built_s() / DAY_S * DAY_S);
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/{ORDER}");
    }
}

/// In seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the time of the build is what is asked for")]
fn built_s() -> u64 {
    let given = env::var(EPOCH).ok().and_then(|text| text.parse().ok());

    given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    })
}
