use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperion_autonomy::Mode;
use hyperion_proto::agent_v1::{
    BundleKind, CountedConstraint, Intent, NodeCapabilities, RecordState, ReplicaPhase,
    ReplicaRecord, ReplicaReport, SiteExplanation, Slot, SlotState, UpdatePhase, UpdateProgress,
};
use hyperion_proto::peer_v1::{Apply, HeldReplica, Load, NodeRecord};
use prost::Message;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::testing::order;

/// A record as the command line makes it.
fn applied(workload: &str, index: u32) -> ReplicaRecord {
    let order = order(workload, index, 1);
    let mut key = order.key.unwrap();
    key.workload_uid = "site-0a1b".to_owned();
    ReplicaRecord {
        key: Some(key),
        pod: order.pod,
        intent: Some(Intent {
            workload_type: "service".to_owned(),
            goal: "default".to_owned(),
            manifest: "{\"kind\":\"HyperionWorkload\"}".to_owned(),
            ..Intent::default()
        }),
        ..ReplicaRecord::default()
    }
}

fn member(id: &str, state: MemberState, heard: Option<u64>) -> MemberView {
    MemberView {
        id: id.to_owned(),
        record: heard.map(|_| NodeRecord {
            node_id: id.to_owned(),
            mode: "autonomous".to_owned(),
            accepts: true,
            capabilities: Some(NodeCapabilities {
                memory_bytes: 8 << 30,
                ..NodeCapabilities::default()
            }),
            load: Some(Load {
                cpu_percent: 35,
                memory_used_bytes: 3 << 30,
                max_celsius: 61.0,
                throttled: false,
            }),
            held: vec![HeldReplica {
                key: order("shop", 0, 1).key,
                generation: 4,
                phase: ReplicaPhase::Running.into(),
                ready: true,
            }],
            addresses: vec!["10.0.0.2:7447".to_owned()],
            policy_hash: "ab12".to_owned(),
            agent_version: "0.1.0".to_owned(),
            ..NodeRecord::default()
        }),
        state,
        heard: heard.map(Duration::from_millis),
    }
}

/// A site that has seen everything.
fn view() -> SiteView {
    let mut moved = ReplicaRecord {
        key: order("shop", 0, 1).key,
        generation: 4,
        decider: "edge-2".to_owned(),
        state: RecordState::Placed.into(),
        node: "edge-2".to_owned(),
        intent: applied("shop", 0).intent,
        explanation: Some(SiteExplanation {
            cause: "node edge-3 is dead".to_owned(),
            scorer: "rules".to_owned(),
            ..SiteExplanation::default()
        }),
        ..ReplicaRecord::default()
    };
    moved.intent.as_mut().unwrap().manifest.clear();
    let ordered = ReplicaRecord {
        key: order("cam", 0, 1).key,
        generation: 1,
        state: RecordState::Placed.into(),
        node: "edge-1".to_owned(),
        taken: true,
        ..ReplicaRecord::default()
    };
    let waiting = ReplicaRecord {
        generation: 1,
        decider: "edge-1".to_owned(),
        state: RecordState::Pending.into(),
        explanation: Some(SiteExplanation {
            cause: "applied at the site".to_owned(),
            scorer: "rules".to_owned(),
            rejected: vec![CountedConstraint {
                constraint: "memory".to_owned(),
                count: 2,
            }],
            ..SiteExplanation::default()
        }),
        ..applied("big", 0)
    };
    let ended = ReplicaRecord {
        key: order("batch", 0, 1).key,
        generation: 2,
        state: RecordState::Ended.into(),
        node: "edge-1".to_owned(),
        outcome: ReplicaPhase::Succeeded.into(),
        taken: true,
        ..ReplicaRecord::default()
    };
    let removed = ReplicaRecord {
        key: order("old", 0, 1).key,
        generation: 9,
        state: RecordState::Removed.into(),
        ..ReplicaRecord::default()
    };
    SiteView {
        node: "edge-1".to_owned(),
        site: "lab".to_owned(),
        mode: Mode::Autonomous,
        mode_for: Duration::from_secs(61),
        why: "no link at the site for 5 s".to_owned(),
        policy: "ab12".to_owned(),
        untaken: 2,
        members: vec![
            member("edge-3", MemberState::Dead, Some(64_000)),
            member("edge-1", MemberState::Alive, Some(0)),
            member("edge-2", MemberState::Alive, Some(900)),
            member("edge-4", MemberState::Unknown, None),
        ],
        records: vec![moved, ordered, waiting, ended, removed],
        reports: vec![ReplicaReport {
            key: order("cam", 0, 1).key,
            generation: 1,
            phase: ReplicaPhase::Backoff.into(),
            ..ReplicaReport::default()
        }],
        problems: vec!["the store is not on disk: No space left on device".to_owned()],
    }
}

