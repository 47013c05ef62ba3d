//! Wire formats of Hyperion: generated code, and [`convert`], the only place where wire messages
//! become domain types.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

/// Generated code of `agent/v1/agent.proto`.
#[allow(
    missing_docs,
    clippy::all,
    unused_qualifications,
    reason = "generated code"
)]
pub mod agent_v1 {
    tonic::include_proto!("agent.v1");
}

pub mod codec;
pub mod convert;
pub mod domain;
