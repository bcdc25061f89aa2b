//! What is told of the authorities, and of the nodes that have certificates by them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use proto::wire::Fingerprint;
use serde::Serialize;
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::kept::{Kept, Stage};
use crate::output::{Answer, Table};

/// Annotations of the record of a node's sessions, as cloudcore writes them.
const AUTHORITY: &str = "holdfast.dev/authority";
const REVOKED: &str = "holdfast.dev/revoked";

/// Hexadecimal digits by which people tell authorities apart.
const SHORT_LEN: usize = 16;

/// How the rollover is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    stage: Stage,
    authorities: Vec<Authority>,
    /// Nodes whose certificate is by another authority than the one that signs.
    nodes_with_others: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Authority {
    sha256: String,
    not_after: String,
    /// What cloudcore shows is by it.
    serves: bool,
    /// Certificates of nodes are by it.
    signs: bool,
    /// How many nodes have one by it.
    nodes: usize,
}

impl Told {
    /// Of a Secret and the records of nodes.
    pub fn of(kept: &Kept, records: &[Lease]) -> Self {
        let holders = holders(kept, records);
        let (first, signer) = (kept.first(), kept.signer());
        let told = |(print, der): (Fingerprint, &CertificateDer<'_>)| {
            let sha256 = print.to_string();
            Authority {
                not_after: not_after(der),
                serves: print == first,
                signs: print == signer,
                nodes: holders.values().filter(|by| **by == sha256).count(),
                sha256,
            }
        };

        Self {
            stage: kept.stage(),
            authorities: kept.certificates().map(told).collect(),
            nodes_with_others: with_others(kept, records),
        }
    }
}

/// By whom the certificate of each node is that was not revoked. Nothing is recorded of a node that has not
/// connected since an older cloudcore ran: it has one by the first.
fn holders(kept: &Kept, records: &[Lease]) -> BTreeMap<String, String> {
    let holder = |lease: &Lease| {
        let annotation =
            |name: &str| lease.metadata.annotations.as_ref().and_then(|all| all.get(name)).cloned();
        if annotation(REVOKED).as_deref() == Some("true") {
            return None;
        }
        let by = annotation(AUTHORITY).unwrap_or_else(|| kept.first().to_string());

        Some((lease.metadata.name.clone()?, by))
    };

    records.iter().filter_map(holder).collect()
}

/// The nodes whose certificate is by another authority than the one that signs.
pub fn with_others(kept: &Kept, records: &[Lease]) -> Vec<String> {
    let signer = kept.signer().to_string();
    let others = holders(kept, records).into_iter().filter(|(_, by)| *by != signer);

    others.map(|(node, _)| node).collect()
}

fn not_after(der: &CertificateDer<'_>) -> String {
    let parsed = x509_parser::parse_x509_certificate(der).ok();
    let until = parsed.map(|(_, parsed)| parsed.validity().not_after.timestamp());
    let until = until.and_then(|seconds| Timestamp::from_second(seconds).ok());

    until.map(|until| until.to_string()).unwrap_or_default()
}

impl Answer for Told {
    fn text(&self) -> String {
        let mut table = Table::new(&["AUTHORITY", "EXPIRES", "SIGNS", "NODES"]);
        for authority in &self.authorities {
            let signs = match (authority.serves, authority.signs) {
                (true, true) => "everything",
                (true, false) => "what cloudcore shows",
                (false, true) => "nodes",
                (false, false) => "nothing",
            };
            let (short, nodes) = (&authority.sha256[..SHORT_LEN], authority.nodes.to_string());
            table.row([short, authority.not_after.as_str(), signs, &nodes]);
        }
        let mut text = table.text();
        if !self.nodes_with_others.is_empty() {
            let nodes = self.nodes_with_others.join(", ");
            text.push_str("\n\nwith a certificate by another than the one that signs nodes: ");
            text.push_str(&nodes);
        } else if self.stage != Stage::Alone {
            text.push_str("\n\nno node needs the others any more: edgeadm ca finish");
        }

        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::kept::tests::{alone, rolling};

    fn record(node: &str, annotations: &[(&str, &str)]) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.name = Some(node.to_owned());
        let annotations =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        lease.metadata.annotations = Some(annotations.collect());

        lease
    }

    #[test]
    fn nodes_are_told_that_have_a_certificate_by_another() {
        let start = alone();
        let kept = rolling(&start);
        let (old, new) = (kept.first().to_string(), kept.signer().to_string());
        let records = [
            record("b-old", &[(AUTHORITY, old.as_str())]),
            record("new", &[(AUTHORITY, new.as_str())]),
            record("a-unknown", &[]),
            record("revoked", &[(AUTHORITY, old.as_str()), (REVOKED, "true")]),
        ];
        assert_eq!(with_others(&kept, &records), ["a-unknown", "b-old"]);
        let told = Told::of(&kept, &records);
        assert_eq!(told.authorities.iter().map(|one| one.nodes).collect::<Vec<_>>(), [2, 1]);
        let text = told.text();
        for expected in [&old[..16], "what cloudcore shows", "2036-11-21", "a-unknown, b-old"] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert!(Told::of(&kept, &records[1..2]).text().ends_with("edgeadm ca finish"));
        let lines = |told: Told| told.text().lines().count();
        assert_eq!(lines(Told::of(&start, &[])), 2, "a heading and one authority");
    }
}
