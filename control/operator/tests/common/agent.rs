//! Agents whose container runtime is made up, on the real link. Also used by tests of other crates:
//! it knows the link and the API, and nothing of the control plane.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyperion_api::node::HyperionNode;
use hyperion_api::workload::HyperionWorkload;
use hyperion_api::{agent_pod, intent};
use hyperion_link::{
    ControlTarget, EnrolRequest, Identity, InCluster, LinkConfig, LinkEvent, LinkSender,
};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Gpu, Hello, Intent, LogChunk, NodeCapabilities, PodSpec, RecordState, ReplicaKey, ReplicaPhase,
    ReplicaRecord, ReplicaReport, SiteDecisions, SiteExplanation, StartReplica, StreamMessage,
    Telemetry, Welcome,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, PostParams};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// An address that is free now. None that the kernel gives to connections (from 32768 on), and
/// processes begin at different ones: it is let go of before the control plane binds it.
pub fn free_port(udp: bool) -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id().wrapping_mul(2_654_435_769) >> 16) as u16;
    loop {
        let port = 12_000 + begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let free = if udp {
            std::net::UdpSocket::bind(address).is_ok()
        } else {
            std::net::TcpListener::bind(address).is_ok()
        };
        if free {
            return address;
        }
    }
}

/// Waits until `found` gives something.
pub async fn eventually<T, F>(what: &str, mut found: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let deadline = Instant::now() + DEADLINE;
    loop {
        let last = match found().await {
            Ok(value) => return value,
            Err(last) => last,
        };
        assert!(
            Instant::now() < deadline,
            "{what}: not after {DEADLINE:?}; last: {last}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How an agent finds the control plane and knows that it is the right one.
async fn target(client: &kube::Client, link: SocketAddr) -> ControlTarget {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "hyperion-system");
    let map = maps.get("hyperion-ca").await.unwrap();
    ControlTarget {
        addr: link.to_string(),
        ca_fingerprint: map.data.unwrap()["fingerprint"].clone(),
    }
}

/// A join token with a thousand uses.
async fn token(client: &kube::Client) -> String {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "hyperion-system");
    let hash: String = Sha256::digest("secret0of0tests")
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let object = json!({
        "metadata": { "name": "join-token-test", "namespace": "hyperion-system" },
        "type": "hyperion.io/join-token",
        "stringData": { "secret-sha256": hash, "site": "lab",
            "expires": "2100-01-01T00:00:00Z", "uses-left": "1000" },
    });
    let object: Secret = serde_json::from_value(object).unwrap();
    match secrets.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(e)) if e.code == 409 => {}
        Err(e) => panic!("{e}"),
    }
    "test.secret0of0tests".to_owned()
}

/// Plain HTTP; status and body.
pub async fn get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Replica(pub String, pub u32);

struct Held {
    key: ReplicaKey,
    generation: u64,
    pod: PodSpec,
}

/// The made-up container runtime; lives on while the agent is disconnected.
#[derive(Default)]
pub struct Runtime {
    held: BTreeMap<Replica, Held>,
    /// Containers started, ever.
    pub starts: HashMap<Replica, u32>,
    /// Complete lists received, ever.
    pub lists: u32,
    /// What happens to replicas instead of running.
    pub fate: Option<(ReplicaPhase, &'static str)>,
    /// What its site decided while it was cut off and the control plane has not taken.
    pub decisions: Vec<ReplicaRecord>,
    /// Replicas that it was told to stop, or that a complete list lacked, ever.
    pub stops: Vec<Replica>,
    /// Further messages to send.
    pub outbox: Vec<Body>,
    /// What came that is no order.
    pub inbox: Vec<Body>,
    /// What it was told that workloads want, ever.
    pub intents: Vec<Intent>,
    /// The last answer to hello.
    pub welcome: Option<Welcome>,
}

impl Runtime {
    /// Runs a replica that its site gave it.
    pub fn take_over(&mut self, record: ReplicaRecord) {
        let (key, pod) = (record.key.clone().unwrap(), record.pod.clone().unwrap());
        let id = Replica(key.workload.clone(), key.index);
        *self.starts.entry(id.clone()).or_default() += 1;
        let generation = record.generation;
        self.held.insert(
            id,
            Held {
                key,
                generation,
                pod,
            },
        );
        self.decisions.push(record);
    }

