//! A gateway that runs, and a peer with a valid certificate that sends it anything.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use base64::Engine as _;
use bytes::{BufMut, Bytes, BytesMut};
use hyperion_gateway::testing::MemoryApi;
use hyperion_gateway::{Gateway, GatewayConfig, NAMESPACE};
use hyperion_link::{ControlTarget, EnrolRequest, Identity, tls, transport};
use hyperion_proto::agent_v1::stream_message::Body;
use prometheus_client::registry::Registry;
use prost::Message;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;

use super::{pki, samples};
use crate::{Case, Outcome};

/// Time for an answer; most inputs get none.
const ANSWER: Duration = Duration::from_millis(3);
/// Inputs between two proofs that others are still served.
const PROOF_EVERY: u64 = 500;

struct Scene {
    gateway: Gateway,
    endpoint: quinn::Endpoint,
    identity: Identity,
    target: ControlTarget,
    token: String,
    runs: u64,
}

impl Scene {
    async fn start() -> anyhow::Result<Self> {
        let api = MemoryApi::default();
        let hash: String = Sha256::digest("s3cret")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let text = |t: &str| base64::engine::general_purpose::STANDARD.encode(t);
        api.put(
            &format!("/api/v1/namespaces/{NAMESPACE}/secrets/join-token-abc"),
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "join-token-abc" },
                "data": { "secret-sha256": text(&hash), "site": text("lab"),
                    "expires": text("2100-01-01T00:00:00Z"), "uses-left": text("100000000") } }),
        );
        let config = GatewayConfig {
            link_addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            link_advertise: None,
            client: api.client(),
            fleet: "hyperion".to_owned(),
            certificate_ttl: Duration::from_secs(24 * 3600),
        };
        let (gateway, mut events) =
            hyperion_gateway::start(config, &mut Registry::default()).await?;
        tokio::spawn(async move { while events.recv().await.is_some() {} });
        let target = ControlTarget {
            addr: gateway.local_addr().to_string(),
            ca_fingerprint: gateway.ca_fingerprint(),
        };
        let token = "abc.s3cret".to_owned();
        let identity = hyperion_link::enrol(&target, request(&token)).await?;
        Ok(Self {
            gateway,
            endpoint: quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0)))?,
            identity,
            target,
            token,
            runs: 0,
        })
    }

    async fn connect(&self) -> anyhow::Result<quinn::Connection> {
        let config = tls::client_config(
            &self.target.ca_fingerprint,
            Some(&self.identity),
            transport::config(None, transport::IDLE),
        )?;
        let connecting = self.endpoint.connect_with(
            config,
            self.gateway.local_addr(),
            transport::SERVER_NAME,
        )?;
        Ok(connecting.await?)
    }

    /// Now and then: a device that behaves can still enrol.
    async fn prove(&mut self) -> anyhow::Result<()> {
        self.runs += 1;
        if self.runs.is_multiple_of(PROOF_EVERY) {
            let enrolled = hyperion_link::enrol(&self.target, request(&self.token));
            tokio::time::timeout(Duration::from_secs(30), enrolled)
                .await
                .context("the gateway does not serve others any more")??;
        }
        Ok(())
    }
}

fn request(token: &str) -> EnrolRequest {
    EnrolRequest {
        token: token.to_owned(),
        capabilities: samples::capabilities(),
        ..EnrolRequest::default()
    }
}

fn settled(result: anyhow::Result<Outcome>) -> Outcome {
    let problem = result.as_ref().err().map(|e| format!("{e:#}"));
    assert_eq!(problem, None, "the gateway's side of the scene broke");
    result.unwrap_or(Outcome(0))
}

/// Bytes on QUIC streams. The first byte says which kind of stream, and how it ends.
pub struct Http3Case {
    runtime: Runtime,
    scene: Scene,
    connection: Option<(quinn::Connection, quinn::SendStream)>,
}

impl Http3Case {
    /// Starts the gateway.
    ///
    /// # Errors
    /// It does not start.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = pki::runtime()?;
        let scene = runtime.block_on(Scene::start())?;
        Ok(Self {
            runtime,
            scene,
            connection: None,
        })
    }

    async fn send(
        scene: &mut Scene,
        connection: &mut Option<(quinn::Connection, quinn::SendStream)>,
        input: &[u8],
    ) -> anyhow::Result<Outcome> {
        scene.prove().await?;
        let (how, bytes) = input.split_first().unwrap_or((&0, &[]));
        if connection
            .as_ref()
            .is_none_or(|(c, _)| c.close_reason().is_some())
        {
            let quic = scene.connect().await?;
            let mut control = quic.open_uni().await?;
            if how & 0x10 == 0 {
                // Settings, so that only the rest is wrong.
                let _ = control.write_all(&[0x00, 0x04, 0x00]).await;
            }
            *connection = Some((quic, control));
        }
        let Some((quic, control)) = connection.as_mut() else {
            return Ok(Outcome(0));
        };
        match how & 0x03 {
            0 | 1 => {
                let opened = tokio::time::timeout(ANSWER, quic.open_bi()).await;
                if let Ok(Ok((mut send, mut receive))) = opened {
                    let _ = send.write_all(bytes).await;
                    if how & 0x04 == 0 {
                        let _ = send.finish();
                    } else {
                        let _ = send.reset(7_u32.into());
                    }
                    let read = receive.read_to_end(64 * 1024);
                    let _ = tokio::time::timeout(ANSWER, read).await;
                    let _ = receive.stop(1_u32.into());
                } else {
                    quic.close(0_u32.into(), b"full");
                }
            }
            2 => {
                let opened = tokio::time::timeout(ANSWER, quic.open_uni()).await;
                if let Ok(Ok(mut send)) = opened {
                    let _ = send.write_all(bytes).await;
                    let _ = send.finish();
                    tokio::time::sleep(ANSWER).await;
                } else {
                    quic.close(0_u32.into(), b"full");
                }
            }
            _ => {
                // More on the control stream.
                let _ = control.write_all(bytes).await;
                tokio::time::sleep(ANSWER).await;
            }
        }
        Ok(match quic.close_reason() {
            Some(reason) => Outcome::text(&reason.to_string()),
            None => Outcome(u64::from(how & 0x17)),
        })
    }
}

