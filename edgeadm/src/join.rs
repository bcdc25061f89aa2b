//! Makes this machine a node: facts, a plan that can be printed, steps that can be repeated.

mod pinned;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use proto::ids::NodeName;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde::Deserialize;

use crate::cli::JoinArgs;
use crate::ui;

/// An answer holds two certificates.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What the machine and the arguments say.
#[derive(Debug)]
struct Facts {
    node: NodeName,
    /// SHA-256 of the authority's certificate, from the token.
    pin: [u8; 32],
    is_root: bool,
    runtime: Result<String, String>,
    has_config: bool,
}

/// One thing to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Ask cloudcore for a certificate, and write the identity.
    Join,
    /// Write the agent's config file.
    WriteConfig,
}

#[derive(Deserialize)]
struct Joined {
    certificate: String,
    ca: String,
}

#[derive(Deserialize)]
struct Refused {
    error: String,
}

/// Joins this machine.
pub async fn run(args: JoinArgs) -> Result<()> {
    let facts = gather(&args).await?;
    let plan = plan(&facts, &args)?;
    if args.dry_run {
        for step in &plan {
            ui::answer(&describe(*step, &facts, &args));
        }
        return Ok(());
    }
    for step in plan {
        ui::progress(&describe(step, &facts, &args));
        match step {
            Step::Join => join(&facts, &args).await?,
            Step::WriteConfig => write_config(&facts, &args)?,
        }
    }
    ui::answer(&format!(
        "node {} has joined; start the agent: edgecore run --config {}",
        facts.node,
        config_file(&args).display()
    ));

    Ok(())
}

fn config_file(args: &JoinArgs) -> PathBuf {
    args.config_dir.join("edgecore.yaml")
}

async fn gather(args: &JoinArgs) -> Result<Facts> {
    let name = match &args.node_name {
        Some(name) => name.clone(),
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot read the host name; give --node-name")?
            .trim()
            .to_lowercase(),
    };
    let node = NodeName::new(name).context("the node's name cannot be used; give --node-name")?;
    let pin = pin(&args.token)?;
    let runtime = match cri::Runtime::new(&args.runtime_endpoint) {
        Ok(runtime) => match runtime.version().await {
            Ok(version) => Ok(format!("{} {}", version.name, version.version)),
            Err(error) => Err(edgecore::telemetry::chain(&error)),
        },
        Err(error) => Err(edgecore::telemetry::chain(&error)),
    };

    Ok(Facts {
        node,
        pin,
        is_root: rustix::process::geteuid().is_root(),
        runtime,
        has_config: config_file(args).exists(),
    })
}

/// The authority's hash in a token: `hf1.<hash>.<id>.<secret>`.
fn pin(token: &str) -> Result<[u8; 32]> {
    let malformed =
        "the token is malformed: copy the whole line that `edgeadm token create` printed";
    let parts: Vec<&str> = token.trim().split('.').collect();
    let [version, hash, id, secret] = parts[..] else { bail!("{malformed}") };
    ensure!(
        version == "hf1" && hash.len() == 64 && id.len() == 8 && secret.len() == 43,
        "{malformed}"
    );
    let mut pin = [0; 32];
    for (byte, at) in pin.iter_mut().zip((0..hash.len()).step_by(2)) {
        let digits = hash.get(at..at + 2).context(malformed)?;
        *byte = u8::from_str_radix(digits, 16).context(malformed)?;
    }

    Ok(pin)
}

fn plan(facts: &Facts, args: &JoinArgs) -> Result<Vec<Step>> {
    ensure!(facts.is_root, "must run as root: it writes {}", args.config_dir.display());
    if let Err(error) = &facts.runtime {
        bail!("no container runtime can be used at {}: {error}", args.runtime_endpoint);
    }
    let mut steps = vec![Step::Join];
    if !facts.has_config {
        steps.push(Step::WriteConfig);
    }

    Ok(steps)
}

fn describe(step: Step, facts: &Facts, args: &JoinArgs) -> String {
    match step {
        Step::Join => format!(
            "join {} as node {} and write its identity to {}",
            args.cloudcore,
            facts.node,
            args.config_dir.display()
        ),
        Step::WriteConfig => format!("write {}", config_file(args).display()),
    }
}

