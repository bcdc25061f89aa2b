//! What the program knows of itself: version, completions of shells, manual pages.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use crate::args::Args;
use crate::args::text::{CompletionArgs, ManArgs, VersionArgs};
use crate::output::{self, Answer};
use crate::ui;

/// The version of a build.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    #[serde(rename = "version")]
    own: &'static str,
    /// What the agent says that its kubelet is.
    kubelet: &'static str,
    platform: String,
}

impl Answer for Version {
    fn text(&self) -> String {
        format!("edgeadm {} ({})", self.own, self.platform)
    }
}

/// Prints the version.
pub fn version(args: &VersionArgs) {
    let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
    let version = Version {
        own: env!("CARGO_PKG_VERSION"),
        kubelet: edgecore::node::facts::KUBELET_VERSION,
        platform,
    };
    output::show(args.output.output, &version);
}

/// Prints what a shell needs.
pub fn completion(args: &CompletionArgs) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::definition(), "edgeadm", &mut script);
    ui::answer(String::from_utf8_lossy(&script).trim_end());
}

/// Writes `edgeadm.1`, and a page for each verb.
pub fn man(args: &ManArgs) -> io::Result<()> {
    fs::create_dir_all(&args.dir)?;
    let mut all = Args::definition();
    all.build();

    page(&args.dir, "edgeadm", &all)
}

fn page(dir: &Path, name: &str, command: &clap::Command) -> io::Result<()> {
    let mut text = Vec::new();
    // clap leaves lives of what it reads to the program: these few pages live as long as that.
    let title: &'static str = String::leak(name.to_owned());
    clap_mangen::Man::new(command.clone().name(title)).render(&mut text)?;
    fs::write(dir.join(format!("{name}.1")), text)?;
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        page(dir, &format!("{name}-{}", verb.get_name()), verb)?;
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { dir: dir.path().join("man1") }).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join("man1").join(name)).unwrap();

        assert!(read("edgeadm.1").contains(".TH edgeadm"));
        assert!(read("edgeadm-token-create.1").contains("\\-\\-single\\-use"));
    }
}
