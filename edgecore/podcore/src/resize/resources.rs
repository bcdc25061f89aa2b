//! What a container asks for, is granted and has, as far as it can be resized.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::{Deserialize, Serialize};

use crate::quantity;

/// CPU and memory of a container, as the API writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    /// By name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// By name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
}

type Listed = Option<BTreeMap<String, Quantity>>;

impl Resources {
    /// What the container asks for.
    pub fn of(container: &Container) -> Self {
        let texts = |all: &Listed| {
            let all = all.iter().flatten().filter(|(name, _)| is_resizable(name));
            all.map(|(name, quantity)| (name.clone(), quantity.0.clone())).collect()
        };
        let resources = container.resources.as_ref();

        Self {
            requests: resources.map(|all| texts(&all.requests)).unwrap_or_default(),
            limits: resources.map(|all| texts(&all.limits)).unwrap_or_default(),
        }
    }

    /// Puts them in the place of what the resources say of CPU and memory.
    pub fn put_into(&self, resources: &mut ResourceRequirements) {
        let put = |own: &BTreeMap<String, String>, all: &mut Listed| {
            let mut put = all.take().unwrap_or_default();
            put.retain(|name, _| !is_resizable(name));
            put.extend(own.iter().map(|(name, text)| (name.clone(), Quantity(text.clone()))));
            *all = (!put.is_empty()).then_some(put);
        };
        put(&self.requests, &mut resources.requests);
        put(&self.limits, &mut resources.limits);
    }

    /// Whether both are the same amounts, however they are written.
    pub(super) fn equals(&self, other: &Self) -> bool {
        ["cpu", "memory"].iter().all(|name| self.equals_in(name, other))
    }

    pub(super) fn equals_in(&self, name: &str, other: &Self) -> bool {
        let amounts = |resources: &Self| {
            let read = |all: &BTreeMap<String, String>| {
                let quantity = Quantity(all.get(name)?.clone());
                if name == "cpu" { quantity::milli(&quantity) } else { quantity::units(&quantity) }
            };
            (read(&resources.requests), read(&resources.limits))
        };

        amounts(self) == amounts(other)
    }

    /// The limit of memory in bytes, if there is one.
    pub(super) fn memory_limit(&self) -> Option<i64> {
        let limit = quantity::read_units(self.limits.get("memory")?)?;

        Some(limit).filter(|limit| *limit > 0)
    }
}

fn is_resizable(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory")
}
