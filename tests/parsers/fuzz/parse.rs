//! Feeds one of the targets what libFuzzer makes up: `scripts/fuzz` builds and runs it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use parsers::Target;

/// Named by the environment: libFuzzer takes the arguments.
static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("HOLDFAST_TARGET").expect("HOLDFAST_TARGET names a target");

    *parsers::named(&name).expect("HOLDFAST_TARGET is one of parsers::TARGETS")
});

fuzz_target!(|data: &[u8]| {
    if let Some(check) = (TARGET.feed)(data).check {
        check();
    }
});
