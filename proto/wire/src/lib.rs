//! Messages that cross the link and the site network: generated code, and [`convert`], the only
//! place where wire messages become domain types. No transport: the pure crates name this one, and
//! `hyperion-proto` adds the gRPC service.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

/// Generated code; one module per package, as references between packages want it.
#[allow(
    missing_docs,
    clippy::all,
    unused_qualifications,
    reason = "generated code"
)]
mod generated {
    pub mod agent {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/agent.v1.rs"));
        }
    }
    pub mod peer {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/peer.v1.rs"));
        }
    }
}

/// Messages of `agent/v1/agent.proto`.
pub use generated::agent::v1 as agent_v1;
/// Messages of `peer/v1/peer.proto`.
pub use generated::peer::v1 as peer_v1;

pub mod convert;
pub mod domain;
