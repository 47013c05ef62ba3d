//! The supervisor against a real containerd.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests"
)]

mod runtime_support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use hyperion_agent::reset::{self, Reset};
use hyperion_agent::runtime::import_oci_tar;
use hyperion_agent::supervisor::{LogError, LogQuery, RuntimeState};
use hyperion_proto::agent_v1::probe::Handler;
use hyperion_proto::agent_v1::{
    EnvVar, ExecAction, HttpGet, Probe, PullPolicy, ReplicaPhase, RestartPolicy,
};
use runtime_support::fixture::{Fixture, desired, forever, key, pod, shell};
use runtime_support::{Containerd, missing, shared};

macro_rules! needs_containerd {
    () => {
        if let Some(reason) = missing() {
            println!("SKIPPED: {reason}");
            return;
        }
    };
}

#[tokio::test]
async fn a_replica_runs_and_its_removal_leaves_nothing() {
    needs_containerd!();
    let f = Fixture::new(shared(), "run");
    let key = key("web");
    f.until_runtime("containerd answers", |s| {
        matches!(s, RuntimeState::Available { .. })
    })
    .await;
    let begun = Instant::now();
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    let report = f.until_running(&key).await;
    println!("from desired to running: {:?}", begun.elapsed());
    assert_eq!(report.restarts, 0);
    assert!(report.pod_ip.starts_with("198.18."), "{}", report.pod_ip);
    assert_eq!(report.container_ids.len(), 1);
    f.supervisor.set_desired(Vec::new());
    let begun = Instant::now();
    while !f.cri.sandboxes(&f.node).await.unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    f.finish_phases(&key).await;
    assert!(f.cri.containers(&f.node).await.unwrap().is_empty());
    assert!(
        !f.containerd
            .dir
            .join("pods/run")
            .join("default_web-0_uid-web")
            .exists()
    );
    f.finish().await;
}

impl Fixture {
    async fn finish_phases(&self, key: &hyperion_proto::domain::ReplicaKey) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let expected = [
            ReplicaPhase::Starting,
            ReplicaPhase::Running,
            ReplicaPhase::Stopping,
            ReplicaPhase::Stopped,
        ];
        while self.phases(key) != expected {
            assert!(Instant::now() < deadline, "{:?}", self.phases(key));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn a_killed_supervisor_is_followed_by_one_that_restarts_nothing() {
    needs_containerd!();
    let f = Fixture::new(shared(), "adopt");
    let key = key("web");
    let pod = pod(forever());
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod.clone())]);
    let before = f.until_running(&key).await;
    let status = f.cri.container_status(&before.container_ids[0]).await;
    let started = status.unwrap().started_at;
    let next = Fixture::new(f.crash().await, "adopt");
    // A higher generation of the same pod is no reason to restart either.
    next.supervisor.set_desired(vec![desired(&key, 7, pod)]);
    let after = next.until_running(&key).await;
    assert_eq!(after.container_ids, before.container_ids);
    assert_eq!(after.pod_ip, before.pod_ip);
    assert_eq!((after.restarts, after.generation), (0, 7));
    let status = next.cri.container_status(&after.container_ids[0]).await;
    assert_eq!(status.unwrap().started_at, started);
    assert_eq!(next.cri.containers("adopt").await.unwrap().len(), 1);
    next.finish().await;
}

#[tokio::test]
async fn nothing_is_stopped_before_the_desired_state_is_told() {
    needs_containerd!();
    let f = Fixture::new(shared(), "untold");
    let key = key("web");
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    let before = f.until_running(&key).await;
    let next = Fixture::new(f.crash().await, "untold");
    next.until_runtime("containerd answers", |s| {
        matches!(s, RuntimeState::Available { .. })
    })
    .await;
    // Long enough for several looks.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = next.cri.container_status(&before.container_ids[0]).await;
    assert_eq!(status.unwrap().finished_at, 0);
    next.finish().await;
}

