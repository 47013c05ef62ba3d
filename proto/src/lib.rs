//! Wire formats of Hyperion: the messages of `hyperion-wire` and the gRPC service on them.

/// Messages of `agent/v1/agent.proto`, and the generated code of its service.
#[allow(
    missing_docs,
    clippy::all,
    unused_qualifications,
    reason = "generated code"
)]
pub mod agent_v1 {
    pub use hyperion_wire::agent_v1::*;

    tonic::include_proto!("agent.v1");
}

pub mod codec;

pub use hyperion_wire::{convert, domain, peer_v1};
