//! The real session and link against a control plane in this process; only containers are missing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyperion_agent::identity::{self, IdentityFile, Kept};
use hyperion_agent::node::{NodeConfig, NodeFacts};
use hyperion_agent::session::{self, EnrolFailed, Enrolment, SessionConfig, SiteConfig};
use hyperion_agent::status::{Mode, Status};
use hyperion_agent::store::{self, Change, Store};
use hyperion_agent::supervisor::{Desired, SupervisorEvent};
use hyperion_agent::telemetry::{Reserved, Sampler, Sensors, capabilities};
use hyperion_link::{EnrolRequest, Identity, LinkConfig};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{
    Drain, FetchLogs, ReplicaPhase, ReplicaReport, StopReplica, StreamMessage,
};
use hyperion_proto::convert;
use support::{Control, NODE, Recording, TOKEN, key, order, until};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// An agent without containers.
struct Agent {
    workloads: Recording,
    supervisor: mpsc::Sender<SupervisorEvent>,
    status: Arc<Status>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Agent {
    fn start(dir: &Path, control: &Control, identity: Identity, boot: &str) -> Self {
        Self::start_with(dir, control, identity, boot, Recording::default())
    }

    fn start_with(
        dir: &Path,
        control: &Control,
        identity: Identity,
        boot: &str,
        workloads: Recording,
    ) -> Self {
        Self::start_on(
            dir,
            LinkConfig::new(control.target()),
            identity,
            boot,
            workloads,
        )
    }

    fn start_on(
        dir: &Path,
        mut link: LinkConfig,
        identity: Identity,
        boot: &str,
        workloads: Recording,
    ) -> Self {
        let (supervisor, events) = mpsc::channel(64);
        let status = Arc::new(Status::default());
        link.backoff_min = Duration::from_millis(10);
        link.backoff_max = Duration::from_millis(50);
        let root = Path::new("/");
        let config = SessionConfig {
            link,
            identity,
            identity_file: kept(dir).0,
            node: NodeConfig::new(NodeFacts {
                node_id: NODE.to_owned(),
                boot_id: boot.to_owned(),
                capabilities: capabilities(
                    root,
                    dir,
                    Reserved::default(),
                    &Default::default(),
                    &Default::default(),
                ),
                telemetry_interval_ms: 100,
            }),
            store: Store::open(dir, true).unwrap(),
            workloads: workloads.clone(),
            sampler: Sampler::new(root, dir),
            sensors: Sensors::new(root),
            telemetry_interval: Duration::from_millis(100),
            status: status.clone(),
            notices: hyperion_agent::notice::nobody(),
            updates: hyperion_agent::update::Worker::new(dir, dir),
            site: SiteConfig::default(),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(session::run(config, events, stop.clone()));
        Self {
            workloads,
            supervisor,
            status,
            stop,
            task,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    async fn report(&self, workload: &str, generation: u64, phase: ReplicaPhase) {
        let report = ReplicaReport {
            key: Some(key(workload)),
            generation,
            phase: phase.into(),
            ready: phase == ReplicaPhase::Running,
            ..Default::default()
        };
        {
            let mut reports = self.workloads.reports.lock().unwrap();
            reports.retain(|r| r.key != report.key);
            if phase != ReplicaPhase::Stopped {
                reports.push(report.clone());
            }
        }
        let event = SupervisorEvent::Report(report);
        self.supervisor.send(event).await.unwrap();
    }

    async fn event(&self, reason: &str) {
        let event = SupervisorEvent::Event {
            reason: reason.to_owned(),
            message: String::new(),
            warning: false,
            key: None,
        };
        self.supervisor.send(event).await.unwrap();
    }
}

fn enrolment(control: &Control, dir: &Path, token: &str) -> Enrolment {
    Enrolment {
        target: control.target(),
        request: EnrolRequest {
            token: token.to_owned(),
            capabilities: capabilities(
                Path::new("/"),
                dir,
                Reserved::default(),
                &Default::default(),
                &Default::default(),
            ),
            ..EnrolRequest::default()
        },
        file: kept(dir).0,
    }
}

fn kept(dir: &Path) -> (IdentityFile, Kept) {
    IdentityFile::open(dir, None).unwrap()
}

async fn enrolled(control: &Control, dir: &Path) -> Identity {
    let stop = CancellationToken::new();
    session::enrol(enrolment(control, dir, TOKEN), &stop)
        .await
        .unwrap()
        .unwrap()
}

/// A store that holds these, as a run before left it.
fn left_behind(dir: &Path, held: &[(&str, u64)]) {
    let mut store = Store::open(dir, false).unwrap();
    let changes: Vec<Change> = held
        .iter()
        .map(|(workload, generation)| {
            let start = convert::start(&order(workload, *generation, 0)).unwrap();
            Change::Put(Desired {
                start,
                finished: None,
            })
        })
        .collect();
    store.apply(&changes, true);
}

fn results(control: &Control) -> Vec<(u64, bool, String)> {
    control.received(|body| match body {
        Body::CommandResult(r) => Some((r.command_id, r.ok, r.error.clone())),
        _ => None,
    })
}

fn events(control: &Control) -> Vec<(u64, String)> {
    control.received(|body| match body {
        Body::Event(e) => Some((e.id, e.reason.clone())),
        _ => None,
    })
}

fn phases(control: &Control, workload: &str) -> Vec<(u64, ReplicaPhase)> {
    control.received(|body| match body {
        Body::ReplicaReport(r) if r.key == Some(key(workload)) => Some((r.generation, r.phase())),
        _ => None,
    })
}

async fn connected(control: &Control) {
    until("connected", || control.hellos() > 0).await;
}

#[tokio::test]
async fn enrolment_keeps_an_identity_that_only_its_owner_reads() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    control.state.unavailable.store(1, Ordering::SeqCst);
    let got = enrolled(&control, dir.path()).await;
    assert_eq!((got.node_id.as_str(), got.site.as_str()), (NODE, "lab"));
    let file = dir.path().join(identity::FILE);
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(kept(dir.path()).1, Kept::Node(identity) if identity == got));
    std::fs::write(&file, "{\"version\":1").unwrap();
    let error = IdentityFile::open(dir.path(), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("identity.json"), "{error}");
}

#[tokio::test]
async fn a_refused_token_ends_enrolment_with_the_reason() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let result = session::enrol(enrolment(&control, dir.path(), "no.token"), &stop).await;
    let Err(EnrolFailed::Refused(error)) = result else {
        panic!("not refused");
    };
    assert!(error.to_string().contains("join token is not known"));
    assert!(matches!(kept(dir.path()).1, Kept::Nobody));
}

#[tokio::test]
async fn an_order_is_stored_acted_on_and_answered_and_a_stale_one_is_refused() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    connected(&control).await;
    let hello = control.last_hello();
    assert_eq!(hello.node_id, NODE);
    assert_eq!(hello.boot_id, "boot-1");
    assert!(hello.capabilities.unwrap().memory_bytes > 0);

