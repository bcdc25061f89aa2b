//! The link between cloudcore and edgecore, without sockets, clocks or an async runtime.
//!
//! - [`ids`]: what objects and nodes are called.
//! - [`object`]: one desired object as the API server wrote it, with its version.
//! - [`wire`]: the protobuf frames; [`codec`] turns bytes into frames within limits.
//! - [`session`]: the state machines of both ends; [`outbox`] what one node has yet to acknowledge.
//! - [`stream`]: byte streams with credit, multiplexed on the link.
//! - [`digest`]: an order-independent summary of a set of objects.

pub mod ids;
pub mod object;
