//! The system tests: real control plane, real runtime, the programs as built. Run by `scripts/test`.
//!
//! One module for each promise to the user; each test makes its own node and says which T number of
//! the acceptance list or which line of the documentation it holds up.

mod admission;
mod alike;
mod api_server;
mod authority;
mod autonomy;
mod bad_input;
mod beside;
mod churn;
mod clock;
mod crash;
mod damage;
mod deleted_node;
mod deletes;
mod evictions;
mod granted;
mod helm;
mod hostile;
mod identity;
mod inside;
mod killed;
mod kubelet_api;
mod link;
mod logs;
mod machine;
mod main_job;
mod network;
mod node_alike;
mod node_tools;
mod package;
mod power;
mod probes;
mod rbac;
mod replicas;
mod resize;
mod runtime;
mod sample;
mod static_pods;
mod storage;
mod unit;
mod updates;
mod upgrade;
mod volumes;
mod workloads;