impl Case for Http3Case {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let seeds: [&[u8]; 9] = [
            // GET / with qpack's static table.
            &[0, 0x01, 0x06, 0x00, 0x00, 0xd1, 0xd7, 0xc1, 0x50],
            // HEADERS, DATA.
            &[0, 0x01, 0x02, 0x00, 0x00, 0x00, 0x03, b'a', b'b', b'c'],
            &[0, 0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            // Control stream with settings; qpack encoder and decoder; push; reserved.
            &[2, 0x00, 0x04, 0x04, 0x01, 0x40, 0x64, 0x07],
            &[2, 0x02, 0x3f, 0xe1, 0x1f],
            &[2, 0x03, 0x80],
            &[2, 0x01, 0x00],
            &[2, 0x21, 0x00],
            // GOAWAY, MAX_PUSH_ID, CANCEL_PUSH on the control stream.
            &[3, 0x07, 0x01, 0x00, 0x0d, 0x01, 0x05, 0x03, 0x01, 0x00],
        ];
        seeds.iter().map(|s| s.to_vec()).collect()
    }

    fn max_len(&self) -> usize {
        2048
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let sent = Self::send(&mut self.scene, &mut self.connection, input);
        settled(self.runtime.block_on(sent))
    }
}

type Stream = (
    quinn::Connection,
    h3::client::RequestStream<h3_quinn::SendStream<Bytes>, Bytes>,
    h3::client::RequestStream<h3_quinn::RecvStream, Bytes>,
    h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
);

/// gRPC frames on one open stream. The first byte says whether a proper frame is put around the
/// rest, and whether a hello comes first.
pub struct GrpcCase {
    runtime: Runtime,
    scene: Scene,
    stream: Option<Stream>,
}

impl GrpcCase {
    /// Starts the gateway.
    ///
    /// # Errors
    /// It does not start.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = pki::runtime()?;
        let scene = runtime.block_on(Scene::start())?;
        Ok(Self {
            runtime,
            scene,
            stream: None,
        })
    }

    async fn open(scene: &Scene, hello: bool) -> anyhow::Result<Stream> {
        let quic = scene.connect().await?;
        let connection = h3_quinn::Connection::new(quic.clone());
        let (mut driver, mut requests) = h3::client::new(connection).await?;
        tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        let request = http::Request::post("https://hyperion-control/agent.v1.AgentService/Stream")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (mut send, receive) = requests.send_request(request).await?.split();
        if hello {
            let first = samples::messages(&scene.identity.node_id).remove(0);
            send.send_data(frame(&first.encode_to_vec())).await?;
        }
        Ok((quic, send, receive, requests))
    }

    async fn send(
        scene: &mut Scene,
        stream: &mut Option<Stream>,
        input: &[u8],
    ) -> anyhow::Result<Outcome> {
        scene.prove().await?;
        let (how, bytes) = input.split_first().unwrap_or((&0, &[]));
        if stream
            .as_ref()
            .is_none_or(|(quic, ..)| quic.close_reason().is_some())
        {
            *stream = Some(Self::open(scene, how & 2 == 0).await?);
        }
        let Some((quic, send, receive, _)) = stream.as_mut() else {
            return Ok(Outcome(0));
        };
        let data = if how & 1 == 0 {
            frame(bytes)
        } else {
            Bytes::copy_from_slice(bytes)
        };
        let sent = tokio::time::timeout(Duration::from_secs(2), send.send_data(data)).await;
        let mut outcome = Outcome(u64::from(how & 3));
        let answer = async {
            while let Ok(Some(_)) = receive.recv_data().await {}
            receive.recv_trailers().await.ok().flatten()
        };
        if let Ok(ended) = tokio::time::timeout(ANSWER, answer).await {
            let status = ended.as_ref().and_then(|t| t.get("grpc-message"));
            let words = status.and_then(|s| s.to_str().ok()).unwrap_or("ended");
            outcome = outcome.and(Outcome::text(words));
            quic.close(0_u32.into(), b"next");
        } else if how & 4 != 0 || !matches!(sent, Ok(Ok(()))) {
            quic.close(0_u32.into(), b"next");
        }
        Ok(outcome)
    }
}

fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(message);
    frame.freeze()
}

impl Case for GrpcCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let messages = samples::messages(&self.scene.identity.node_id);
        messages
            .iter()
            .flat_map(|m| {
                let refused = matches!(m.body, Some(Body::Hello(_)));
                let mut framed = vec![if refused { 6 } else { 0 }];
                framed.extend(m.encode_to_vec());
                let mut raw = vec![1];
                raw.extend(frame(&m.encode_to_vec()));
                [framed, raw]
            })
            .collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let sent = Self::send(&mut self.scene, &mut self.stream, input);
        settled(self.runtime.block_on(sent))
    }
}
