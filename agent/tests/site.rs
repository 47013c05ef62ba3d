//! Two real sessions with real peers: the control plane goes away, then one of them does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_agent::identity::IdentityFile;
use hyperion_agent::local::{LocalRequest, SiteStatus};
use hyperion_agent::node::{NodeConfig, NodeFacts};
use hyperion_agent::peers::{self, PeersConfig, PeersHandle};
use hyperion_agent::session::{self, Enrolment, PolicyShelf, SessionConfig, SiteConfig};
use hyperion_agent::status::{Mode, Status};
use hyperion_agent::store::Store;
use hyperion_agent::supervisor::{RuntimeState, SupervisorEvent};
use hyperion_agent::telemetry::{Reserved, Sampler, Sensors, capabilities};
use hyperion_link::{ControlTarget, EnrolRequest, Identity, LinkConfig};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{Intent, SiteInfo, SiteMember, StartReplica, Welcome};
use support::{Control, Recording, TOKEN, order, until};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

struct Agent {
    workloads: Recording,
    status: Arc<Status>,
    peers: PeersHandle,
    local: mpsc::Sender<LocalRequest>,
    supervisor: mpsc::Sender<SupervisorEvent>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Agent {
    async fn start(dir: &Path, control: &Control, id: &str, others: Vec<String>) -> Self {
        Self::start_to(dir, control, control.target(), id, others).await
    }

    /// With another way to the control plane than the one it enrolled by.
    async fn start_to(
        dir: &Path,
        control: &Control,
        target: ControlTarget,
        id: &str,
        others: Vec<String>,
    ) -> Self {
        let identity = enrolled(control, dir, id).await;
        let root = Path::new("/");
        let stop = CancellationToken::new();
        let shelf = PolicyShelf::default();
        let wanted = PeersConfig {
            identity: identity.clone(),
            listen: "127.0.0.1:0".parse().unwrap(),
            static_peers: others,
            mdns: false,
            revoked: Vec::new(),
            control: control.addr.to_string(),
            images: None,
            policies: shelf.files(),
        };
        let (peers, events) = peers::start(wanted, stop.clone()).unwrap();
        let mut link = LinkConfig::new(target);
        link.backoff_min = Duration::from_millis(10);
        link.backoff_max = Duration::from_millis(50);
        let (supervisor, supervisor_events) = mpsc::channel(64);
        let (local, requests) = mpsc::channel(4);
        let workloads = Recording::default();
        let status = Arc::new(Status::default());
        let facts = NodeFacts {
            node_id: id.to_owned(),
            boot_id: format!("boot of {id}"),
            capabilities: capabilities(
                root,
                dir,
                Reserved::default(),
                &Default::default(),
                &Default::default(),
            ),
            telemetry_interval_ms: 100,
        };
        let config = SessionConfig {
            link,
            identity,
            identity_file: identity_file(dir),
            node: NodeConfig {
                profile: hyperion_autonomy::Profile::fast(),
                ..NodeConfig::new(facts)
            },
            store: Store::open(dir, true).unwrap(),
            workloads: workloads.clone(),
            sampler: Sampler::new(root, dir),
            sensors: Sensors::new(root),
            telemetry_interval: Duration::from_millis(100),
            status: status.clone(),
            notices: hyperion_agent::notice::nobody(),
            updates: hyperion_agent::update::Worker::new(dir, dir),
            site: SiteConfig {
                peers: Some((peers.clone(), events)),
                shelf,
                local: Some(requests),
                ..SiteConfig::default()
            },
        };
        let task = tokio::spawn(session::run(config, supervisor_events, stop.clone()));
        let agent = Self {
            workloads,
            status,
            peers,
            local,
            supervisor,
            stop,
            task,
        };
        let runtime = RuntimeState::Available {
            name: "recording".to_owned(),
            version: "1".to_owned(),
        };
        let event = SupervisorEvent::Runtime(runtime);
        agent.supervisor.send(event).await.unwrap();
        agent
    }

    fn address(&self) -> String {
        self.peers.local_addr().unwrap().to_string()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    async fn site(&self) -> SiteStatus {
        let (answer, status) = oneshot::channel();
        self.local.send(LocalRequest::Status(answer)).await.unwrap();
        status.await.unwrap()
    }
}

fn identity_file(dir: &Path) -> IdentityFile {
    IdentityFile::open(dir, None).unwrap().0
}

async fn enrolled(control: &Control, dir: &Path, id: &str) -> Identity {
    id.clone_into(&mut control.state.node.lock().unwrap());
    let enrolment = Enrolment {
        target: control.target(),
        request: EnrolRequest {
            token: TOKEN.to_owned(),
            ..EnrolRequest::default()
        },
        file: identity_file(dir),
    };
    let stop = CancellationToken::new();
    session::enrol(enrolment, &stop).await.unwrap().unwrap()
}

/// Detection and takeover take some seconds, on a busy machine more.
async fn in_a_while(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !condition() {
        let waited = begin.elapsed();
        assert!(waited < Duration::from_secs(60), "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begin.elapsed()
}

fn welcome(members: &[(&str, &str)]) -> Welcome {
    Welcome {
        replicas_complete: true,
        site: Some(SiteInfo {
            version: 1,
            site: "lab".to_owned(),
            members: members
                .iter()
                .map(|(id, address)| SiteMember {
                    node_id: (*id).to_owned(),
                    addresses: vec![(*address).to_owned()],
                    schedulable: true,
                    price_per_hour: 0.0,
                })
                .collect(),
            ..SiteInfo::default()
        }),
        ..Welcome::default()
    }
}

#[tokio::test]
async fn a_peer_takes_over_when_control_plane_and_node_are_gone() {
    let control = Control::start();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Agent::start(one.path(), &control, "lab-1", Vec::new()).await;
    let address = first.address();
    let members = [("lab-1", address.as_str()), ("lab-2", "127.0.0.1:9")];
    *control.state.welcome.lock().unwrap() = welcome(&members);
    until("connected", || control.hellos() > 0).await;
    control.cut().await;
    let start = StartReplica {
        intent: Some(Intent {
            workload_type: "service".to_owned(),
            goal: "default".to_owned(),
            cpu_millis: 10,
            memory_bytes: 1 << 20,
            ..Intent::default()
        }),
        ..order("web", 1, 1)
    };
    control.send(Body::StartReplica(start)).await;
    until("told", || {
        first.workloads.last() == Some(vec![("web".into(), 1, false)])
    })
    .await;

    let hellos = control.hellos();
    let second = Agent::start(two.path(), &control, "lab-2", vec![address]).await;
    until("the second is connected", || control.hellos() > hellos).await;
    in_a_while("they know each other", || {
        second
            .status
            .exposition()
            .contains("site_members{state=\"alive\"} 1")
    })
    .await;
    let site = second.site().await;
    assert_eq!(
        (site.mode.as_str(), site.site.as_str()),
        ("connected", "lab")
    );
    // The record has spread, and nothing of it runs twice.
    in_a_while("the record is known", || {
        second
            .status
            .exposition()
            .contains("hyperion_agent_records 1")
    })
    .await;
    assert_eq!(second.workloads.last(), Some(Vec::new()));

    drop(control);
    in_a_while("cut off", || second.status.mode() == Mode::Autonomous).await;
    first.stop().await;
    let took = in_a_while("taken over", || {
        second.workloads.last() == Some(vec![("web".into(), 2, false)])
    })
    .await;
    println!("taken over after {took:?}");
    let site = second.site().await;
    assert_eq!(site.mode, "autonomous");
    assert_eq!(site.untaken, 1);
    assert_eq!(site.members.len(), 2);
    let text = second.status.exposition();
    assert!(
        text.contains("hyperion_agent_site_decisions_total 1"),
        "{text}"
    );
    second.stop().await;
    let store = Store::open(two.path(), true).unwrap();
    assert_eq!(store.records().len(), 1);
    assert_eq!(store.desired().len(), 1);
}

#[tokio::test]
async fn a_node_whose_uplink_is_broken_reaches_the_control_plane_through_a_peer() {
    let control = Control::start();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    *control.state.welcome.lock().unwrap() =
        welcome(&[("lab-1", "127.0.0.1:9"), ("lab-2", "127.0.0.1:9")]);
    let first = Agent::start(one.path(), &control, "lab-1", Vec::new()).await;
    until("the first is connected", || control.hellos() > 0).await;
    let broken = ControlTarget {
        addr: "127.0.0.1:9".to_owned(),
        ..control.target()
    };
    let others = vec![first.address()];
    let second = Agent::start_to(two.path(), &control, broken, "lab-2", others).await;
    let took = in_a_while("hello through the peer", || {
        let hellos = control.state.hellos.lock().unwrap();
        hellos.iter().any(|hello| hello.node_id == "lab-2")
    })
    .await;
    println!("connected through a peer after {took:?}");
    in_a_while("connected", || second.status.mode() == Mode::Connected).await;
    // Orders come this way, too.
    control.send(Body::StartReplica(order("web", 1, 1))).await;
    in_a_while("told", || {
        second.workloads.last() == Some(vec![("web".into(), 1, false)])
    })
    .await;
    // The peer goes: the way is gone, what runs stays.
    first.stop().await;
    in_a_while("disconnected", || second.status.mode() != Mode::Connected).await;
    in_a_while("the site decides", || {
        second.status.mode() == Mode::Autonomous
    })
    .await;
    assert_eq!(
        second.workloads.last(),
        Some(vec![("web".into(), 1, false)])
    );
    second.stop().await;
}