#[tokio::test]
async fn a_container_that_keeps_ending_is_restarted_with_growing_waits() {
    needs_containerd!();
    let f = Fixture::new(shared(), "crash");
    let key = key("bad");
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(shell("echo I try; exit 3")))]);
    let report = f
        .until(&key, "three restarts and a wait", |r| {
            r.restarts >= 3 && r.phase() == ReplicaPhase::Backoff
        })
        .await;
    assert_eq!(report.exit_code, 3);
    assert_eq!(report.reason, "CrashLoop");
    assert!(report.message.contains("exit code 3"), "{}", report.message);
    assert!(!report.ready);
    // One running or dead start and the one before it; older ones are cleared away.
    f.until(&key, "old starts are removed", |r| r.restarts >= 4)
        .await;
    assert!(f.cri.containers("crash").await.unwrap().len() <= 3);
    assert!(f.reasons().contains(&"Crashed".to_owned()));
    f.finish().await;
}

#[tokio::test]
async fn restart_policies_decide_how_a_replica_ends() {
    needs_containerd!();
    let f = Fixture::new(shared(), "policy");
    let job = |name: &str, script: &str, policy: RestartPolicy| {
        let mut pod = pod(shell(script));
        pod.restart_policy = policy.into();
        desired(&key(name), 1, pod)
    };
    f.supervisor.set_desired(vec![
        job("good", "exit 0", RestartPolicy::OnFailure),
        job("bad", "exit 4", RestartPolicy::Never),
        job("again", "exit 5", RestartPolicy::OnFailure),
        job("nothere", "true", RestartPolicy::Never),
    ]);
    let good = f
        .until(&key("good"), "ended", |r| {
            r.phase() == ReplicaPhase::Succeeded
        })
        .await;
    assert_eq!((good.restarts, good.exit_code), (0, 0));
    let bad = f
        .until(&key("bad"), "failed", |r| r.phase() == ReplicaPhase::Failed)
        .await;
    assert_eq!((bad.restarts, bad.exit_code), (0, 4));
    assert_eq!(bad.reason, "Error");
    f.until(&key("again"), "restarted", |r| r.restarts >= 2)
        .await;
    // A job that ended is not started again by the next agent.
    let next = Fixture::new(f.crash().await, "policy");
    next.supervisor
        .set_desired(vec![job("good", "exit 0", RestartPolicy::OnFailure)]);
    let good = next
        .until(&key("good"), "still ended", |r| {
            r.phase() == ReplicaPhase::Succeeded
        })
        .await;
    assert_eq!(good.restarts, 0);
    next.finish().await;
}

#[tokio::test]
async fn bad_images_and_commands_are_named_and_cost_the_others_nothing() {
    needs_containerd!();
    let f = Fixture::new(shared(), "bad");
    let (missing, never, command, good) =
        (key("missing"), key("never"), key("command"), key("good"));
    let mut absent = forever();
    absent.image = "127.0.0.1:1/nobody/nothing:1".into();
    let mut kept = absent.clone();
    kept.pull_policy = PullPolicy::Never.into();
    let mut wrong = forever();
    wrong.command = vec!["/bin/nonesuch".into()];
    let mut job = pod(wrong.clone());
    job.restart_policy = RestartPolicy::Never.into();
    f.supervisor.set_desired(vec![
        desired(&missing, 1, pod(absent)),
        desired(&never, 1, pod(kept)),
        desired(&command, 1, job),
        desired(&good, 1, pod(forever())),
    ]);
    for k in [&missing, &never] {
        let report = f
            .until(k, "failed pull", |r| {
                r.phase() == ReplicaPhase::Backoff && r.reason == "ImagePullFailed"
            })
            .await;
        assert!(
            report.message.contains("127.0.0.1:1/nobody/nothing:1"),
            "{}",
            report.message
        );
    }
    let report = f
        .until(&command, "failed start", |r| {
            r.phase() == ReplicaPhase::Failed
        })
        .await;
    assert_eq!(report.reason, "StartFailed");
    assert!(
        report.message.contains("/bin/nonesuch"),
        "{}",
        report.message
    );
    f.until_running(&good).await;
    f.finish().await;
}

