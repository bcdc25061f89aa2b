//! The help of every verb, as it was last looked at. `UPDATE_GOLDEN=1` writes it anew.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use edgeadm::args::Args;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help")
}

/// Compares the help of `command` and of all verbs below it; notes the files.
fn check(name: &str, command: &mut clap::Command, seen: &mut BTreeSet<String>) {
    let file = format!("{name}.txt");
    let path = folder().join(&file);
    let text = command.render_long_help().to_string();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{} differs; UPDATE_GOLDEN=1 writes it", path.display());
    seen.insert(file);
    for verb in command.get_subcommands_mut().filter(|verb| verb.get_name() != "help") {
        check(&format!("{name}-{}", verb.get_name()), verb, seen);
    }
}

#[test]
fn help_texts_are_as_they_were_looked_at() {
    let (mut all, mut seen) = (Args::definition(), BTreeSet::new());
    all.build();
    check("edgeadm", &mut all, &mut seen);
    let files = fs::read_dir(folder()).unwrap();
    let files: BTreeSet<_> =
        files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, seen, "files of verbs that are not");
}