fn updating() -> UpdateState {
    UpdateState {
        machine: "board".to_owned(),
        system_version: "1.0.0".to_owned(),
        slots: vec![Slot {
            name: "A".to_owned(),
            version: "1.0.0".to_owned(),
            state: SlotState::Good.into(),
            running: true,
        }],
        progress: Some(UpdateProgress {
            order_id: "u1".to_owned(),
            phase: UpdatePhase::RolledBack.into(),
            reason: "NotReady".to_owned(),
            message: "not Ready within 60 s".to_owned(),
            version: "2.0.0".to_owned(),
            percent: 0,
        }),
    }
}

/// What a fake node was asked for.
#[derive(Default)]
struct Asked {
    installed: Vec<UpdateOrder>,
    applied: Vec<ReplicaRecord>,
    deleted: Vec<String>,
}

struct Site {
    dir: TempDir,
    asked: Arc<Mutex<Asked>>,
    stop: CancellationToken,
}

impl Site {
    /// Serves a node in `mode` that takes everything but workloads called "refused".
    fn start(mode: Mode) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = bind(&dir.path().join("run/agent.sock")).unwrap();
        let (sender, mut requests) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let asked = Arc::new(Mutex::new(Asked::default()));
        tokio::spawn(serve(listener, sender, stop.clone()));
        let seen = asked.clone();
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                match request {
                    LocalRequest::Status(answer) => {
                        let view = SiteView { mode, ..view() };
                        let _ = answer.send(view.into());
                    }
                    LocalRequest::Apply { records, answer } => {
                        let name = records[0].key.clone().unwrap().workload;
                        let refused = Err("made by the control plane".to_owned());
                        let taken = if name == "refused" { refused } else { Ok(()) };
                        seen.lock().unwrap().applied.extend(records);
                        let _ = answer.send(taken);
                    }
                    LocalRequest::Update(answer) => {
                        let _ = answer.send(Some(updating()));
                    }
                    LocalRequest::Install { order, answer } => {
                        let mut seen = seen.lock().unwrap();
                        let busy = !seen.installed.is_empty();
                        seen.installed.push(*order);
                        let _ = answer.send(if busy { Err("busy".to_owned()) } else { Ok(()) });
                    }
                    LocalRequest::Delete {
                        namespace,
                        workload,
                        answer,
                    } => {
                        let name = format!("{namespace}/{workload}");
                        seen.lock().unwrap().deleted.push(name);
                        let _ = answer.send(Ok(()));
                    }
                }
            }
        });
        Self { dir, asked, stop }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/agent.sock")
    }

    async fn raw(&self, request: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).await.unwrap();
        // The server may answer, and close, before it has read all.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let code = answer.split(' ').nth(1).and_then(|c| c.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (code.unwrap_or(0), body.to_owned())
    }

    async fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, Value) {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        let (code, body) = self.raw(&request).await;
        (code, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    async fn apply(&self, records: Vec<ReplicaRecord>) -> (u16, Value) {
        let body = Apply { records }.encode_to_vec();
        self.ask("POST", "/v1/apply", &body).await
    }
}

/// The sample is what the command line's tests read: both sides agree on it.
#[test]
fn the_status_is_the_documented_sample() {
    let status = SiteStatus {
        agent_version: "0.1.0".to_owned(),
        ..view().into()
    };
    let got = serde_json::to_string_pretty(&status).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/local/sample.json");
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    if got != kept {
        let fresh = std::env::temp_dir().join("hyperion-site-sample.json");
        std::fs::write(&fresh, got).unwrap();
        panic!(
            "{} differs; what it should be is in {}",
            path.display(),
            fresh.display()
        );
    }
}

#[tokio::test]
async fn the_socket_is_for_its_owner_and_shows_the_site() {
    let site = Site::start(Mode::Suspect);
    let mode = site.socket().metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (code, body) = site.ask("GET", "/v1/site", b"").await;
    assert_eq!((code, body["mode"].as_str()), (200, Some("suspect")));
    assert_eq!(body["replicas"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn a_workload_goes_to_the_node_and_is_deleted_again() {
    let site = Site::start(Mode::Autonomous);
    let (code, body) = site.apply(vec![applied("web", 0), applied("web", 1)]).await;
    assert_eq!((code, body["replicas"].as_u64()), (200, Some(2)), "{body}");
    assert_eq!(site.asked.lock().unwrap().applied.len(), 2);
    let (code, body) = site.ask("DELETE", "/v1/workloads/default/big", b"").await;
    assert_eq!(code, 200, "{body}");
    assert_eq!(site.asked.lock().unwrap().deleted, ["default/big"]);
    let (code, body) = site.ask("DELETE", "/v1/workloads/default/no", b"").await;
    assert_eq!(code, 404, "{body}");
    // What the node itself refuses is told as it says it.
    let (code, body) = site.apply(vec![applied("refused", 0)]).await;
    let said = body["error"].as_str();
    assert_eq!((code, said), (409, Some("made by the control plane")));
}

#[tokio::test]
async fn only_a_site_that_is_cut_off_takes_orders_of_people() {
    for (mode, advice) in [
        (Mode::Connected, "kubectl"),
        (Mode::Reconciling, "kubectl"),
        (Mode::Suspect, "try again"),
    ] {
        let site = Site::start(mode);
        let (code, body) = site.apply(vec![applied("web", 0)]).await;
        assert_eq!(code, 409);
        let said = body["error"].as_str().unwrap();
        assert!(
            said.contains(mode.as_str()) && said.contains(advice),
            "{said}"
        );
        let (code, _) = site.ask("DELETE", "/v1/workloads/default/big", b"").await;
        assert_eq!(code, 409);
        let asked = site.asked.lock().unwrap();
        assert!(asked.applied.is_empty() && asked.deleted.is_empty());
    }
}

#[tokio::test]
async fn every_refused_record_names_its_field() {
    let site = Site::start(Mode::Autonomous);
    type Spoil = fn(&mut ReplicaRecord);
    let cases: [(&str, Spoil); 15] = [
        ("records[0].generation", |r| r.generation = 3),
        ("records[0].decider", |r| r.decider = "edge-9".to_owned()),
        ("records[0].state", |r| r.state = 1),
        ("records[0].node", |r| r.node = "edge-9".to_owned()),
        ("records[0].taken", |r| r.taken = true),
        ("records[0].intent", |r| r.intent = None),
        ("records[0].intent.goal", |r| {
            r.intent.as_mut().unwrap().goal = "fast".to_owned();
        }),
        ("records[0].intent.manifest", |r| {
            r.intent.as_mut().unwrap().manifest.clear();
        }),
        ("records[0].intent.manifest", |r| {
            r.intent.as_mut().unwrap().manifest = "[1]".to_owned();
        }),
        ("records[0].pod", |r| r.pod = None),
        ("records[0].pod.containers[0].name", |r| {
            r.pod.as_mut().unwrap().containers[0].name = "../x".to_owned();
        }),
        ("records[0].key", |r| r.key = None),
        ("records[0].key.workload", |r| {
            r.key.as_mut().unwrap().workload = "a/b".to_owned();
        }),
        ("records[0].key.workload_uid", |r| {
            r.key.as_mut().unwrap().workload_uid = "8d3f".to_owned();
        }),
        ("records[0].key.index", |r| {
            r.key.as_mut().unwrap().index = 1;
        }),
    ];
    for (field, spoil) in cases {
        let mut record = applied("web", 0);
        spoil(&mut record);
        let (code, body) = site.apply(vec![record]).await;
        assert_eq!((code, body["field"].as_str()), (422, Some(field)), "{body}");
        assert!(body["error"].as_str().unwrap().starts_with(field), "{body}");
    }
    let (code, body) = site.apply(vec![applied("a", 0), applied("b", 1)]).await;
    assert_eq!(
        (code, body["field"].as_str()),
        (422, Some("records[1].key"))
    );
    let (code, body) = site.apply(Vec::new()).await;
    assert_eq!((code, body["field"].as_str()), (422, Some("records")));
    assert!(site.asked.lock().unwrap().applied.is_empty());
}

#[tokio::test]
async fn bad_requests_get_an_error_and_the_next_one_an_answer() {
    let site = Site::start(Mode::Autonomous);
    assert_eq!(site.ask("GET", "/", b"").await.0, 404);
    assert_eq!(site.ask("POST", "/v1/site", b"").await.0, 405);
    assert_eq!(site.ask("GET", "/v1/apply", b"").await.0, 405);
    assert_eq!(site.ask("POST", "/v1/apply", b"\xff\xff\xff").await.0, 400);
    for path in ["default", "default/", "/x", "a/b/c", "default/..", "A/b"] {
        let path = format!("/v1/workloads/{path}");
        assert_eq!(site.ask("DELETE", &path, b"").await.0, 400, "{path}");
    }
    let huge = b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\n";
    assert_eq!(site.raw(huge).await.0, 413);
    assert_eq!(site.raw(b"\x16\x03\x01\r\n\r\n").await.0, 400);
    assert_eq!(site.ask("GET", "/v1/site", b"").await.0, 200);
}

#[tokio::test]
async fn a_node_that_is_ending_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.sock");
    let (sender, requests) = mpsc::channel(1);
    drop(requests);
    let stop = CancellationToken::new();
    let site = Site {
        asked: Arc::default(),
        stop: stop.clone(),
        dir,
    };
    std::fs::create_dir(site.dir.path().join("run")).unwrap();
    let listener = bind(&site.socket()).unwrap();
    let server = tokio::spawn(serve(listener, sender, stop));
    let (code, body) = site.ask("GET", "/v1/site", b"").await;
    assert_eq!(
        (code, body["error"].as_str()),
        (503, Some("the agent is ending"))
    );
    site.stop.cancel();
    server.await.unwrap();
    assert!(!site.socket().exists() && !path.exists());
}

#[tokio::test]
async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
    let site = Site::start(Mode::Suspect);
    let error = bind(&site.socket()).unwrap_err();
    assert!(error.ends_with("in use by another agent"), "{error}");
    let dead = site.dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(dead.exists());
    assert_eq!(bind(&dead).unwrap().path(), dead);
    let file = site.dir.path().join("file");
    std::fs::write(&file, "kept").unwrap();
    let error = bind(&file).unwrap_err();
    assert!(error.starts_with(&*file.to_string_lossy()), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn the_flag_takes_a_path_or_off() {
    assert_eq!(parse_socket("off"), Ok(LocalSocket::Off));
    let at = LocalSocket::At(DEFAULT_SOCKET.into());
    assert_eq!(parse_socket(DEFAULT_SOCKET), Ok(at));
    let long = format!("/{}", "x".repeat(107));
    for bad in ["", "agent.sock", "/run/", &long] {
        assert!(parse_socket(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn an_update_is_asked_for_and_told() {
    use crate::update::{Update, command};
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        update: Update,
    }
    let site = Site::start(Mode::Connected);
    let socket = site.socket();
    let bundle = site.dir.path().join("b.swu");
    std::fs::write(&bundle, "x").unwrap();
    let run = |line: &str| {
        let line = format!("update {line} --local-socket {}", socket.display());
        let update = Line::try_parse_from(line.split(' ')).unwrap().update;
        async move {
            let mut out = Vec::new();
            let result = command(update, &mut out).await;
            result.map(|()| String::from_utf8(out).unwrap())
        }
    };
    let text = run("status").await.unwrap();
    let expected = "machine  board\nsystem   1.0.0\nslot A   1.0.0  Good  running\n\
        update   2.0.0  RolledBack 0%\nreason   NotReady: not Ready within 60 s\n";
    assert_eq!(text, expected);
    assert!(
        run("status --json")
            .await
            .unwrap()
            .contains("\"phase\": \"RolledBack\"")
    );
    let install = format!(
        "install {} --kind agent --ready-seconds 90",
        bundle.display()
    );
    assert!(run(&install).await.unwrap().starts_with("local-"));
    let order = site.asked.lock().unwrap().installed[0].clone();
    let told = order.bundle.unwrap();
    assert_eq!(told.url, format!("file://{}", bundle.display()));
    assert_eq!(told.kind(), BundleKind::Agent);
    assert_eq!((order.activate, order.ready_seconds), (true, 90));
    let error = format!("{:#}", run(&install).await.unwrap_err());
    assert!(
        error.contains("busy") && error.contains("agent.sock"),
        "{error}"
    );
    let error = format!("{:#}", run("install /nowhere.swu").await.unwrap_err());
    assert!(error.contains("/nowhere.swu"), "{error}");
    for bad in [
        "",
        "{}",
        "{\"file\":\"b.swu\"}",
        "{\"file\":\"/b\",\"kind\":\"kernel\"}",
        "{\"file\":\"/b\",\"readySeconds\":-1}",
        "{\"file\":\"/b\",\"more\":1}",
    ] {
        let (code, answer) = site.ask("POST", "/v1/update", bad.as_bytes()).await;
        assert!(code == 400 || code == 422, "{bad}: {code} {answer}");
    }
    let long = format!("{{\"file\":\"/{}\"}}", "b".repeat(16 << 10));
    let (code, answer) = site.ask("POST", "/v1/update", long.as_bytes()).await;
    assert_eq!(code, 413, "{answer}");
    assert_eq!(answer["error"], "body: larger than 16 KiB");
    let (code, _) = site.ask("DELETE", "/v1/update", b"").await;
    assert_eq!(code, 405);
}