    control.send(Body::StartReplica(order("web", 5, 1))).await;
    until("answered", || results(&control).len() == 1).await;
    assert_eq!(agent.workloads.last(), Some(vec![("web".into(), 5, false)]));
    control.send(Body::StartReplica(order("web", 4, 2))).await;
    control.send_message(StreamMessage { body: None }).await;
    control.send(Body::StartReplica(order("web", 6, 3))).await;
    until("answered", || results(&control).len() == 3).await;
    let answers = results(&control);
    assert_eq!(answers[0], (1, true, String::new()));
    assert!(!answers[1].1 && answers[1].2.contains("start_replica.generation"));
    assert_eq!(answers[2], (3, true, String::new()));
    assert_eq!(agent.workloads.last(), Some(vec![("web".into(), 6, false)]));
    until("refusal is an event", || {
        events(&control).iter().any(|e| e.1 == "OrderRefused")
    })
    .await;

    let stop = StopReplica {
        key: Some(key("web")),
        generation: 6,
        grace_seconds: 0,
        command_id: 4,
    };
    control.send(Body::StopReplica(stop)).await;
    until("answered", || results(&control).len() == 4).await;
    assert_eq!(agent.workloads.last(), Some(vec![]));
    agent.stop().await;
    let store = Store::open(dir.path(), true).unwrap();
    assert!(store.desired().is_empty());
    let replica = convert::replica_key("", Some(&key("web"))).unwrap();
    assert_eq!(store.highest(&replica), 6);
}

