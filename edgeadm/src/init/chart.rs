//! The chart of cloudcore, which this program carries: both are of one version.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../helm/holdfast/", $name)))),*]
    };
}

/// Its files, by their names in the folder of the chart.
const FILES: [(&str, &str); 17] = files![
    "Chart.yaml",
    "values.yaml",
    "values.schema.json",
    "dashboards/holdfast.json",
    "templates/NOTES.txt",
    "templates/_helpers.tpl",
    "templates/config.yaml",
    "templates/dashboard.yaml",
    "templates/deployment.yaml",
    "templates/flow-control.yaml",
    "templates/networkpolicy.yaml",
    "templates/pdb.yaml",
    "templates/rbac.yaml",
    "templates/scrapeconfig.yaml",
    "templates/service.yaml",
    "templates/serviceaccount.yaml",
    "templates/servicemonitor.yaml",
];

/// The chart in a folder of its own, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct Unpacked {
    folder: PathBuf,
}

impl Unpacked {
    /// Writes it where nobody else can have put anything.
    pub(super) fn new() -> io::Result<Self> {
        let mut random = [0; 16];
        let filled = SystemRandom::new().fill(&mut random);
        filled.map_err(|_| io::Error::other("the kernel gave no random bytes"))?;
        let name = format!("holdfast-chart-{}", proto::object::hex(&random));
        let folder = std::env::temp_dir().join(name);
        DirBuilder::new().mode(0o700).create(&folder)?;
        let unpacked = Self { folder };
        for (name, text) in FILES {
            let file = unpacked.folder.join(name);
            fs::create_dir_all(file.parent().unwrap_or(&unpacked.folder))?;
            fs::write(file, text)?;
        }

        Ok(unpacked)
    }

    /// For helm.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // What stays is no secret.
        let _stays = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(folder: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut open = vec![folder.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    found.insert(name, fs::read_to_string(path).unwrap());
                }
            }
        }

        found
    }

    #[test]
    fn the_chart_is_the_one_of_the_checkout_whole() {
        let unpacked = Unpacked::new().unwrap();
        let folder = unpacked.folder().to_owned();
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/holdfast");
        assert_eq!(read(&folder), read(&chart));
        drop(unpacked);
        assert!(!folder.exists());
    }
}
