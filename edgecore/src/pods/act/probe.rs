//! One question of a probe, and the Event if it was not answered well.

use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container, ExecAction, GRPCAction, HTTPGetAction, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use podcore::env::expand;
use podcore::plan::Outcome;
use podcore::probe::{self, ProbeKind};

use super::{Done, Job};
use crate::events::EventType::Warning;
use crate::handlers::{self, Answer, Get, Question, scheme_is_https};

/// How often what cannot be asked is tried (kubelet: `maxProbeRetries`).
const TRIES_MAX: usize = 3;

impl Job {
    pub(super) async fn probe(
        self,
        container: String,
        id: String,
        kind: ProbeKind,
        number: u32,
    ) -> Done {
        let answer = match self.asked(&container, kind) {
            None => Answer::Unknown("the pod asks no more".to_owned()),
            Some((of, probe)) => match self.question(of, &id, probe) {
                Ok(question) => {
                    let limit = probe::timeout(probe).unsigned_abs();
                    self.insist(&question, limit).await
                }
                Err(text) => Answer::Unknown(text),
            },
        };
        let kind_name = kind.name();
        let tell = |reason: &str, text: &str| self.tell(Warning, reason, text, Some(&container));
        let passed = match answer {
            Answer::Success => Some(true),
            Answer::Warning(text) => {
                tell("ProbeWarning", &format!("{kind_name} probe warning: {text}"));
                Some(true)
            }
            Answer::Failure(text) => {
                tell("Unhealthy", &format!("{kind_name} probe failed: {text}"));
                Some(false)
            }
            Answer::Unknown(text) => {
                let text =
                    format!("{kind_name} probe errored and resulted in unknown state: {text}");
                tell("Unhealthy", &text);
                None
            }
        };

        Done::noted(Outcome::Probed { container, id, kind, number, passed })
    }

    /// Asks again what could not be asked.
    async fn insist(&self, question: &Question, limit: Duration) -> Answer {
        let ask = || handlers::ask(&self.context.runtime, question, limit);
        let mut answer = ask().await;
        for _ in 1..TRIES_MAX {
            if !matches!(answer, Answer::Unknown(_)) {
                break;
            }
            answer = ask().await;
        }

        answer
    }

    fn asked(&self, name: &str, kind: ProbeKind) -> Option<(&Container, &Probe)> {
        let container = self.container(name)?;

        Some((container, kind.of(container)?))
    }

    fn question(&self, container: &Container, id: &str, probe: &Probe) -> Result<Question, String> {
        let Probe { exec, http_get, tcp_socket, grpc, .. } = probe;
        if let Some(exec) = exec {
            return Ok(command(container, id, exec));
        }
        if let Some(get) = http_get {
            return Ok(Question::Http(self.get(container, get, handlers::PROBE)?));
        }
        if let Some(socket) = tcp_socket {
            return self.tcp(container, socket);
        }
        match grpc {
            Some(grpc) => self.grpc(grpc),
            None => Err("the probe has no handler".to_owned()),
        }
    }

    pub(super) fn get(
        &self,
        container: &Container,
        get: &HTTPGetAction,
        agent: &'static str,
    ) -> Result<Get, String> {
        let headers = get.http_headers.iter().flatten();

        Ok(Get {
            https: scheme_is_https(get.scheme.as_deref()),
            host: self.host(get.host.as_deref())?,
            port: port(container, &get.port)?,
            path: get.path.clone().unwrap_or_default(),
            agent,
            headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
        })
    }

    pub(super) fn tcp(
        &self,
        container: &Container,
        socket: &TCPSocketAction,
    ) -> Result<Question, String> {
        let host = self.host(socket.host.as_deref())?;

        Ok(Question::Tcp { host, port: port(container, &socket.port)? })
    }

    fn grpc(&self, grpc: &GRPCAction) -> Result<Question, String> {
        let service = grpc.service.clone().unwrap_or_default();
        let port = u16::try_from(grpc.port).map_err(|_| format!("{} is no port", grpc.port))?;

        Ok(Question::Grpc { host: self.host(None)?, port, service })
    }

    /// The host that is named, else the pod.
    fn host(&self, named: Option<&str>) -> Result<String, String> {
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            return Ok(named.to_owned());
        }
        let addresses = if self.pod.host_network() {
            self.context.addresses.borrow().clone()
        } else {
            self.pod_ips()
        };

        addresses.into_iter().next().ok_or_else(|| "the pod has no address".to_owned())
    }
}

/// A command, with the container's literal variables in it (kubelet:
/// `ExpandContainerCommandOnlyStatic`).
pub(super) fn command(container: &Container, id: &str, exec: &ExecAction) -> Question {
    let literal = |name: &str| {
        let mut variables = container.env.iter().flatten();
        variables.find(|variable| variable.name == name)?.value.clone()
    };
    let words = exec.command.iter().flatten().map(|word| expand(word, literal)).collect();

    Question::Exec { id: id.to_owned(), command: words }
}

/// The number of a port, which may be named by the container.
fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let found = number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port > 0);

    found.ok_or_else(|| format!("container {} has no port {port:?}", container.name))
}
