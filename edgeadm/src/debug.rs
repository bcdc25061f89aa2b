//! `edgeadm debug collect`: one archive that others can be given. Keys, tokens and the values of Secrets
//! are never read; whatever looks like one is cut from what is.

mod archive;
mod gather;
pub(crate) mod redact;

use std::io;
use std::path::PathBuf;

use edgecore::Config;
use edgecore::config::ConfigError;

use self::archive::Archive;
use crate::args::debug::{CollectArgs, DebugCommand};
use crate::{clock, exit, ui};

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum DebugError {
    /// Which agent is not known.
    #[error("this machine is no edge node (join it: edgeadm join), or its configuration is broken")]
    Config(#[source] ConfigError),
    /// It cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DebugError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => exit::BAD_CONFIG,
            Self::Write { .. } => exit::NOT_WRITTEN,
        }
    }
}

/// Does one command.
pub async fn run(command: DebugCommand) -> Result<(), DebugError> {
    match command {
        DebugCommand::Collect(args) => collect(args).await,
    }
}

async fn collect(args: CollectArgs) -> Result<(), DebugError> {
    let config = Config::load(&args.config.config).map_err(DebugError::Config)?;
    let now = clock::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let name = format!("holdfast-{}-{now}", config.node);
    let path = args.output_path.unwrap_or_else(|| format!("{name}.tar.gz").into());
    let failed = |source| DebugError::Write { path: path.clone(), source };
    let mut archive = Archive::create(&path, &name).map_err(failed)?;
    for (file, text) in gather::all(&config, &args.config.config, args.log_path.as_deref()).await {
        let text = redact::text(&text);
        archive.add(&file, text.as_bytes()).map_err(failed)?;
        ui::step(&format!("collected {file}"));
    }
    archive.finish().map_err(failed)?;
    ui::answer(&path.display().to_string());

    Ok(())
}