#[tokio::test]
async fn a_bad_pod_is_refused_by_field_and_the_session_goes_on() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    connected(&control).await;
    let mut bad = order("web", 1, 1);
    bad.pod.as_mut().unwrap().containers.clear();
    control.send(Body::StartReplica(bad)).await;
    control.send(Body::StartReplica(order("good", 1, 2))).await;
    until("answered", || results(&control).len() == 2).await;
    let answers = results(&control);
    assert!(answers[0].2.contains("start_replica.pod.containers"));
    assert!(answers[1].1);
    agent.stop().await;
}

#[tokio::test]
async fn events_come_in_order_until_they_are_acknowledged() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    control.state.ack_events.store(false, Ordering::SeqCst);
    let agent = Agent::start(dir.path(), &control, identity.clone(), "boot-1");
    connected(&control).await;
    for reason in ["A", "B", "C"] {
        agent.event(reason).await;
    }
    until("three events", || events(&control).len() == 3).await;
    let first = events(&control);
    control.cut().await;
    until("again", || events(&control).len() == 6).await;
    assert_eq!(events(&control)[3..], first[..]);
    agent.stop().await;

    // Over a restart of the agent, too; acknowledged now.
    control.state.ack_events.store(true, Ordering::SeqCst);
    let agent = Agent::start(dir.path(), &control, identity, "boot-2");
    until("again", || events(&control).len() == 9).await;
    assert_eq!(events(&control)[6..], first[..]);
    agent.event("D").await;
    until("acknowledged ones do not come again", || {
        events(&control).len() == 10
    })
    .await;
    control.cut().await;
    agent.event("E").await;
    until("the last", || {
        events(&control).last().is_some_and(|e| e.1 == "E")
    })
    .await;
    let all = events(&control);
    assert!(all.len() <= 12, "A to C came again: {all:?}");
    assert!(all[all.len() - 1].0 > first[2].0, "ids grow");
    agent.stop().await;
}

#[tokio::test]
async fn a_start_without_network_starts_what_the_store_says() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    left_behind(dir.path(), &[("job", 2), ("web", 7)]);
    let mut away = Control::start();
    away.addr = "127.0.0.1:9".parse().unwrap();
    let agent = Agent::start(dir.path(), &away, identity, "boot-1");
    until("told", || !agent.workloads.calls().is_empty()).await;
    assert_eq!(
        agent.workloads.calls()[0],
        [("job".into(), 2, false), ("web".into(), 7, false)]
    );
    assert_ne!(agent.status.mode(), Mode::Connected);
    assert_eq!(control.hellos(), 0);
    agent.stop().await;
}

#[tokio::test]
async fn a_node_that_cant_say_who_it_is_runs_what_it_holds_and_connects_to_nobody() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    left_behind(dir.path(), &[("web", 7)]);
    let without_key = Identity {
        key_der: Vec::new(),
        ..identity
    };
    let mut link = LinkConfig::new(control.target());
    link.kept_out = Some("no key".to_owned());
    let workloads = Recording::default();
    let agent = Agent::start_on(dir.path(), link, without_key, "boot-1", workloads);
    until("kept out", || agent.status.mode() == Mode::Refused).await;
    assert_eq!(agent.status.reason(), "no key");
    assert_eq!(agent.workloads.calls()[0], [("web".to_owned(), 7, false)]);
    assert_eq!(control.hellos(), 0);
    agent.stop().await;
}