#[tokio::test]
async fn readiness_follows_the_probe() {
    needs_containerd!();
    let f = Fixture::new(shared(), "ready");
    let key = key("web");
    let mut web = shell(
        "trap 'exit 0' TERM; mkdir /www; httpd -p 8080 -h /www; while :; do sleep 1 & wait; done",
    );
    web.readiness = Some(Probe {
        handler: Some(Handler::HttpGet(HttpGet {
            path: "/ok".into(),
            port: 8080,
            ..Default::default()
        })),
        period_seconds: 1,
        failure_threshold: 1,
        ..Default::default()
    });
    f.supervisor.set_desired(vec![desired(&key, 1, pod(web))]);
    let report = f
        .until(&key, "running, not ready", |r| {
            r.phase() == ReplicaPhase::Running && r.message.contains("404")
        })
        .await;
    assert!(!report.ready);
    assert_eq!(report.reason, "NotReady");
    let container = report.container_ids[0].clone();
    let run = async |command: &str| {
        let command: Vec<_> = command.split(' ').map(str::to_owned).collect();
        let done = f
            .cri
            .exec(&container, &command, Duration::from_secs(10))
            .await;
        assert_eq!(done.unwrap().exit_code, 0);
    };
    run("touch /www/ok").await;
    f.until_running(&key).await;
    run("rm /www/ok").await;
    let report = f
        .until(&key, "not ready again", |r| {
            r.phase() == ReplicaPhase::Running && !r.ready
        })
        .await;
    assert_eq!(report.restarts, 0);
    assert!(f.reasons().contains(&"NotReady".to_owned()));
    f.finish().await;
}

#[tokio::test]
async fn a_dead_container_is_restarted_by_its_exec_probe() {
    needs_containerd!();
    let f = Fixture::new(shared(), "live");
    let key = key("web");
    // Dies once: the second start finds no file to remove.
    let mut web = shell(
        "trap 'exit 0' TERM; touch /tmp/alive; sleep 2 & wait; rm /tmp/alive; \
                         while :; do sleep 1 & wait; done",
    );
    web.liveness = Some(Probe {
        handler: Some(Handler::Exec(ExecAction {
            command: vec!["test".into(), "-e".into(), "/tmp/alive".into()],
        })),
        initial_delay_seconds: 1,
        period_seconds: 1,
        failure_threshold: 2,
        ..Default::default()
    });
    f.supervisor.set_desired(vec![desired(&key, 1, pod(web))]);
    let first = f.until_running(&key).await;
    let report = f.until(&key, "restarted", |r| r.restarts == 1).await;
    assert_ne!(report.container_ids, first.container_ids);
    assert_eq!(report.pod_ip, first.pod_ip, "the sandbox stays");
    assert_eq!(report.reason, "LivenessFailed");
    assert!(f.reasons().contains(&"LivenessFailed".to_owned()));
    f.finish().await;
}

