//! Wire formats of Hyperion: generated code, and [`convert`], the only place where wire messages
//! become domain types.

/// Generated code of `agent/v1/agent.proto`.
#[expect(missing_docs, clippy::all, reason = "generated code")]
pub mod agent_v1 {
    tonic::include_proto!("agent.v1");
}
