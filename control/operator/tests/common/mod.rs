//! A control plane in this process, with the embedded API, and agents whose container runtime is
//! made up. The link between them is the real one.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::HyperionWorkload;
use hyperion_link::{ControlTarget, EnrolRequest, Identity, LinkConfig, LinkEvent, LinkSender};
use hyperion_operator::args::Args;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Gpu, Hello, Intent, LogChunk, NodeCapabilities, PodSpec, ReplicaKey, ReplicaPhase,
    ReplicaRecord, ReplicaReport, SiteDecisions, StartReplica, StreamMessage, Telemetry, Welcome,
};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// An address that is free now.
pub fn free_port(udp: bool) -> SocketAddr {
    if udp {
        std::net::UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    } else {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
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

pub struct Control {
    dir: tempfile::TempDir,
    api: SocketAddr,
    link: SocketAddr,
    pub http: SocketAddr,
    replace_after: &'static str,
    flags: Vec<String>,
    running: Option<(
        CancellationToken,
        tokio::task::JoinHandle<anyhow::Result<()>>,
    )>,
    client: Option<kube::Client>,
}

impl Control {
    pub async fn start(replace_after: &'static str) -> Self {
        Self::start_with(replace_after, &[]).await
    }

    /// With further flags.
    pub async fn start_with(replace_after: &'static str, flags: &[String]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        if std::env::var_os("RUST_LOG").is_some() {
            let _ = hyperion_operator::run::logging(hyperion_operator::args::LogFormat::Text);
        }
        let mut control = Self {
            dir: tempfile::tempdir().unwrap(),
            api: free_port(false),
            link: free_port(true),
            http: free_port(false),
            replace_after,
            flags: flags.to_vec(),
            running: None,
            client: None,
        };
        control.run().await;
        control
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Starts it (again) on the same data folder and addresses.
    pub async fn run(&mut self) {
        let own = [
            "hyperion-control".to_owned(),
            "--embedded".to_owned(),
            format!("--data-dir={}", self.dir.path().join("data").display()),
            format!("--kubeconfig-out={}", self.kubeconfig().display()),
            format!("--api-addr={}", self.api),
            format!("--link-addr={}", self.link),
            format!("--http-addr={}", self.http),
            format!("--replace-after={}", self.replace_after),
        ];
        let args = Args::parse_from(own.into_iter().chain(self.flags.iter().cloned()));
        let stop = CancellationToken::new();
        let run = hyperion_operator::run::run(args, stop.clone());
        let task = tokio::spawn(async move {
            let ended = run.await;
            if let Err(e) = &ended {
                tracing::error!("hyperion-control: {e:#}");
            }
            ended
        });
        self.running = Some((stop, task));
        let http = self.http;
        let running = &self.running;
        eventually("ready", || async move {
            let ended = running.as_ref().is_some_and(|(_, task)| task.is_finished());
            assert!(!ended, "the control plane ended: RUST_LOG=info tells why");
            let (status, text) = get(http, "/readyz").await.map_err(|e| e.to_string())?;
            if status == 200 && text.contains("serving") {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
        let read = kube::config::Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(read, &Default::default())
            .await
            .unwrap();
        self.client = Some(kube::Client::try_from(config).unwrap());
    }

    /// Stops it as SIGTERM does.
    pub async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        task.await.unwrap().unwrap();
    }

    pub fn client(&self) -> kube::Client {
        self.client.clone().unwrap()
    }

    pub fn workloads(&self) -> Api<HyperionWorkload> {
        Api::namespaced(self.client(), "default")
    }

    pub fn placements(&self) -> Api<HyperionPlacement> {
        Api::namespaced(self.client(), "default")
    }

    pub fn nodes(&self) -> Api<HyperionNode> {
        Api::all(self.client())
    }

    /// Applies as a user.
    pub async fn apply(&self, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let params = PatchParams::apply("test").force();
        self.workloads()
            .patch(&name, &params, &Patch::Apply(object))
            .await
            .unwrap();
    }

    pub async fn delete(&self, name: &str) {
        self.workloads()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    pub async fn node_spec(&self, node: &str, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.nodes()
            .patch(node, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Waits for the workload's status.
    pub async fn status(
        &self,
        name: &str,
        what: &str,
        ok: impl Fn(&HyperionWorkload) -> bool,
    ) -> HyperionWorkload {
        let (api, ok) = (self.workloads(), &ok);
        eventually(what, || {
            let api = api.clone();
            async move {
                let w = api.get(name).await.map_err(|e| e.to_string())?;
                if ok(&w) {
                    Ok(w)
                } else {
                    Err(format!("{:?}", w.status))
                }
            }
        })
        .await
    }

    pub async fn running(&self, name: &str) -> HyperionWorkload {
        self.status(name, "running", |w| {
            w.status.as_ref().is_some_and(|s| {
                s.ready == format!("{0}/{0}", w.spec.replicas)
                    && condition(w, "Ready").is_some_and(|c| c.0 == "True")
            })
        })
        .await
    }

    pub async fn gone(&self, name: &str) {
        let api = self.workloads();
        eventually("deleted", || {
            let api = api.clone();
            async move {
                match api.get_opt(name).await {
                    Ok(None) => Ok(()),
                    Ok(Some(w)) => Err(format!("{:?}", w.status)),
                    Err(e) => Err(e.to_string()),
                }
            }
        })
        .await;
    }

    /// Node and generation of a placement.
    pub async fn place(&self, placement: &str) -> Option<(String, i64)> {
        let p = self.placements().get_opt(placement).await.unwrap()?;
        Some((p.spec.node, p.spec.generation))
    }

    async fn target(&self) -> ControlTarget {
        let maps: Api<ConfigMap> = Api::namespaced(self.client(), "hyperion-system");
        let map = maps.get("hyperion-ca").await.unwrap();
        ControlTarget {
            addr: self.link.to_string(),
            ca_fingerprint: map.data.unwrap()["fingerprint"].clone(),
        }
    }

    async fn token(&self) -> String {
        let secrets: Api<Secret> = Api::namespaced(self.client(), "hyperion-system");
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

    /// Enrols an agent and connects it.
    pub async fn agent(&self, labels: &[(&str, &str)], gpus: usize) -> Agent {
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
            token: self.token().await,
            capabilities: capabilities.clone(),
            ..EnrolRequest::default()
        };
        let target = self.target().await;
        let identity = hyperion_link::enrol(&target, request).await.unwrap();
        let mut agent = Agent {
            target,
            identity,
            capabilities,
            runtime: Arc::default(),
            connection: None,
        };
        agent.connect();
        let (api, id) = (self.nodes(), agent.id());
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
}

/// Status and reason of a condition.
pub fn condition(workload: &HyperionWorkload, type_: &str) -> Option<(String, String, String)> {
    let conditions = &workload.status.as_ref()?.conditions;
    let found = conditions.iter().find(|c| c.type_ == type_)?;
    Some((
        found.status.clone(),
        found.reason.clone(),
        found.message.clone(),
    ))
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

pub struct Agent {
    target: ControlTarget,
    identity: Identity,
    capabilities: NodeCapabilities,
    pub runtime: Arc<Mutex<Runtime>>,
    connection: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl Agent {
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
