//! The pure node agent: what to do about a pod, what to tell the runtime, what to report.
//!
//! No async, no sockets, no clock, no files: everything comes in as an argument and goes out as a
//! value.
//!
//! - [`pod`]: a pod as the API server wrote it; [`support`]: what of it is refused here, by the
//!   [`abilities`] of the node.
//!   [`admission`]: whether the node takes it in; [`pressure`]: when the node is short of something, and
//!   [`eviction`]: who goes then.
//! - [`static_pod`]: a pod as a file of the node holds it; [`defaults`]: what it leaves unsaid.
//! - [`materials`]: the ConfigMaps, Secrets, tokens, claims and Services it needs; [`claims`]: what claims
//!   lead to.
//! - [`plan`]: from pod, [`memory`] and what is [`observed`] to the next actions.
//! - [`probe`]: when to ask a container how it is, and what the answers come to.
//!   [`hook`]: what runs right after a container's start. [`url`]: where their requests go.
//! - [`shutdown`]: in which order pods are stopped when the node goes down.
//! - [`status`]: the PodStatus to report.
//! - [`image_name`]: what can be the name of an image.
//! - [`translate`]: the CRI messages; with [`env`], [`dns`], [`hosts`], [`volumes`], [`sub_path`],
//!   [`resources`].
//! - [`usage`]: what cgroups use, as the kubelet and cadvisor tell it.

pub mod abilities;
pub mod admission;
pub mod backoff;
pub mod claims;
pub mod defaults;
pub mod dns;
pub mod env;
pub mod eviction;
pub mod hook;
pub mod hosts;
pub mod image_name;
pub mod materials;
pub mod memory;
pub mod observed;
pub mod plan;
pub mod pod;
pub mod pressure;
pub mod probe;
pub mod quantity;
pub mod resize;
pub mod resources;
pub mod shutdown;
#[cfg(test)]
mod sim;
pub mod static_pod;
pub mod status;
pub mod sub_path;
pub mod support;
pub mod telling;
pub mod translate;
pub mod url;
pub mod usage;
pub mod volumes;