#[tokio::test]
async fn a_reconnect_changes_nothing_and_tells_what_is_held() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    left_behind(dir.path(), &[("web", 7)]);
    control.set_welcome(vec![order("web", 7, 0)], true);
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    agent.report("web", 7, ReplicaPhase::Running).await;
    connected(&control).await;
    for _ in 0..3 {
        control.cut().await;
    }
    for hello in control.state.hellos.lock().unwrap().iter() {
        assert_eq!(hello.boot_id, "boot-1");
        assert_eq!(hello.replicas.len(), 1);
        assert_eq!(hello.replicas[0].generation, 7);
        assert_eq!(hello.replicas[0].phase(), ReplicaPhase::Running);
    }
    let calls = agent.workloads.calls();
    assert!(
        calls.iter().all(|c| *c == [("web".into(), 7, false)]),
        "{calls:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn only_a_complete_welcome_stops_what_it_does_not_list() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    left_behind(dir.path(), &[("kept", 1), ("old", 1)]);
    control.set_welcome(vec![order("kept", 1, 0), order("new", 1, 0)], false);
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    until("the new one is told", || {
        agent.workloads.last().is_some_and(|l| l.len() == 3)
    })
    .await;
    control.set_welcome(vec![order("kept", 1, 0), order("new", 1, 0)], true);
    control.cut().await;
    let rest = vec![("kept".to_owned(), 1, false), ("new".to_owned(), 1, false)];
    until("the old one is gone", || {
        agent.workloads.last().as_ref() == Some(&rest)
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_lost_store_stops_nothing_until_the_control_plane_has_told_the_whole() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    std::fs::write(dir.path().join(store::FILE), [7_u8; 9000]).unwrap();
    control.set_welcome(vec![order("web", 3, 0)], false);
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    connected(&control).await;
    control.send(Body::StartReplica(order("more", 1, 1))).await;
    until("answered", || results(&control).len() == 1).await;
    assert!(agent.workloads.calls().is_empty(), "nothing is told yet");
    control.set_welcome(vec![order("web", 3, 0), order("more", 1, 0)], true);
    control.cut().await;
    until("told", || {
        agent.workloads.last().is_some_and(|l| l.len() == 2)
    })
    .await;
    until("reported", || {
        events(&control).iter().any(|e| e.1 == "StoreRebuilt")
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_finished_job_stays_finished_over_a_restart_and_a_new_generation() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    control.set_welcome(vec![order("job", 1, 0)], true);
    let agent = Agent::start(dir.path(), &control, identity.clone(), "boot-1");
    until("told", || {
        agent.workloads.last() == Some(vec![("job".into(), 1, false)])
    })
    .await;
    agent.report("job", 1, ReplicaPhase::Succeeded).await;
    let done = vec![("job".to_owned(), 1, true)];
    until("finished", || {
        agent.workloads.last().as_ref() == Some(&done)
    })
    .await;
    until("reported", || {
        phases(&control, "job").contains(&(1, ReplicaPhase::Succeeded))
    })
    .await;
    agent.stop().await;
    control.set_welcome(vec![order("job", 2, 0)], true);
    let agent = Agent::start(dir.path(), &control, identity, "boot-2");
    until("told", || agent.workloads.calls().len() >= 2).await;
    assert_eq!(agent.workloads.calls()[0], done);
    assert_eq!(agent.workloads.last(), Some(vec![("job".into(), 2, true)]));
    agent.stop().await;
}

#[tokio::test]
async fn reports_follow_changes_and_survive_a_cut() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    connected(&control).await;
    control.send(Body::StartReplica(order("web", 1, 1))).await;
    until("told", || {
        agent.workloads.last().is_some_and(|l| l.len() == 1)
    })
    .await;
    agent.report("web", 1, ReplicaPhase::Running).await;
    until("running", || {
        phases(&control, "web").last() == Some(&(1, ReplicaPhase::Running))
    })
    .await;
    control.set_welcome(vec![], true);
    control.cut().await;
    until("told", || agent.workloads.last() == Some(vec![])).await;
    agent.report("web", 1, ReplicaPhase::Stopped).await;
    until("stopped", || {
        phases(&control, "web").last() == Some(&(1, ReplicaPhase::Stopped))
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_stop_of_what_is_not_here_is_reported_as_stopped() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    connected(&control).await;
    let stop = StopReplica {
        key: Some(key("ghost")),
        generation: 3,
        grace_seconds: 0,
        command_id: 1,
    };
    control.send(Body::StopReplica(stop)).await;
    until("reported", || {
        phases(&control, "ghost") == [(3, ReplicaPhase::Stopped)]
    })
    .await;
    agent.stop().await;
}

#[tokio::test]
async fn a_drained_node_refuses_new_replicas() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    connected(&control).await;
    control.send(Body::Drain(Drain { command_id: 1 })).await;
    control.send(Body::StartReplica(order("web", 1, 2))).await;
    until("answered", || results(&control).len() == 2).await;
    let answers = results(&control);
    assert!(answers.iter().any(|a| a.0 == 1 && a.1));
    assert!(answers.iter().any(|a| a.0 == 2 && a.2.contains("drained")));
    agent.stop().await;
}

#[tokio::test]
async fn telemetry_flows_with_growing_numbers() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    let agent = Agent::start(dir.path(), &control, identity, "boot-1");
    let telemetry = || {
        control.received(|body| match body {
            Body::Telemetry(t) => Some(t.clone()),
            _ => None,
        })
    };
    until("five messages", || telemetry().len() >= 5).await;
    let got = telemetry();
    for pair in got.windows(2) {
        assert_eq!(pair[1].sequence, pair[0].sequence + 1);
        assert!(pair[1].uptime_ms >= pair[0].uptime_ms);
    }
    assert!(got.iter().all(|t| convert::telemetry(t).is_ok()));
    assert!(got[4].memory_used_bytes > 0);
    assert!(got[4].network_status.unwrap().control_rtt_ms > 0.0);
    agent.stop().await;
}

#[tokio::test]
async fn logs_come_in_order_and_whole_and_a_followed_request_can_be_cancelled() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let identity = enrolled(&control, dir.path()).await;
    let workloads = Recording::default();
    let text: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    *workloads.log.lock().unwrap() = text.clone();
    let agent = Agent::start_with(dir.path(), &control, identity, "boot-1", workloads);
    connected(&control).await;
    let chunks = |id: u64| {
        control.received(|body| match body {
            Body::LogChunk(c) if c.request_id == id => Some(c.clone()),
            _ => None,
        })
    };
    let fetch = |request_id: u64, workload: &str| FetchLogs {
        request_id,
        key: Some(key(workload)),
        ..FetchLogs::default()
    };
    control.send(Body::FetchLogs(fetch(1, "web"))).await;
    until("the end", || chunks(1).last().is_some_and(|c| c.end)).await;
    let got: Vec<u8> = chunks(1).into_iter().flat_map(|c| c.data).collect();
    assert!(got == text, "{} of {} bytes", got.len(), text.len());

    control.send(Body::FetchLogs(fetch(2, "none"))).await;
    until("the error", || chunks(2).last().is_some_and(|c| c.end)).await;
    assert!(chunks(2)[0].error.contains("default/none/0"));

    *agent.workloads.log.lock().unwrap() = b"tail".to_vec();
    let followed = FetchLogs {
        follow: true,
        ..fetch(3, "web")
    };
    control.send(Body::FetchLogs(followed.clone())).await;
    until("the tail", || !chunks(3).is_empty()).await;
    control.send(Body::FetchLogs(followed)).await;
    until("a second request of the same id is refused", || {
        chunks(3)
            .last()
            .is_some_and(|c| c.error.contains("request_id"))
    })
    .await;
    let cancel = FetchLogs {
        cancel: true,
        ..fetch(3, "web")
    };
    control.send(Body::FetchLogs(cancel)).await;
    control.send(Body::FetchLogs(fetch(3, "web"))).await;
    until("the id is free again", || {
        chunks(3)
            .last()
            .is_some_and(|c| c.end && c.error.is_empty())
    })
    .await;
    agent.stop().await;
}
