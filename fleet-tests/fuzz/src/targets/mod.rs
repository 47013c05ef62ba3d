//! The targets.

pub mod agent;
pub mod api;
pub mod live;
pub mod people;
pub mod pki;
pub mod policy;
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
    Target {
        name: "cri-log",
        about: "log files of containers, whole and in pieces",
        make: || Ok(Box::new(agent::LogCase::new()?)),
    },
    Target {
        name: "procfs",
        about: "files of procfs and sysfs, up to the telemetry made from them",
        make: || Ok(Box::new(agent::ProcCase::new()?)),
    },
    Target {
        name: "agent-store",
        about: "the agent's store file",
        make: || Ok(Box::new(agent::StoreCase::new()?)),
    },
    Target {
        name: "store-record",
        about: "records in the agent's store",
        make: || Ok(Box::new(agent::RecordCase::new()?)),
    },
    Target {
        name: "agent-identity",
        about: "the agent's identity file",
        make: || Ok(Box::new(agent::IdentityCase::new()?)),
    },
    Target {
        name: "pod",
        about: "orders to start, up to what containerd is asked for",
        make: || Ok(Box::new(agent::PodCase)),
    },
    Target {
        name: "workload",
        about: "HyperionWorkload objects, up to what placement reads",
        make: || Ok(Box::new(people::WorkloadCase)),
    },
    Target {
        name: "api-requests",
        about: "requests to a running embedded API",
        make: || Ok(Box::new(api::ApiCase::new()?)),
    },
    Target {
        name: "policy-file",
        about: "policy files, safetensors and GGUF, up to a score",
        make: || Ok(Box::new(policy::FileCase::new()?)),
    },
    Target {
        name: "experience",
        about: "lines of experience to learn from",
        make: || Ok(Box::new(policy::ExperienceCase::new()?)),
    },
    Target {
        name: "terminal-text",
        about: "text from outside on its way to a terminal",
        make: || Ok(Box::new(people::TextCase)),
    },
];

/// The target of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|t| t.name == name)
}
