//! The only code of the product that starts a program: helm, by this name and with arguments that no shell
//! sees. What installs the chart has to be Helm itself, or `helm upgrade` could not take over from it.

use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};

use edgecore::blocking;

/// Found as a shell finds it, on `PATH`.
const HELM: &str = "helm";

/// Why helm did not do it.
#[derive(Debug, thiserror::Error)]
pub enum HelmError {
    /// There is no helm.
    #[error(
        "there is no helm on PATH, which installs the chart: take it from your distribution's packages or from \
         https://helm.sh/docs/intro/install, or, where you have helm, install the chart helm/holdfast by hand"
    )]
    Missing,
    /// It cannot be started.
    #[error("cannot start helm")]
    Start(#[source] io::Error),
    /// It said why on stderr.
    #[error("helm failed ({0}); above it says why")]
    Failed(String),
}

/// Runs helm to its end. What it says on stderr goes to ours; what it answers is of no use to us.
pub async fn helm(arguments: Vec<OsString>) -> Result<(), HelmError> {
    let ended = blocking::run(move || {
        Command::new(HELM).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status()
    });
    match ended.await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(HelmError::Failed(status.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HelmError::Missing),
        Err(error) => Err(HelmError::Start(error)),
    }
}