#[tokio::test]
async fn limits_environment_and_folder_reach_the_container() {
    needs_containerd!();
    let f = Fixture::new(shared(), "limits");
    let key = key("web");
    let mut web = shell("echo $COLOUR $(pwd) $(hostname); sleep 1000");
    web.memory_limit_bytes = 48 << 20;
    web.cpu_limit_millis = 500;
    web.cpu_request_millis = 250;
    web.working_dir = "/tmp".into();
    web.env = vec![EnvVar {
        name: "COLOUR".into(),
        value: "red green".into(),
    }];
    let mut pod = pod(web);
    pod.termination_grace_period_seconds = 1;
    f.supervisor.set_desired(vec![desired(&key, 1, pod)]);
    let report = f.until_running(&key).await;
    let text = logs(&f, query(&key, 0, false)).await;
    assert_eq!(text, "red green /tmp web-0\n");
    let info = f
        .containerd
        .ctr(&["container", "info", &report.container_ids[0]])
        .unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let path = info["Spec"]["linux"]["cgroupsPath"].as_str().unwrap();
    let read = |v1: &str, v2: &str| {
        std::fs::read_to_string(format!(
            "/sys/fs/cgroup/{}{path}/{}",
            v1.split_once(':').unwrap().0,
            v1.split_once(':').unwrap().1
        ))
        .or_else(|_| std::fs::read_to_string(format!("/sys/fs/cgroup{path}/{v2}")))
        .unwrap()
        .trim()
        .to_owned()
    };
    let memory = read("memory:memory.limit_in_bytes", "memory.max");
    assert_eq!(memory, (48u64 << 20).to_string());
    let quota = read("cpu:cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    f.finish().await;
}

#[tokio::test]
async fn memory_beyond_the_limit_is_told_as_such() {
    needs_containerd!();
    let f = Fixture::new(shared(), "oom");
    let key = key("hog");
    let mut hog = shell("x=x; while :; do x=$x$x; done");
    hog.memory_limit_bytes = 16 << 20;
    let mut pod = pod(hog);
    pod.restart_policy = RestartPolicy::Never.into();
    f.supervisor.set_desired(vec![desired(&key, 1, pod)]);
    let report = f
        .until(&key, "killed", |r| r.phase() == ReplicaPhase::Failed)
        .await;
    assert_eq!(
        (report.reason.as_str(), report.exit_code),
        ("OOMKilled", 137)
    );
    f.finish().await;
}

fn query(key: &hyperion_proto::domain::ReplicaKey, tail_lines: u32, follow: bool) -> LogQuery {
    LogQuery {
        key: key.clone(),
        container: String::new(),
        tail_lines,
        follow,
    }
}

async fn logs(f: &Fixture, query: LogQuery) -> String {
    let pieces: Vec<Result<Bytes, LogError>> = f.supervisor.logs(query).collect().await;
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|p| p.unwrap()).collect();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn logs_are_cut_to_the_tail_and_followed_over_restarts() {
    needs_containerd!();
    let f = Fixture::new(shared(), "logs");
    let (key, other) = (key("web"), key("other"));
    f.supervisor.set_desired(vec![desired(
        &key,
        1,
        pod(shell("seq 1 1000; sleep 1; echo last words; exit 1")),
    )]);
    f.until_running(&key).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while logs(&f, query(&key, 0, false)).await.lines().count() < 1000 {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(logs(&f, query(&key, 3, false)).await, "998\n999\n1000\n");
    let followed = f.supervisor.logs(query(&key, 1, true));
    let mut followed = std::pin::pin!(followed);
    let mut text = String::new();
    while text.matches("last words").count() < 2 {
        let piece = tokio::time::timeout(Duration::from_secs(10), followed.next());
        let piece = piece.await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert!(text.starts_with("1000\nlast words\n1\n2\n"), "{text:.60}");
    let unknown = f.supervisor.logs(query(&other, 0, false));
    let unknown: Vec<_> = unknown.collect().await;
    assert!(matches!(unknown[..], [Err(LogError::UnknownReplica(_))]));
    let mut wrong = query(&key, 0, false);
    wrong.container = "../../../etc".into();
    let wrong: Vec<_> = f.supervisor.logs(wrong).collect().await;
    assert!(matches!(
        wrong[..],
        [Err(LogError::UnknownContainer { .. })]
    ));
    f.finish().await;
}

#[tokio::test]
async fn a_changed_pod_replaces_the_old_one_but_only_once_its_image_is_here() {
    needs_containerd!();
    let f = Fixture::new(shared(), "change");
    let key = key("web");
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    let first = f.until_running(&key).await;
    let mut next = forever();
    next.image = "127.0.0.1:1/nobody/nothing:2".into();
    f.supervisor
        .set_desired(vec![desired(&key, 2, pod(next.clone()))]);
    f.until(&key, "failed pull", |r| r.reason == "ImagePullFailed")
        .await;
    let old = f.cri.container_status(&first.container_ids[0]).await;
    assert_eq!(old.unwrap().finished_at, 0, "the old pod goes on");
    next.image = runtime_support::BUSYBOX.into();
    next.env = vec![EnvVar {
        name: "NEW".into(),
        value: "1".into(),
    }];
    f.supervisor.set_desired(vec![desired(&key, 3, pod(next))]);
    let second = f
        .until(&key, "the new pod", |r| {
            r.generation == 3 && r.phase() == ReplicaPhase::Running
        })
        .await;
    assert_ne!(second.container_ids, first.container_ids);
    assert_eq!(second.restarts, 0);
    assert_eq!(f.cri.sandboxes("change").await.unwrap().len(), 1);
    f.finish().await;
}

#[tokio::test]
async fn containers_outlive_containerd_and_are_adopted_when_it_returns() {
    needs_containerd!();
    let containerd = Arc::new(Containerd::start());
    let f = Fixture::new(Arc::clone(&containerd), "gone");
    let (key, late) = (key("web"), key("late"));
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    let before = f.until_running(&key).await;
    containerd.kill();
    f.until_runtime(
        "containerd is gone",
        |s| matches!(s, RuntimeState::Unavailable { reason } if reason.contains("c.sock")),
    )
    .await;
    let blind = f
        .until(&key, "told so", |r| r.reason == "RuntimeUnavailable")
        .await;
    assert_eq!(blind.phase(), ReplicaPhase::Running, "the last known phase");
    f.supervisor.set_desired(vec![
        desired(&key, 1, pod(forever())),
        desired(&late, 1, pod(forever())),
    ]);
    f.until(&late, "told so", |r| r.reason == "RuntimeUnavailable")
        .await;
    containerd.launch();
    f.until_running(&late).await;
    let after = f
        .until(&key, "as before", |r| r.reason.is_empty() && r.ready)
        .await;
    assert_eq!(after.container_ids, before.container_ids);
    assert_eq!(after.restarts, 0);
    f.finish().await;
}

#[tokio::test]
async fn after_a_power_cut_replicas_start_from_the_local_image() {
    needs_containerd!();
    let containerd = Arc::new(Containerd::start());
    let f = Fixture::new(Arc::clone(&containerd), "power");
    let key = key("web");
    let mut always = forever();
    // No registry answers: the copy on the device has to do.
    always.pull_policy = PullPolicy::Always.into();
    let pod = pod(always);
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod.clone())]);
    let before = f.until_running(&key).await;
    let containerd_again = f.crash().await;
    containerd_again.cut_power();
    containerd_again.launch();
    let next = Fixture::new(containerd_again, "power");
    next.supervisor.set_desired(vec![desired(&key, 1, pod)]);
    let after = next.until_running(&key).await;
    assert_ne!(after.container_ids, before.container_ids);
    assert_eq!(after.restarts, 1);
    assert_eq!(next.cri.sandboxes("power").await.unwrap().len(), 1);
    next.finish().await;
}