    /// Key and pod of a replica that it holds.
    pub fn replica(&self, workload: &str, index: u32) -> Option<(ReplicaKey, PodSpec)> {
        let held = self.held.get(&Replica(workload.to_owned(), index))?;
        Some((held.key.clone(), held.pod.clone()))
    }

    fn report(&self, held: &Held) -> ReplicaReport {
        let (phase, reason) = self.fate.unwrap_or((ReplicaPhase::Running, ""));
        ReplicaReport {
            key: Some(held.key.clone()),
            generation: held.generation,
            phase: phase.into(),
            ready: phase == ReplicaPhase::Running,
            reason: reason.to_owned(),
            pod_ip: "10.0.0.1".to_owned(),
            ..ReplicaReport::default()
        }
    }

    fn start(&mut self, start: StartReplica) -> Option<ReplicaReport> {
        self.intents.extend(start.intent);
        let (key, pod) = (start.key?, start.pod?);
        let id = Replica(key.workload.clone(), key.index);
        let adopted = match self.held.get(&id) {
            Some(held) if held.key == key && held.generation > start.generation => return None,
            Some(held) => held.key == key && held.pod == pod,
            None => false,
        };
        if !adopted {
            *self.starts.entry(id.clone()).or_default() += 1;
        }
        let held = Held {
            key,
            generation: start.generation,
            pod,
        };
        let report = self.report(&held);
        self.held.insert(id, held);
        Some(report)
    }

