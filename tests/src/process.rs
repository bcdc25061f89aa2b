//! The project's scripts and programs as processes that do not outlive the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use tokio::process::{Child, Command};

/// The top of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new("/"))
}

/// Where the programs under test are: `$HOLDFAST_BIN`, else the release folder of the checkout.
pub fn program(name: &str) -> PathBuf {
    std::env::var_os("HOLDFAST_BIN")
        .map_or_else(|| checkout().join("target/release"), PathBuf::from)
        .join(name)
}

/// Runs `scripts/NAME ARGS` and returns what it printed.
pub async fn script(name: &str, args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new(checkout().join("scripts").join(name));
    command.args(args).envs(env.iter().copied());

    output(command).await
}

/// As [`script`], for `Drop`, where nothing can be awaited and an error can only be told.
pub fn script_now(name: &str, args: &[&str]) {
    let outcome = std::process::Command::new(checkout().join("scripts").join(name))
        .args(args)
        .stdout(Stdio::null())
        .status();
    #[expect(clippy::print_stderr, reason = "a test's Drop has no other way to tell")]
    if !outcome.as_ref().is_ok_and(std::process::ExitStatus::success) {
        eprintln!("scripts/{name} {args:?}: {outcome:?}");
    }
}

/// Runs `command` to its end; its errors are part of the error.
pub async fn output(mut command: Command) -> Result<String> {
    let shown = format!("{:?}", command.as_std());
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot run {shown}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{shown}: {}\n{stderr}", output.status);

    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program that runs beside the test, its output in a file. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; both its outputs are appended to `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let shown = format!("{:?}", command.as_std());
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;

        Ok(Self { child, log })
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What the program has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("cannot kill the process")
    }
}