#[tokio::test]
async fn an_agent_that_is_killed_at_any_moment_starts_nothing_twice() {
    needs_containerd!();
    let containerd = shared();
    let names = ["one", "two", "three"];
    let desired = || {
        let web = shell("echo began; trap 'exit 0' TERM; while :; do sleep 1 & wait; done");
        names
            .iter()
            .map(|name| desired(&key(name), 1, pod(web.clone())))
            .collect::<Vec<_>>()
    };
    // From before the first sandbox to after the last start.
    for after_ms in [20, 60, 90, 120, 150, 180, 220, 260, 320, 400] {
        let f = Fixture::new(Arc::clone(&containerd), "killed");
        f.supervisor.set_desired(desired());
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        f.crash().await;
    }
    let f = Fixture::new(Arc::clone(&containerd), "killed");
    f.supervisor.set_desired(desired());
    let mut restarts = Vec::new();
    for name in names {
        restarts.push(f.until_running(&key(name)).await.restarts);
    }
    let running = f.cri.containers("killed").await.unwrap();
    let running: Vec<_> = running.iter().filter(|c| c.state == 1).collect();
    assert_eq!(running.len(), names.len());
    for (name, restarts) in names.into_iter().zip(restarts) {
        let folder = format!("pods/killed/default_{name}-0_uid-{name}/main");
        let began = || {
            let logs = std::fs::read_dir(containerd.dir.join(&folder)).unwrap();
            let texts = logs.map(|log| std::fs::read_to_string(log.unwrap().path()).unwrap());
            texts
                .map(|text| text.matches("began").count())
                .sum::<usize>()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while began() == 0 {
            assert!(Instant::now() < deadline, "{name} never began");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // A start that was cut off in the middle may have begun; containerd ended it, and it is
        // counted.
        assert!(began() <= 1 + restarts as usize, "starts of {name}");
    }
    f.finish().await;
}

#[tokio::test]
async fn two_nodes_of_one_containerd_leave_each_other_alone() {
    needs_containerd!();
    let containerd = shared();
    let (a, b) = (
        Fixture::new(Arc::clone(&containerd), "node-a"),
        Fixture::new(Arc::clone(&containerd), "node-b"),
    );
    let key = key("web");
    // The same replica on both, as for a moment when it moves.
    a.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    b.supervisor
        .set_desired(vec![desired(&key, 2, pod(forever()))]);
    let (on_a, on_b) = (a.until_running(&key).await, b.until_running(&key).await);
    assert_ne!(on_a.container_ids, on_b.container_ids);
    a.finish().await;
    let status = b.cri.container_status(&on_b.container_ids[0]).await;
    assert_eq!(status.unwrap().finished_at, 0);
    b.finish().await;
}

#[tokio::test]
async fn a_factory_reset_removes_what_the_node_runs_and_nothing_else() {
    needs_containerd!();
    let containerd = shared();
    let (node, other) = (
        Fixture::new(Arc::clone(&containerd), "reset"),
        Fixture::new(Arc::clone(&containerd), "not-reset"),
    );
    let key = key("web");
    for f in [&node, &other] {
        f.supervisor
            .set_desired(vec![desired(&key, 1, pod(forever()))]);
    }
    node.until_running(&key).await;
    let kept = other.until_running(&key).await;
    let cri = node.cri.clone();
    let containerd = node.crash().await;

    let dir = containerd.dir.join("reset-data");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("identity.json"), r#"{"node_id": "reset"}"#).unwrap();
    let flags = Reset {
        yes: true,
        unfinished: false,
        data_dir: dir.clone(),
        enrol_dir: dir.join("enrol"),
        key_secret: dir.join("secret"),
        containerd_socket: containerd.socket(),
    };
    let mut told = Vec::new();
    reset::command(flags, &mut told).await.unwrap();
    assert!(cri.sandboxes("reset").await.unwrap().is_empty());
    assert!(cri.containers("reset").await.unwrap().is_empty());
    assert!(!dir.join("identity.json").exists() && !reset::begun(&dir));
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("hyperion node revoke reset"), "{told}");
    let status = other.cri.container_status(&kept.container_ids[0]).await;
    assert_eq!(status.unwrap().finished_at, 0);
    other.finish().await;
}

#[tokio::test]
async fn a_log_folder_that_cannot_be_made_is_named_and_tried_again() {
    needs_containerd!();
    let containerd = shared();
    let key = key("web");
    // A file where the replica's log folder should be.
    let pods = containerd.dir.join("pods/nologs");
    std::fs::create_dir_all(&pods).unwrap();
    std::fs::write(pods.join("default_web-0_uid-web"), "").unwrap();
    let f = Fixture::new(Arc::clone(&containerd), "nologs");
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    let report = f
        .until(&key, "failed create", |r| {
            r.phase() == ReplicaPhase::Backoff && r.reason == "CreateFailed"
        })
        .await;
    assert!(report.message.contains("log folder"), "{}", report.message);
    std::fs::remove_file(pods.join("default_web-0_uid-web")).unwrap();
    f.until_running(&key).await;
    f.finish().await;
}

#[tokio::test]
async fn a_log_that_grows_is_rotated_and_no_line_is_lost_to_a_follower() {
    needs_containerd!();
    let f = Fixture::new(shared(), "rotate");
    let key = key("chatty");
    // 12 MiB at once, then a mark after the rotation.
    let script = "yes 0123456789012345678901234567890123456789 | head -n 200000; \
                  sleep 5; echo after; sleep 1000";
    let mut pod = pod(shell(script));
    pod.termination_grace_period_seconds = 1;
    f.supervisor.set_desired(vec![desired(&key, 1, pod)]);
    f.until_running(&key).await;
    let followed = f.supervisor.logs(query(&key, 0, true));
    let mut followed = std::pin::pin!(followed);
    let mut text = String::new();
    while !text.ends_with("after\n") {
        let piece = tokio::time::timeout(Duration::from_secs(30), followed.next());
        let piece = piece.await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert_eq!(text.lines().count(), 200_001);
    let dir = f
        .containerd
        .dir
        .join("pods/rotate/default_chatty-0_uid-chatty/main");
    assert!(dir.join("0.log.old").exists());
    assert!(std::fs::metadata(dir.join("0.log")).unwrap().len() < 1 << 20);
    f.finish().await;
}

#[tokio::test]
async fn the_host_network_is_probed_on_loopback() {
    needs_containerd!();
    let f = Fixture::new(shared(), "host");
    let key = key("web");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut web = forever();
    web.readiness = Some(Probe {
        handler: Some(Handler::TcpPort(port.into())),
        period_seconds: 1,
        failure_threshold: 1,
        ..Default::default()
    });
    let mut pod = pod(web);
    pod.host_network = true;
    f.supervisor.set_desired(vec![desired(&key, 1, pod)]);
    let report = f.until_running(&key).await;
    assert_eq!(report.pod_ip, "");
    drop(listener);
    f.until(&key, "port closed", |r| !r.ready).await;
    f.finish().await;
}

#[tokio::test]
async fn twenty_replicas_at_once_start_within_seconds() {
    needs_containerd!();
    let f = Fixture::new(shared(), "many");
    f.until_runtime("containerd answers", |s| {
        matches!(s, RuntimeState::Available { .. })
    })
    .await;
    let keys: Vec<_> = (0..20).map(|i| key(&format!("web{i}"))).collect();
    let begun = Instant::now();
    let all = keys.iter().map(|k| desired(k, 1, pod(forever()))).collect();
    f.supervisor.set_desired(all);
    for key in &keys {
        f.until_running(key).await;
    }
    println!("20 replicas: {:?}", begun.elapsed());
    let mut took = Vec::new();
    for i in 0..5 {
        let mut all: Vec<_> = keys.iter().map(|k| desired(k, 1, pod(forever()))).collect();
        let one = key(&format!("extra{i}"));
        all.push(desired(&one, 1, pod(forever())));
        let begun = Instant::now();
        f.supervisor.set_desired(all);
        f.until_running(&one).await;
        took.push(begun.elapsed());
    }
    println!("one more, five times: {took:?}");
    f.finish().await;
}

#[tokio::test]
async fn a_containerd_that_hangs_is_told_and_its_containers_go_on() {
    needs_containerd!();
    let containerd = Arc::new(Containerd::start());
    let f = Fixture::new(Arc::clone(&containerd), "hangs");
    let key = key("web");
    f.supervisor
        .set_desired(vec![desired(&key, 1, pod(forever()))]);
    let before = f.until_running(&key).await;
    containerd.signal("STOP");
    let blind = f
        .until(&key, "told so", |r| r.reason == "RuntimeUnavailable")
        .await;
    containerd.signal("CONT");
    assert_eq!(blind.phase(), ReplicaPhase::Running);
    let after = f
        .until(&key, "as before", |r| r.reason.is_empty() && r.ready)
        .await;
    assert_eq!(after.container_ids, before.container_ids);
    f.finish().await;
}

#[tokio::test]
async fn an_image_from_a_file_runs_without_a_registry() {
    needs_containerd!();
    let f = Fixture::new(shared(), "import");
    let name = "localhost/from-file:1";
    let tar = f
        .containerd
        .image(name, &["/bin/sh", "-c", "echo from file; sleep 1000"]);
    assert!(!f.cri.image_present(name).await.unwrap());
    // A second import of the same file changes nothing.
    for _ in 0..2 {
        let names = import_oci_tar(&f.cri, &tar).await.unwrap();
        assert_eq!(names, [name]);
    }
    assert!(f.cri.image_present(name).await.unwrap());
    let key = key("web");
    let mut web = shell("");
    web.image = name.into();
    web.command.clear();
    web.pull_policy = PullPolicy::Never.into();
    let mut pod = pod(web);
    pod.termination_grace_period_seconds = 1;
    f.supervisor.set_desired(vec![desired(&key, 1, pod)]);
    f.until_running(&key).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while logs(&f, query(&key, 0, false)).await != "from file\n" {
        assert!(Instant::now() < deadline);
    }
    // Half a file, and bytes that are not those announced.
    let mut bytes = std::fs::read(&tar).unwrap();
    let broken = f.containerd.dir.join("broken.tar");
    std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    let error = import_oci_tar(&f.cri, &broken).await.unwrap_err();
    assert!(error.to_string().contains("broken.tar"), "{error}");
    let other = f
        .containerd
        .image("localhost/other:1", &["/bin/sh", "-c", "exit 77"]);
    bytes = std::fs::read(other).unwrap();
    let at = bytes.windows(7).position(|w| w == b"exit 77").unwrap();
    bytes[at + 5] = b'9';
    std::fs::write(&broken, &bytes).unwrap();
    let error = import_oci_tar(&f.cri, &broken).await.unwrap_err();
    assert!(error.to_string().contains("broken.tar"), "{error}");
    assert!(!f.cri.image_present("localhost/other:1").await.unwrap());
    f.finish().await;
}