    fn stop(&mut self, key: ReplicaKey, generation: u64) -> Option<ReplicaReport> {
        let id = Replica(key.workload.clone(), key.index);
        self.stops.push(id.clone());
        if self
            .held
            .get(&id)
            .is_some_and(|h| h.key == key && h.generation <= generation)
        {
            self.held.remove(&id);
        }
        Some(ReplicaReport {
            key: Some(key),
            generation,
            phase: ReplicaPhase::Stopped.into(),
            ..ReplicaReport::default()
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some((stop, _)) = &self.connection {
            stop.cancel();
        }
    }
}

pub struct Agent {
    target: ControlTarget,
    identity: Identity,
    capabilities: NodeCapabilities,
    pub runtime: Arc<Mutex<Runtime>>,
    connection: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl Agent {
    /// Enrols with a token that `client` makes, connects, and waits until the node is ready.
    pub async fn enrol(
        client: &kube::Client,
        link: SocketAddr,
        labels: &[(&str, &str)],
        gpus: usize,
    ) -> Self {
        let capabilities = NodeCapabilities {
            cpu_arch: "x86_64".to_owned(),
            memory_bytes: 8 << 30,
            cpu_millis: 4000,
            gpus: (0..gpus)
                .map(|i| Gpu {
                    uuid: format!("GPU-{i}"),
                    model: "T4".to_owned(),
                    memory_bytes: 16 << 30,
                })
                .collect(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..NodeCapabilities::default()
        };
        let request = EnrolRequest {
            token: token(client).await,
            capabilities: capabilities.clone(),
            ..EnrolRequest::default()
        };
        let target = target(client, link).await;
        let identity = hyperion_link::enrol(&target, request).await.unwrap();
        let mut agent = Agent {
            target,
            identity,
            capabilities,
            runtime: Arc::default(),
            connection: None,
        };
        agent.connect();
        let (api, id) = (Api::<HyperionNode>::all(client.clone()), agent.id());
        eventually("node ready", || {
            let (api, id) = (api.clone(), id.clone());
            async move {
                let node = api.get(&id).await.map_err(|e| e.to_string())?;
                let ready = node.status.is_some_and(|s| s.ready == "True");
                if ready {
                    Ok(())
                } else {
                    Err("not ready".to_owned())
                }
            }
        })
        .await;
        agent
    }

    /// What an agent hears that says it is on a node of a cluster, and has a token that is none.
    pub async fn measures(client: &kube::Client, link: SocketAddr, cluster: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "no.such.token").unwrap();
        let request = EnrolRequest {
            capabilities: NodeCapabilities {
                cpu_arch: "x86_64".to_owned(),
                ..NodeCapabilities::default()
            },
            cluster: Some(InCluster {
                cluster: cluster.to_owned(),
                token_file: file.path().to_owned(),
            }),
            ..EnrolRequest::default()
        };
        let target = target(client, link).await;
        let refused = hyperion_link::enrol(&target, request).await;
        refused.unwrap_err().to_string()
    }

    /// Enrols the same node again with its old key, as after its certificate ran out.
    pub async fn enrol_again(&self) {
        let request = EnrolRequest {
            capabilities: self.capabilities.clone(),
            ..EnrolRequest::default()
        };
        hyperion_link::re_enrol(&self.target, &self.identity, request)
            .await
            .unwrap();
    }

    pub fn id(&self) -> String {
        self.identity.node_id.clone()
    }

    pub fn holds(&self) -> Vec<Replica> {
        self.runtime.lock().unwrap().held.keys().cloned().collect()
    }

    pub fn starts(&self, workload: &str, replica: u32) -> u32 {
        let starts = &self.runtime.lock().unwrap().starts;
        starts
            .get(&Replica(workload.to_owned(), replica))
            .copied()
            .unwrap_or(0)
    }

    /// Waits until it holds exactly these.
    pub async fn holding(&self, what: &str, expected: &[(&str, u32)]) {
        let expected: Vec<Replica> = expected
            .iter()
            .map(|(w, r)| Replica((*w).to_owned(), *r))
            .collect();
        eventually(what, || async {
            let held = self.holds();
            if held == expected {
                Ok(())
            } else {
                Err(format!("{held:?}"))
            }
        })
        .await;
    }

    pub fn connect(&mut self) {
        let mut config = LinkConfig::new(self.target.clone());
        config.backoff_max = Duration::from_millis(500);
        let (runtime, capabilities) = (self.runtime.clone(), self.capabilities.clone());
        let node_id = self.id();
        let hello = move || {
            let runtime = runtime.lock().unwrap();
            Hello {
                node_id: node_id.clone(),
                boot_id: "boot".to_owned(),
                capabilities: Some(capabilities.clone()),
                replicas: runtime.held.values().map(|h| runtime.report(h)).collect(),
                agent_version: "test".to_owned(),
                telemetry_interval_ms: 1000,
                runtime_problem: String::new(),
                site_decisions: (!runtime.decisions.is_empty()).then(|| SiteDecisions {
                    records: runtime.decisions.clone(),
                }),
                ..Default::default()
            }
        };
        let link = hyperion_link::start(config, self.identity.clone(), Arc::new(hello));
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(link, self.runtime.clone(), stop.clone()));
        self.connection = Some((stop, task));
    }

    /// Loses contact; what runs goes on.
    pub async fn disconnect(&mut self) {
        let (stop, task) = self.connection.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }
}

/// An hour before now, when the site decided.
pub fn before() -> i64 {
    jiff::Timestamp::now().as_millisecond() - 3_600_000
}

/// `to` takes replica 0 over, as its site decided.
pub fn took_over(workload: &HyperionWorkload, to: &Agent, generation: u64) -> ReplicaRecord {
    let metadata = &workload.metadata;
    ReplicaRecord {
        key: Some(ReplicaKey {
            namespace: metadata.namespace.clone().unwrap(),
            workload: metadata.name.clone().unwrap(),
            workload_uid: metadata.uid.clone().unwrap(),
            index: 0,
        }),
        generation,
        decider: to.id(),
        state: RecordState::Placed.into(),
        node: to.id(),
        pod: Some(agent_pod::pod_spec(&workload.spec, &[]).unwrap()),
        intent: Some(intent::intent(&workload.spec).unwrap()),
        explanation: Some(SiteExplanation {
            cause: "the node is dead".to_owned(),
            scorer: "rules".to_owned(),
            candidates: 1,
            ..SiteExplanation::default()
        }),
        unix_ms: before(),
        ..ReplicaRecord::default()
    }
}

async fn serve(
    mut link: hyperion_link::Link,
    runtime: Arc<Mutex<Runtime>>,
    stop: CancellationToken,
) {
    let sender = link.sender();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {
                let outbox = std::mem::take(&mut runtime.lock().unwrap().outbox);
                for body in outbox {
                    let _ = sender.try_send(StreamMessage { body: Some(body) });
                }
                let telemetry = Telemetry { cpu_utilization_percent: 10.0, ..Telemetry::default() };
                let _ = sender.try_send(StreamMessage { body: Some(Body::Telemetry(telemetry)) });
            }
            event = link.next_event() => match event {
                None => break,
                Some(LinkEvent::Connected(welcome)) => {
                    runtime.lock().unwrap().welcome = Some(welcome.clone());
                    let mut wanted = Vec::new();
                    for start in welcome.replicas {
                        wanted.extend(start.key.clone());
                        let report = runtime.lock().unwrap().start(start);
                        report.into_iter().for_each(|r| tell(&sender, r));
                    }
                    if welcome.replicas_complete {
                        stop_others(&sender, &runtime, &wanted);
                    }
                }
                Some(LinkEvent::Message(message)) => handle(&sender, &runtime, message),
                Some(_) => {}
            }
        }
    }
    link.close().await;
}

fn stop_others(sender: &LinkSender, runtime: &Mutex<Runtime>, wanted: &[ReplicaKey]) {
    let others: Vec<(ReplicaKey, u64)> = {
        let mut runtime = runtime.lock().unwrap();
        runtime.lists += 1;
        let held = runtime.held.values();
        held.filter(|h| !wanted.contains(&h.key))
            .map(|h| (h.key.clone(), h.generation))
            .collect()
    };
    for (key, generation) in others {
        let report = runtime.lock().unwrap().stop(key, generation);
        report.into_iter().for_each(|r| tell(sender, r));
    }
}

fn handle(sender: &LinkSender, runtime: &Mutex<Runtime>, message: StreamMessage) {
    let report = match message.body {
        Some(Body::StartReplica(start)) => runtime.lock().unwrap().start(start),
        Some(Body::StopReplica(stop)) => runtime
            .lock()
            .unwrap()
            .stop(stop.key.unwrap(), stop.generation),
        Some(Body::Welcome(welcome)) if welcome.replicas_complete => {
            let wanted: Vec<ReplicaKey> = welcome
                .replicas
                .iter()
                .filter_map(|s| s.key.clone())
                .collect();
            stop_others(sender, runtime, &wanted);
            None
        }
        Some(Body::FetchLogs(fetch)) if !fetch.cancel => {
            let chunk = if fetch.container == "nope" {
                LogChunk {
                    request_id: fetch.request_id,
                    error: "no container nope".to_owned(),
                    end: true,
                    ..LogChunk::default()
                }
            } else {
                LogChunk {
                    request_id: fetch.request_id,
                    data: b"a line\n".to_vec(),
                    end: !fetch.follow,
                    ..LogChunk::default()
                }
            };
            let _ = sender.try_send(StreamMessage {
                body: Some(Body::LogChunk(chunk)),
            });
            None
        }
        Some(Body::DecisionsTaken(taken)) => {
            let mut runtime = runtime.lock().unwrap();
            let is_taken = |r: &ReplicaRecord| {
                let mut all = taken.records.iter();
                all.any(|t| {
                    t.key == r.key && t.generation == r.generation && t.decider == r.decider
                })
            };
            runtime.decisions.retain(|r| !is_taken(r));
            None
        }
        Some(other) => {
            runtime.lock().unwrap().inbox.push(other);
            None
        }
        None => None,
    };
    report.into_iter().for_each(|r| tell(sender, r));
}

fn tell(sender: &LinkSender, report: ReplicaReport) {
    let _ = sender.try_send(StreamMessage {
        body: Some(Body::ReplicaReport(report)),
    });
}