async fn join(facts: &Facts, args: &JoinArgs) -> Result<()> {
    let key = KeyPair::generate().context("cannot make a key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{}", facts.node));
    let csr = params.serialize_request(&key).context("cannot make a certificate request")?.pem()?;
    let asked = serde_json::json!({
        "token": args.token.trim(), "nodeName": facts.node.as_str(), "csr": csr,
    });
    let answer = post(args, facts.pin, asked.to_string()).await?;
    let hash = crate::token::ca_hash(&answer.ca)?;
    ensure!(
        hash == crate::token::hex(&facts.pin),
        "cloudcore sent another authority than the token's"
    );
    edgecore::identity::write(&args.config_dir, &answer.ca, &answer.certificate, &key.serialize_pem())
        .context("cloudcore has accepted the node, but its identity cannot be written; run the same command again")
}

async fn post(args: &JoinArgs, pin: [u8; 32], body: String) -> Result<Joined> {
    let tls = pinned::client_tls(pin)?;
    let stream = edgecore::link::dial::connect(&args.cloudcore, tls).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = http::Request::post("/v1/join")
        .header(http::header::HOST, edgecore::link::dial::SERVER_NAME)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    let exchange = async {
        let answer = sender.send_request(request).await.context("cloudcore did not answer")?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!("the answer cannot be read: {error}"))?
            .to_bytes();
        Ok::<_, anyhow::Error>((status, body))
    };
    let (status, body) = tokio::select! {
        answered = exchange => answered?,
        ended = connection => match ended {
            Ok(()) => bail!("cloudcore closed the connection without an answer"),
            Err(error) => return Err(error).context("the connection to cloudcore broke"),
        },
    };
    if status.is_success() {
        return serde_json::from_slice(&body).context("cloudcore's answer is not understood");
    }
    match serde_json::from_slice::<Refused>(&body) {
        Ok(refused) => bail!("cloudcore refused ({status}): {}", refused.error),
        Err(_) => bail!("cloudcore refused ({status})"),
    }
}

fn write_config(facts: &Facts, args: &JoinArgs) -> Result<()> {
    let path = config_file(args);
    let text = format!(
        "# Written by `edgeadm join`; `edgecore config example` prints every field.\n\
         nodeName: {}\ncloudcore: {}\nidentityDir: {}\nruntimeEndpoint: {}\n",
        facts.node,
        args.cloudcore,
        args.config_dir.display(),
        args.runtime_endpoint
    );
    write_new(&path, &text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("yaml.new");
    std::fs::write(&temporary, text)?;

    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_not_whole_are_refused() {
        let hash = "ab".repeat(32);
        let secret = "A".repeat(43);
        assert_eq!(pin(&format!("hf1.{hash}.0123abcd.{secret}\n")).unwrap(), [0xab; 32]);
        for bad in [
            "",
            "hf1",
            &format!("hf1.{hash}.0123abcd"),
            &format!("hf1.zz{}.0123abcd.{secret}", &hash[2..]),
        ] {
            assert!(
                pin(bad).unwrap_err().to_string().starts_with("the token is malformed"),
                "{bad}"
            );
        }
    }

    fn facts(is_root: bool, runtime: Result<String, String>, has_config: bool) -> Facts {
        let node = NodeName::new("edge-1").unwrap();
        Facts { node, pin: [0; 32], is_root, runtime, has_config }
    }

    fn check(facts: &Facts, expected: &str) {
        let args = JoinArgs {
            cloudcore: "cloud:10000".to_owned(),
            token: String::new(),
            node_name: None,
            runtime_endpoint: "unix:///r.sock".to_owned(),
            config_dir: "/etc/holdfast".into(),
            dry_run: true,
        };
        let planned = match plan(facts, &args) {
            Ok(steps) => {
                steps.iter().map(|s| describe(*s, facts, &args)).collect::<Vec<_>>().join("\n")
            }
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(planned, expected);
    }

    #[test]
    fn plans() {
        let runtime = || Ok("containerd 1.6.20".to_owned());
        check(
            &facts(true, runtime(), false),
            "join cloud:10000 as node edge-1 and write its identity to /etc/holdfast\n\
             write /etc/holdfast/edgecore.yaml",
        );
        check(
            &facts(true, runtime(), true),
            "join cloud:10000 as node edge-1 and write its identity to /etc/holdfast",
        );
        check(&facts(false, runtime(), true), "error: must run as root: it writes /etc/holdfast");
        check(
            &facts(true, Err("no such file".to_owned()), true),
            "error: no container runtime can be used at unix:///r.sock: no such file",
        );
    }
}
