//! The variables that tell a container of the Services around it (`pkg/kubelet/envvars`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Service, ServicePort};

/// Name to value.
pub(super) struct Variables(pub(super) BTreeMap<String, String>);

impl Variables {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn put(&mut self, name: String, value: impl Into<String>) {
        self.0.insert(name, value.into());
    }
}

/// The namespace whose `kubernetes` Service every pod is told of.
const MASTER_NAMESPACE: &str = "default";
/// That Service.
const MASTER_SERVICE: &str = "kubernetes";

/// Variables of the Services of `namespace` if `links`, and always of the API server.
pub(super) fn variables(namespace: &str, services: &[Service], links: bool) -> Variables {
    let mut found = Variables(BTreeMap::new());
    let is_master = |service: &Service| {
        service.metadata.namespace.as_deref() == Some(MASTER_NAMESPACE)
            && service.metadata.name.as_deref() == Some(MASTER_SERVICE)
    };
    // The API server first: a Service of the pod's own namespace of that name wins.
    for service in services.iter().filter(|service| is_master(service)) {
        add(service, &mut found);
    }
    for service in services.iter().filter(|service| links && !is_master(service)) {
        if service.metadata.namespace.as_deref() == Some(namespace) {
            add(service, &mut found);
        }
    }

    found
}

fn add(service: &Service, found: &mut Variables) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else {
        return;
    };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let (Some(first), Some(name)) = (ports.first(), &service.metadata.name) else { return };
    let prefix = variable_name(name);
    found.put(format!("{prefix}_SERVICE_HOST"), ip);
    found.put(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let name = format!("{prefix}_SERVICE_PORT_{}", variable_name(port_name));
            found.put(name, port.port.to_string());
        }
    }
    found.put(format!("{prefix}_PORT"), url(ip, first));
    for port in ports {
        let protocol = protocol(port);
        let base = format!("{prefix}_PORT_{}_{protocol}", port.port);
        found.put(base.clone(), url(ip, port));
        found.put(format!("{base}_PROTO"), protocol.to_lowercase());
        found.put(format!("{base}_PORT"), port.port.to_string());
        found.put(format!("{base}_ADDR"), ip);
    }
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn url(ip: &str, port: &ServicePort) -> String {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };

    format!("{}://{host}:{}", protocol(port).to_lowercase(), port.port)
}

fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}
