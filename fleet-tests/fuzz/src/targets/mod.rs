//! The targets.

pub mod live;
pub mod pki;
pub mod samples;
pub mod wire;

use crate::Case;

/// A target by name.
pub struct Target {
    /// Name for `--target`.
    pub name: &'static str,
    /// What it decodes.
    pub about: &'static str,
    /// Sets it up.
    pub make: fn() -> anyhow::Result<Box<dyn Case>>,
}

/// All of them.
pub const ALL: &[Target] = &[
    Target {
        name: "stream-message",
        about: "messages of the stream, and their conversion to domain types",
        make: || Ok(Box::new(wire::StreamCase)),
    },
    Target {
        name: "register-node",
        about: "enrolment requests: capabilities, certificate request, token, labels",
        make: || Ok(Box::new(wire::RegisterCase::new()?)),
    },
    Target {
        name: "join-token",
        about: "join tokens and the Secrets that they are checked against",
        make: || Ok(Box::new(wire::TokenCase)),
    },
    Target {
        name: "csr",
        about: "certificate requests, and signing them",
        make: || Ok(Box::new(pki::RequestCase::new()?)),
    },
    Target {
        name: "certificate",
        about: "certificates: facts, identity, re-enrolment",
        make: || Ok(Box::new(pki::CertificateCase::new()?)),
    },
    Target {
        name: "ca-secret",
        about: "the Secret of the fleet's CA: PEM and key",
        make: || Ok(Box::new(pki::SecretCase::new()?)),
    },
    Target {
        name: "http3",
        about: "bytes on QUIC streams of a running gateway",
        make: || Ok(Box::new(live::Http3Case::new()?)),
    },
    Target {
        name: "grpc",
        about: "gRPC frames on an open stream of a running gateway",
        make: || Ok(Box::new(live::GrpcCase::new()?)),
    },
];

/// The target of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|t| t.name == name)
}
