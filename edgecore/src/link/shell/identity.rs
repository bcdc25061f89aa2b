//! The shell's part in the identity of the node: which one it dials with, and how it gets the next.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use proto::admission::Ticket;
use proto::ids::NodeName;
use proto::session::EdgeInput;
use proto::wire::{CertificateRefusal, Issued};

use super::Shell;
use crate::clock::KnownTime;
use crate::identity::next::NextKey;
use crate::identity::{Identity, IdentityError};
use crate::link::dial::{self, Connection, DialError};
use crate::link::expired::{self, RenewalError};
use crate::link::proxy::Way;
use crate::link::time;
use crate::telemetry::chain;
use crate::{blocking, clock};

/// A dial's end.
pub(super) struct Dialed {
    /// Another identity that was found before.
    pub(super) identity: Option<Result<Identity, IdentityError>>,
    pub(super) connection: Result<Connection, (DialError, Option<Duration>)>,
}

/// What a dial needs of the shell.
pub(super) struct Caller {
    pub(super) node: NodeName,
    pub(super) way: Way,
    pub(super) identity: Identity,
    pub(super) dir: PathBuf,
    pub(super) ticket: Option<Ticket>,
    pub(super) known: KnownTime,
}

impl Caller {
    /// Dials with what is in the folder now: the node may have joined anew. A certificate that has expired is
    /// renewed first.
    pub(super) async fn dial(mut self) -> Dialed {
        let (before, dir) = (self.identity.clone(), self.dir.clone());
        let now = self.known.now();
        let found = blocking::run(move || before.reload(&dir, now)).await;
        if let Some(Ok(found)) = &found {
            if found.join_id != self.identity.join_id {
                self.ticket = None;
                self.known.forget();
                time::recall(&self.known, &BTreeMap::new(), found, clock::instant());
            }
            self.identity = found.clone();
        }
        let tls = self.known.over(&self.identity.tls);
        match dial::dial(&self.way, tls).await {
            Err((error, _)) if expired::is_expired(&error, &self.identity, self.known.now()) => {
                self.renew(found).await
            }
            connection => Dialed { identity: found, connection },
        }
    }

    async fn renew(self, found: Option<Result<Identity, IdentityError>>) -> Dialed {
        let Self { node, way, identity, dir, ticket, known } = self;
        match expired::renew(&node, &way, &dir, &identity, ticket, &known).await {
            Ok(renewed) => {
                Dialed { identity: Some(Ok(renewed)), connection: Err((DialError::Renewed, None)) }
            }
            Err(source) => {
                let retry_after = if let RenewalError::Refused { retry_after, .. } = &source {
                    Some(*retry_after)
                } else {
                    None
                };
                let error = DialError::Expired { address: way.address, source: Box::new(source) };
                Dialed { identity: found, connection: Err((error, retry_after)) }
            }
        }
    }
}

impl Shell {
    /// There is another identity than that of the last dial: this one is by it.
    pub(super) fn found(&mut self, found: Result<Identity, IdentityError>) {
        let identity = match found {
            Ok(identity) => identity,
            Err(error) => {
                let reason = chain(&error);
                if self.told_unread != reason {
                    tracing::warn!(reason, "keeping the identity that was read before");
                    self.told_unread = reason;
                }
                return;
            }
        };
        self.told_unread.clear();
        if identity.join_id != self.parts.identity.join_id {
            tracing::info!("this node has joined anew");
            self.session.handle(EdgeInput::TicketForgotten, clock::instant());
        }
        self.parts.identity = identity;
    }

    /// Tells the cloud which certificate is stored, and whom this node believes.
    pub(super) fn say_identity(&mut self) {
        let held = self.parts.identity.held();
        self.session.handle(EdgeInput::IdentityHeld(held), clock::instant());
    }

    /// Asks for another certificate, if it is time.
    pub(super) fn renew(&mut self) {
        let now = clock::instant();
        self.keep_time();
        if !self.renewal.is_due(self.parts.identity.validity, now) {
            return;
        }
        match NextKey::generate(&self.parts.node) {
            Ok(key) => {
                let csr = key.csr().to_vec().into();
                self.session.handle(EdgeInput::CertificateWanted { csr }, now);
                self.renewal.asked(key);
            }
            Err(error) => tracing::warn!(error = %chain(&error), "cannot make another key"),
        }
    }

    pub(super) fn certificate(&mut self, answer: Result<Issued, CertificateRefusal>) {
        let now = clock::instant();
        match (answer, self.renewal.answered(now)) {
            (Ok(issued), Some(key)) => {
                let (dir, before) = (self.parts.identity_dir.clone(), self.parts.identity.clone());
                let time = self.parts.known.now();
                self.keeping.spawn(blocking::run(move || key.keep(&dir, &before, &issued, time)));
            }
            // Of a link before.
            (Ok(_), None) => {}
            (Err(CertificateRefusal { reason, retry_after }), _) => {
                tracing::warn!(reason, "cloudcore gives this node no new certificate");
                self.renewal.failed(retry_after, now);
            }
        }
    }

    /// The next dial is with the new certificate; the link goes on with the old one.
    pub(super) fn kept(&mut self, kept: Result<Identity, IdentityError>) {
        match kept {
            Ok(identity) => {
                let until = identity.validity.map_or(0, |(_, until)| until.as_secs());
                tracing::info!(until, "the certificate of this node was renewed");
                self.parts.identity = identity;
                self.say_identity();
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot keep a new certificate");
                self.renewal.failed(Duration::ZERO, clock::instant());
            }
        }
    }
}
