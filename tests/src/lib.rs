//! What the system tests and benchmarks stand on: a real control plane, edge sites with a real
//! runtime, and the programs of this project as processes.
//!
//! - [`api`]: requests to the API server; [`bystander`]: nodes without an agent.
//! - [`cluster`]: the control plane of `scripts/dev-cluster`, and requests to its API server.
//! - [`own`]: a control plane for one test alone, which may break it.
//! - [`dice`]: seeded chance; [`held`]: what a node holds, told by runtime and kernel.
//! - [`site`]: an edge site of `scripts/edge-site`: its own network, containerd and folders.
//! - [`stock`]: a site with a stock kubelet.
//! - [`replica`]: replicas of cloudcore beside the first; [`balancer`]: leads edges to those that are ready.
//! - [`proxy`]: a proxy and a captive portal between a node and cloudcore.
//! - [`process`]: cloudcore and edgecore as child processes that die with the test.
//! - [`node`]: a site with an agent joined to the cluster.
//! - [`joining`]: machines of which only the link is real; [`impostor`]: one that says what it should not.
//! - [`strangers`]: connections that say nothing, stop half-way or never end.
//! - [`relay`]: a way to the runtime on which the agent can be killed at any of its calls.
//! - [`pods`]: pod manifests and what tests ask about them.
//! - [`wait`]: waiting on conditions, never on time.

pub mod api;
pub mod balancer;
pub mod bystander;
pub mod cluster;
pub mod dice;
pub mod held;
pub mod impostor;
pub mod joining;
pub mod node;
pub mod own;
pub mod pods;
pub mod process;
pub mod proxy;
pub mod relay;
pub mod replica;
pub mod site;
pub mod stock;
pub mod strangers;
pub mod volumes;
pub mod wait;
