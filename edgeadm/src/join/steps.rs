//! Takes the steps of a plan. Each can be taken again.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use edgecore::link::proxy::Choice;
use edgecore::{Config, clock, identity};
use rcgen::{CertificateParams, DnType, KeyPair};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::plan::{Network, Plan, Service};
use super::{JoinError, journal, start};
use crate::ask::{Connection, JoinRequest};
use crate::token::Token;
use crate::{cni, ui, unit};

/// Organization of nodes (Kubernetes).
const NODES_GROUP: &str = "system:nodes";

/// Takes all of them.
pub(super) async fn take(
    plan: Plan,
    token: &Token,
    connection: Connection,
) -> Result<(), JoinError> {
    let folder = plan.config_path.parent().unwrap_or_else(|| Path::new("/"));
    let unwritten = |path: &Path| {
        let path = path.to_owned();
        move |source| JoinError::Write { path, source }
    };
    if !plan.has_identity {
        ask(&plan, token, connection).await?;
    }
    // The token may be used up now.
    journal::keep(folder, &Plan::journal(&plan.config, token))
        .map_err(unwritten(&folder.join(journal::FILE)))?;
    if let Some(text) = &plan.config_text {
        let mode = if has_password(&plan.config) { 0o600 } else { 0o644 };
        write_as(&plan.config_path, text, mode).map_err(unwritten(&plan.config_path))?;
        ui::step(&format!("wrote {}", plan.config_path.display()));
    }
    match &plan.network {
        Network::Ready => {}
        Network::Default => {
            write(Path::new(cni::FILE), cni::DEFAULT).map_err(unwritten(Path::new(cni::FILE)))?;
            ui::step(&format!("wrote {}: the runtime had no network for pods", cni::FILE));
        }
        Network::Elsewhere(dir) => {
            ui::step(&format!("pods have no network until {dir} has a CNI configuration"));
        }
    }
    if let Service::Unit { text: Some(text), .. } = &plan.service {
        write(Path::new(unit::FILE), text).map_err(unwritten(Path::new(unit::FILE)))?;
        ui::step(&format!("wrote {}", unit::FILE));
    }
    let by_hand = start::agent(&plan).await?;
    journal::forget(folder).map_err(unwritten(&folder.join(journal::FILE)))?;
    ui::answer(&match by_hand {
        None => format!("node {} has joined and is connected", plan.config.node),
        Some(command) => format!(
            "node {} has joined; start the agent, or restart it if it runs: {command}",
            plan.config.node
        ),
    });

    Ok(())
}

/// Asks for a certificate, and writes the identity.
async fn ask(plan: &Plan, token: &Token, connection: Connection) -> Result<(), JoinError> {
    let config = &plan.config;
    let key = KeyPair::generate().map_err(JoinError::Request)?;
    let csr = request(config.node.as_str(), &key).map_err(JoinError::Request)?;
    let asked = JoinRequest { token: &token.reveal(), node_name: config.node.as_str(), csr: &csr };
    let joined = connection.join(&asked).await.map_err(JoinError::Ask)?;
    let ca = CertificateDer::from_pem_slice(joined.ca.as_bytes()).ok();
    if !ca.is_some_and(|ca| token.is_for(&ca)) {
        return Err(JoinError::Authority(config.cloudcore.to_string()));
    }
    let dir = &config.identity_dir;
    identity::write(dir, &joined.ca, &joined.certificate, &key.serialize_pem())
        .map_err(JoinError::Identity)?;
    // What was written is what the agent will read.
    identity::load(dir, clock::since_1970()).map_err(JoinError::Identity)?;
    ui::step(&format!("wrote the identity of node {} to {}", config.node, dir.display()));

    Ok(())
}

/// The certificate request of `node`. Cloudcore checks the name and sets everything else.
fn request(node: &str, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, NODES_GROUP);
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));

    params.serialize_request(key)?.pem()
}

fn has_password(config: &Config) -> bool {
    matches!(&config.proxy, Choice::Through(proxy) if proxy.has_credentials())
}

/// Writes the file whole or not at all, to be read by everybody.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    write_as(path, text, 0o644)
}

fn write_as(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or_else(|| Path::new("/"));
    let temporary = path.with_extension("new");
    fs::create_dir_all(dir)?;
    let mut file = fs::File::create(&temporary)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;

    fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateSigningRequestParams, DnValue};

    use super::*;

    #[test]
    fn a_request_names_the_node_as_kubernetes_does() {
        let key = KeyPair::generate().unwrap();
        let pem = request("edge-1", &key).unwrap();
        let read = CertificateSigningRequestParams::from_pem(&pem).unwrap();
        let name = read.params.distinguished_name;
        let expected = |text: &str| DnValue::Utf8String(text.to_owned());

        assert_eq!(name.iter().count(), 2);
        assert_eq!(name.get(&DnType::OrganizationName), Some(&expected("system:nodes")));
        assert_eq!(name.get(&DnType::CommonName), Some(&expected("system:node:edge-1")));
    }

    #[test]
    fn files_appear_whole_in_folders_that_did_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/edgecore.yaml");
        write(&path, "one").unwrap();
        write(&path, "two").unwrap();

        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        write_as(&path, "three", 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
