//! Messages of the link.

use std::collections::BTreeMap;

use hyperion_gateway::{facts, pki, tokens, updates};
use hyperion_link::identity::{certificate_request, new_key};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{RegisterNodeRequest, StreamMessage, UpdateState};
use hyperion_proto::convert;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use prost::Message;

use super::samples;
use crate::{Case, Outcome};

/// Messages of the stream.
pub struct StreamCase;

impl Case for StreamCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let messages = samples::messages("lab-1");
        messages.iter().map(Message::encode_to_vec).collect()
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let floats = [f32::NAN, f32::INFINITY, f32::MIN, -0.0, f32::MIN_POSITIVE];
        floats.iter().map(|f| f.to_le_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        match StreamMessage::decode(input) {
            Ok(message) => {
                let again = StreamMessage::decode(message.encode_to_vec().as_slice());
                assert!(again.is_ok(), "what was decoded does not encode");
                message.body.as_ref().map_or(Outcome(2), convert_all)
            }
            Err(e) => Outcome::text(&e.to_string()),
        }
    }
}

fn convert_all(body: &Body) -> Outcome {
    match body {
        Body::Hello(hello) => {
            let reports = hello
                .replicas
                .iter()
                .map(|r| Outcome::of(&convert::report(r)));
            let capabilities = Outcome::of(&convert::capabilities(hello.capabilities.as_ref()));
            let said = reports.fold(capabilities, Outcome::and);
            said.and(updated(hello.update.as_ref()))
        }
        Body::Telemetry(t) => {
            let converted = convert::telemetry(t);
            if let Ok(t) = &converted {
                let numbers = [t.cpu_percent, t.load1, t.rtt_ms];
                assert!(numbers.iter().all(|n| n.is_finite() && *n >= 0.0), "{t:?}");
            }
            Outcome::of(&converted)
        }
        Body::ReplicaReport(r) => {
            let converted = convert::report(r);
            if let Ok(r) = &converted {
                assert!(r.pod_ip.len() < 64 && r.message.len() <= 4096, "{r:?}");
            }
            Outcome::of(&converted)
        }
        Body::Event(e) => Outcome::of(&convert::event(e)),
        Body::StartReplica(s) => Outcome::of(&convert::start(s)),
        Body::Welcome(w) => {
            let starts = w.replicas.iter().map(|s| Outcome::of(&convert::start(s)));
            starts.fold(Outcome(3), Outcome::and)
        }
        Body::NodeState(s) => updated(s.update.as_ref()),
        Body::UpdateOrder(o) => {
            let converted = convert::update_order(o);
            if let Ok(Some(o)) = &converted {
                assert!(
                    !o.id.contains('/') && !o.bundle.version.contains('/'),
                    "{o:?}"
                );
            }
            Outcome::of(&converted)
        }
        Body::StopReplica(s) => Outcome::of(&convert::replica_key("key", s.key.as_ref())),
        Body::FetchLogs(f) => Outcome::of(&convert::replica_key("key", f.key.as_ref())),
        _ => Outcome(4),
    }
}

/// What is kept of a node's word is bounded.
fn updated(said: Option<&UpdateState>) -> Outcome {
    let Some(said) = said else {
        return Outcome(5);
    };
    let held = updates::read(said);
    let printed = format!("{held:?}");
    // Each character takes up to ten where it is printed.
    assert!(
        printed.len() < 64 * 1024,
        "{} bytes are kept",
        printed.len()
    );
    Outcome(6)
}

/// Enrolment requests.
pub struct RegisterCase {
    csr_der: Vec<u8>,
}

impl RegisterCase {
    /// Makes a key for the sample.
    ///
    /// # Errors
    /// No random numbers.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            csr_der: certificate_request(&new_key()?)?,
        })
    }
}

impl Case for RegisterCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let request = RegisterNodeRequest {
            capabilities: Some(samples::capabilities()),
            token: "abc.s3cret".to_owned(),
            csr_der: self.csr_der.clone(),
            site: "lab".to_owned(),
            expired_certificate_der: self.csr_der.clone(),
            hostname: "board-1".to_owned(),
            agent_version: "0.1.0".to_owned(),
            cluster: "east".to_owned(),
            cluster_token: "header.claims.signature".to_owned(),
        };
        vec![request.encode_to_vec()]
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let request = match RegisterNodeRequest::decode(input) {
            Ok(request) => request,
            Err(e) => return Outcome::text(&e.to_string()),
        };
        let capabilities = convert::capabilities(request.capabilities.as_ref());
        let mut outcome = Outcome::of(&capabilities)
            .and(Outcome::of(&pki::request_key(&request.csr_der)))
            .and(Outcome::of(&tokens::parse(&request.token)));
        if let Ok(capabilities) = capabilities {
            let (status, problems) = facts::describe(&capabilities);
            assert!(status.price_per_hour.is_finite(), "{status:?}");
            for problem in problems {
                outcome = outcome.and(Outcome::text(&problem));
            }
        }
        outcome
    }
}

/// Join tokens. The input is a token, then fields of the Secret, one a line.
pub struct TokenCase;

const FIELDS: [&str; 5] = ["secret-sha256", "site", "expires", "uses-left", "revoked"];

impl Case for TokenCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let hash = "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0";
        let stored = format!("abc.s3cret\n{hash}\nlab\n2030-01-01T00:00:00Z\n5\nfalse");
        vec![stored.into_bytes(), b"abc.s3cret".to_vec()]
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let mut lines = input.split(|b| *b == b'\n');
        let token = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let data: BTreeMap<String, ByteString> = FIELDS
            .iter()
            .zip(lines)
            .map(|(field, line)| ((*field).to_owned(), ByteString(line.to_vec())))
            .collect();
        let secret = Secret {
            data: Some(data),
            ..Secret::default()
        };
        let parsed = tokens::parse(&token);
        let outcome = Outcome::of(&parsed);
        match parsed {
            Ok(presented) => {
                let now = jiff::Timestamp::UNIX_EPOCH;
                let verified = tokens::verify(&presented, &secret, "", now);
                if let Ok((site, left)) = &verified {
                    assert!(
                        *left > 0 && !site.is_empty() && site.len() <= 63,
                        "{site:?}"
                    );
                }
                outcome.and(Outcome::of(&verified))
            }
            Err(_) => outcome,
        }
    }
}
