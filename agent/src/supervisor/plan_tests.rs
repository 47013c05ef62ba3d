use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::{PodSpec, Probe, PullPolicy, ReplicaPhase as Phase};
use hyperion_proto::domain::{ReplicaKey, Start};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::super::Finished;
use super::super::memory::crash_delay;
use super::super::model::Container;
use super::*;

const IMAGE: &str = "localhost/a:1";

fn want(hash: &str, policy: RestartPolicy, names: &[&str]) -> Want {
    let containers = names
        .iter()
        .map(|name| agent_v1::Container {
            name: (*name).into(),
            image: IMAGE.into(),
            ..Default::default()
        })
        .collect();
    Want {
        start: Start {
            key: ReplicaKey {
                namespace: "default".into(),
                workload: "web".into(),
                uid: "u".into(),
                index: 0,
            },
            generation: 1,
            pod: PodSpec {
                containers,
                restart_policy: policy.into(),
                ..Default::default()
            },
        },
        hash: hash.into(),
        finished: None,
        behind: None,
    }
}

fn sandbox(attempt: u32, hash: &str, ready: bool, containers: Vec<Container>) -> Sandbox {
    Sandbox {
        id: format!("s{attempt}"),
        attempt,
        hash: hash.into(),
        ready,
        ip: "198.18.0.2".into(),
        grace: Duration::from_secs(5),
        containers,
    }
}

fn container(name: &str, attempt: u32, state: State) -> Container {
    Container {
        id: format!("{name}{attempt}"),
        name: name.into(),
        attempt,
        restarts: attempt,
        state,
        started: Instant::now(),
    }
}

fn exited(code: i32, at: Instant) -> State {
    exited_as(code, if code == 0 { "Completed" } else { "Error" }, at)
}

fn exited_as(code: i32, reason: &str, at: Instant) -> State {
    State::Exited(Ended {
        code,
        reason: reason.into(),
        message: String::new(),
        ran: Duration::from_secs(1),
        at,
    })
}

fn decide(want: Option<&Want>, seen: &[Sandbox], memory: &mut Memory, now: Instant) -> Plan {
    plan(want, seen, memory, now, &Tuning::default())
}

fn with_images() -> Memory {
    let mut memory = Memory::default();
    // The first look is what the memory is about; images are forgotten with every new pod.
    let want = want("h", RestartPolicy::Always, &["a"]);
    memory.note(Some(&want), &[], Instant::now(), &Tuning::default());
    memory.images.insert(IMAGE.into());
    memory
}

#[test]
fn a_new_replica_gets_image_sandbox_and_containers_in_order() {
    let want = want("h", RestartPolicy::Always, &["a", "b"]);
    let (mut memory, now) = (Memory::default(), Instant::now());
    let image = Step::EnsureImage {
        image: IMAGE.into(),
        policy: PullPolicy::Unspecified,
    };
    assert_eq!(decide(Some(&want), &[], &mut memory, now).step, Some(image));
    memory.images.insert(IMAGE.into());
    let plan = decide(Some(&want), &[], &mut memory, now);
    assert_eq!(plan.step, Some(Step::RunSandbox { attempt: 0 }));
    assert_eq!(plan.status.phase, Phase::Starting);
    let start = |name: &str| {
        Some(Step::StartContainer {
            sandbox: "s0".into(),
            name: name.into(),
            attempt: 0,
            restarts: 0,
        })
    };
    let mut seen = [sandbox(0, "h", true, vec![])];
    assert_eq!(
        decide(Some(&want), &seen, &mut memory, now).step,
        start("a")
    );
    seen[0].containers.push(container("a", 0, State::Running));
    assert_eq!(
        decide(Some(&want), &seen, &mut memory, now).step,
        start("b")
    );
    seen[0].containers.push(container("b", 0, State::Running));
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!((plan.step, plan.status.phase), (None, Phase::Running));
    assert!(plan.status.ready);
    assert_eq!(plan.status.container_ids, ["a0", "b0"]);
}

#[test]
fn a_running_sandbox_of_the_same_pod_is_adopted_without_a_step() {
    let mut want = want("h", RestartPolicy::Always, &["a"]);
    want.start.generation = 99;
    let seen = [sandbox(
        3,
        "h",
        true,
        vec![container("a", 2, State::Running)],
    )];
    let plan = decide(Some(&want), &seen, &mut Memory::default(), Instant::now());
    assert_eq!((plan.step, plan.status.restarts), (None, 2));
    assert_eq!(plan.status.phase, Phase::Running);
}

#[test]
fn the_old_pod_runs_until_the_image_of_the_new_one_is_here() {
    let want = want("new", RestartPolicy::Always, &["a"]);
    let (mut memory, now) = (Memory::default(), Instant::now());
    let seen = [sandbox(
        0,
        "old",
        true,
        vec![container("a", 0, State::Running)],
    )];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert!(matches!(plan.step, Some(Step::EnsureImage { .. })));
    assert_eq!(plan.status.reason, "Replacing");
    memory.images.insert(IMAGE.into());
    let plan = decide(Some(&want), &seen, &mut memory, now);
    let stop = Step::StopSandbox {
        id: "s0".into(),
        containers: vec!["a0".into()],
        grace: Duration::from_secs(5),
    };
    assert_eq!(plan.step, Some(stop));
    let seen = [sandbox(
        0,
        "old",
        false,
        vec![container("a", 0, exited(0, now))],
    )];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!(plan.step, Some(Step::RemoveSandbox { id: "s0".into() }));
    let plan = decide(Some(&want), &[], &mut memory, now);
    assert_eq!(plan.step, Some(Step::RunSandbox { attempt: 1 }));
}

#[test]
fn the_first_end_is_restarted_at_once_and_later_ones_wait() {
    let want = want("h", RestartPolicy::Always, &["a"]);
    let (mut memory, now) = (with_images(), Instant::now());
    let mut seen = [sandbox(
        0,
        "h",
        true,
        vec![container("a", 0, exited(1, now))],
    )];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    let again = Step::StartContainer {
        sandbox: "s0".into(),
        name: "a".into(),
        attempt: 1,
        restarts: 1,
    };
    assert_eq!(plan.step, Some(again));
    seen[0].containers.push(container("a", 1, exited(1, now)));
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!((plan.step, plan.status.phase), (None, Phase::Backoff));
    assert_eq!(
        (plan.status.reason.as_str(), plan.status.exit_code),
        ("CrashLoop", 1)
    );
    let wake = now + Duration::from_secs(10);
    assert_eq!(plan.wake, Some(wake));
    let plan = decide(Some(&want), &seen, &mut memory, wake);
    assert!(matches!(
        plan.step,
        Some(Step::StartContainer { attempt: 2, .. })
    ));
}

#[test]
fn waits_double_to_five_minutes_and_a_long_run_forgives() {
    let t = Tuning::default();
    let waits: Vec<_> = (1..=8).map(|n| crash_delay(&t, n).as_secs()).collect();
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(crash_delay(&t, u32::MAX), Duration::from_secs(300));
    let want = want("h", RestartPolicy::Always, &["a"]);
    let (mut memory, now) = (with_images(), Instant::now());
    let mut long = container("a", 7, exited(1, now));
    if let State::Exited(ended) = &mut long.state {
        ended.ran = Duration::from_secs(600);
    }
    let seen = [sandbox(0, "h", true, vec![long])];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert!(matches!(plan.step, Some(Step::StartContainer { .. })));
}

#[test]
fn an_agent_that_was_restarted_does_not_forget_a_crash_loop() {
    let want = want("h", RestartPolicy::Always, &["a"]);
    let now = Instant::now();
    let seen = [sandbox(
        0,
        "h",
        true,
        vec![container("a", 5, exited(1, now))],
    )];
    let plan = decide(Some(&want), &seen, &mut Memory::default(), now);
    assert_eq!(plan.status.phase, Phase::Backoff);
    assert_eq!(plan.wake, Some(now + Duration::from_secs(160)));
}

#[test]
fn restart_policies_end_jobs() {
    let now = Instant::now();
    for (policy, code, over) in [
        (RestartPolicy::Always, 0, None),
        (RestartPolicy::Unspecified, 0, None),
        (RestartPolicy::OnFailure, 1, None),
        (RestartPolicy::OnFailure, 0, Some(Phase::Succeeded)),
        (RestartPolicy::Never, 0, Some(Phase::Succeeded)),
        (RestartPolicy::Never, 9, Some(Phase::Failed)),
    ] {
        let want = want("h", policy, &["a"]);
        let seen = [sandbox(
            0,
            "h",
            true,
            vec![container("a", 0, exited(code, now))],
        )];
        let plan = decide(Some(&want), &seen, &mut with_images(), now);
        match over {
            Some(phase) => {
                assert_eq!(plan.status.phase, phase, "{policy:?} {code}");
                assert_eq!(plan.status.exit_code, code);
                assert!(matches!(plan.step, Some(Step::StopSandbox { .. })));
            }
            None => {
                let starts = matches!(plan.step, Some(Step::StartContainer { .. }));
                assert!(starts, "{policy:?} {code}: {plan:?}");
            }
        }
    }
}

#[test]
fn a_job_that_ended_keeps_its_dead_sandbox_and_starts_nothing() {
    let now = Instant::now();
    let dead = [sandbox(
        0,
        "h",
        false,
        vec![container("a", 0, exited(0, now))],
    )];
    let mut want = want("h", RestartPolicy::Never, &["a"]);
    let plan = decide(Some(&want), &dead, &mut Memory::default(), now);
    assert_eq!((plan.step, plan.status.phase), (None, Phase::Succeeded));
    want.finished = Some(Finished {
        phase: Phase::Failed,
        exit_code: 4,
        reason: "Error".into(),
        message: "m".into(),
    });
    for seen in [&dead[..], &[]] {
        let plan = decide(Some(&want), seen, &mut Memory::default(), now);
        assert_eq!((plan.step, plan.status.phase), (None, Phase::Failed));
        assert_eq!((plan.status.exit_code, plan.wake), (4, None));
    }
}

#[test]
fn a_job_that_starts_over_takes_nothing_from_the_try_before() {
    let want = want("h", RestartPolicy::Never, &["a"]);
    let (mut memory, now) = (with_images(), Instant::now());
    let mut seen = [sandbox(
        4,
        "h",
        false,
        vec![container("a", 2, exited(1, now))],
    )];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!((plan.step, plan.status.phase), (None, Phase::Failed));
    memory.start_over();
    let plan = decide(Some(&want), &seen, &mut memory, now);
    let remove = Step::RemoveSandbox { id: "s4".into() };
    assert_eq!(
        (plan.step, plan.status.phase),
        (Some(remove), Phase::Starting)
    );
    let plan = decide(Some(&want), &[], &mut memory, now);
    assert_eq!(plan.step, Some(Step::RunSandbox { attempt: 5 }));
    seen = [sandbox(5, "h", true, vec![])];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    let start = Step::StartContainer {
        sandbox: "s5".into(),
        name: "a".into(),
        attempt: 3,
        restarts: 0,
    };
    assert_eq!(plan.step, Some(start));
    seen[0].containers.push(container("a", 3, exited(0, now)));
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!(plan.status.phase, Phase::Succeeded);
}

#[test]
fn after_a_power_cut_a_service_starts_in_a_new_sandbox_without_a_wait() {
    let want = want("h", RestartPolicy::Always, &["a"]);
    let (mut memory, now) = (Memory::default(), Instant::now());
    let lost = container("a", 3, exited_as(255, "Unknown", now));
    let seen = [sandbox(1, "h", false, vec![lost])];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!(plan.status.reason, "SandboxLost");
    assert!(matches!(plan.step, Some(Step::EnsureImage { .. })));
    memory.images.insert(IMAGE.into());
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!(plan.step, Some(Step::RemoveSandbox { id: "s1".into() }));
    let plan = decide(Some(&want), &[], &mut memory, now);
    assert_eq!(plan.step, Some(Step::RunSandbox { attempt: 2 }));
    let seen = [sandbox(2, "h", true, vec![])];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert!(
        matches!(
            plan.step,
            Some(Step::StartContainer {
                attempt: 4,
                restarts: 4,
                ..
            })
        ),
        "{plan:?}"
    );
}

#[test]
fn what_is_not_wanted_is_stopped_then_removed_then_gone() {
    let (mut memory, now) = (Memory::default(), Instant::now());
    let seen = [
        sandbox(0, "h", false, vec![]),
        sandbox(1, "h", true, vec![container("a", 0, State::Running)]),
    ];
    let plan = decide(None, &seen, &mut memory, now);
    assert_eq!(plan.status.phase, Phase::Stopping);
    assert!(matches!(plan.step, Some(Step::StopSandbox { ref id, .. }) if id == "s1"));
    let plan = decide(None, &seen[..1], &mut memory, now);
    assert_eq!(plan.step, Some(Step::RemoveSandbox { id: "s0".into() }));
    let plan = decide(None, &[], &mut memory, now);
    assert!(plan.gone);
    assert_eq!(plan.status.phase, Phase::Stopped);
}

#[test]
fn a_failed_step_waits_longer_each_time_and_says_why() {
    let want = want("h", RestartPolicy::Always, &["a"]);
    let (mut memory, now, t) = (Memory::default(), Instant::now(), Tuning::default());
    for (wait, words, reason) in [
        (10, "pull image x: no such host", "ImagePullFailed"),
        (20, "write /var: no space left on device", "DiskFull"),
    ] {
        let step = decide(Some(&want), &[], &mut memory, now).step.unwrap();
        memory.fail(&step, words.into(), now, &t);
        let plan = decide(Some(&want), &[], &mut memory, now);
        assert_eq!((plan.step, plan.status.phase), (None, Phase::Backoff));
        assert_eq!(
            (plan.status.reason.as_str(), plan.status.message.as_str()),
            (reason, words)
        );
        assert_eq!(plan.wake, Some(now + Duration::from_secs(wait)));
        memory.succeed();
    }
    // A pod that was corrected does not wait for the mistakes of the one before.
    let step = decide(Some(&want), &[], &mut memory, now).step.unwrap();
    memory.fail(&step, "x".into(), now, &t);
    let mut other = want;
    other.hash = "new".into();
    assert!(decide(Some(&other), &[], &mut memory, now).step.is_some());
}

#[test]
fn probes_decide_readiness_and_death() {
    let mut want = want("h", RestartPolicy::Always, &["a"]);
    want.start.pod.containers[0].readiness = Some(Probe::default());
    let (mut memory, now) = (with_images(), Instant::now());
    let mut seen = [sandbox(
        0,
        "h",
        true,
        vec![container("a", 0, State::Running)],
    )];
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!(
        (plan.status.ready, plan.status.reason.as_str()),
        (false, "NotReady")
    );
    memory.health_mut("a0").ready = true;
    assert!(decide(Some(&want), &seen, &mut memory, now).status.ready);
    memory.health_mut("a0").dead = Some("no answer".into());
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert!(matches!(plan.step, Some(Step::StopContainer { .. })) && !plan.status.ready);
    seen[0].containers[0].state = exited(137, now);
    let plan = decide(Some(&want), &seen, &mut memory, now);
    assert_eq!(plan.status.reason, "LivenessFailed");
    assert!(
        plan.status.message.contains("no answer"),
        "{}",
        plan.status.message
    );
}

#[test]
fn a_namesake_waits_until_its_predecessor_is_gone() {
    let mut want = want("h", RestartPolicy::Always, &["a"]);
    want.behind = Some(want.start.key.clone());
    let plan = decide(Some(&want), &[], &mut with_images(), Instant::now());
    assert_eq!(
        (plan.step, plan.status.reason.as_str()),
        (None, "WaitingForPredecessor")
    );
}

/// A containerd that does what it is told at once, loses power, and has agents that are killed.
struct World {
    now: Instant,
    seen: Vec<Sandbox>,
    memory: Memory,
    starts: Vec<(String, u32)>,
}

impl World {
    fn apply(&mut self, step: Step, hash: &str) {
        match step {
            Step::EnsureImage { image, .. } => {
                self.memory.images.insert(image);
            }
            Step::RunSandbox { attempt } => {
                assert!(
                    self.seen.iter().all(|s| s.id != format!("s{attempt}")),
                    "sandbox {attempt} is made twice"
                );
                self.seen.push(sandbox(attempt, hash, true, vec![]));
            }
            Step::StartContainer {
                sandbox,
                name,
                attempt,
                restarts,
            } => {
                let start = (name.clone(), attempt);
                assert!(!self.starts.contains(&start), "{start:?} is started twice");
                self.starts.push(start);
                let of = self.seen.iter_mut().find(|s| s.id == sandbox).unwrap();
                assert!(of.ready, "a container is started in a dead sandbox");
                let mut made = container(&name, attempt, State::Running);
                made.restarts = restarts;
                of.containers.push(made);
            }
            Step::StopContainer { id, .. } => self.end(&id, 137, "Error"),
            Step::RemoveContainer { id, .. } => {
                for s in &mut self.seen {
                    s.containers.retain(|c| c.id != id);
                }
            }
            Step::StopSandbox { id, containers, .. } => {
                for container in containers {
                    self.end(&container, 143, "Error");
                }
                self.seen.iter_mut().find(|s| s.id == id).unwrap().ready = false;
            }
            Step::RemoveSandbox { id } => {
                let gone = self.seen.iter().find(|s| s.id == id).unwrap();
                assert!(!gone.live(), "a live sandbox is removed");
                self.seen.retain(|s| s.id != id);
            }
        }
    }

    fn end(&mut self, id: &str, code: i32, reason: &str) {
        let now = self.now;
        let all = self.seen.iter_mut().flat_map(|s| &mut s.containers);
        for c in all.filter(|c| c.id == id) {
            c.state = exited_as(code, reason, now);
        }
    }

    fn check(&self, policy: RestartPolicy) {
        let running = |s: &&Sandbox| s.containers.iter().any(|c| c.state == State::Running);
        assert!(
            self.seen.iter().filter(running).count() <= 1,
            "two sandboxes run"
        );
        for s in &self.seen {
            let alive = s.containers.iter().filter(|c| c.live() && c.name == "a");
            assert!(alive.count() <= 1, "two starts of one container run");
        }
        if policy == RestartPolicy::Never {
            assert!(self.starts.len() <= 2, "{:?}", self.starts);
        }
    }
}

#[test]
fn whatever_happens_nothing_runs_twice_and_it_settles() {
    for seed in 0..2000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let policy = *[
            RestartPolicy::Always,
            RestartPolicy::OnFailure,
            RestartPolicy::Never,
        ]
        .get(rng.random_range(0..3))
        .unwrap();
        let changes = policy != RestartPolicy::Never;
        let mut hash = 0;
        let mut world = World {
            now: Instant::now(),
            seen: Vec::new(),
            memory: Memory::default(),
            starts: Vec::new(),
        };
        for _ in 0..60 {
            match rng.random_range(0..12) {
                0 => world.memory = Memory::default(),
                1 if changes => hash += 1,
                2 => {
                    // Power is lost.
                    for s in &mut world.seen {
                        s.ready = false;
                    }
                    for id in live(&world) {
                        world.end(&id, 255, "Unknown");
                    }
                    world.memory = Memory::default();
                }
                3 | 4 => {
                    for id in live(&world) {
                        world.end(&id, rng.random_range(0..2), "Error");
                    }
                }
                5 => world.now += Duration::from_secs(rng.random_range(0..400)),
                6 if world.seen.iter().any(|s| s.ready) => {
                    // Somebody kills the sandbox, not its containers.
                    world.seen.iter_mut().for_each(|s| s.ready = false);
                }
                _ => {}
            }
            let name = format!("h{hash}");
            let want = want(&name, policy, &["a", "b"]);
            let seen = world.seen.clone();
            let plan = decide(Some(&want), &seen, &mut world.memory, world.now);
            if let Some(step) = plan.step {
                // The names of a pod that was removed with all memory of it are free again.
                if world.seen.is_empty() {
                    world.starts.retain(|_| policy == RestartPolicy::Never);
                }
                world.apply(step, &name);
            }
            world.check(policy);
        }
        // Left alone, it comes to rest.
        let name = format!("h{hash}");
        let want = want(&name, policy, &["a", "b"]);
        let mut rest = None;
        for _ in 0..40 {
            let seen = world.seen.clone();
            let plan = decide(Some(&want), &seen, &mut world.memory, world.now);
            match (plan.step, plan.wake) {
                (Some(step), _) => {
                    if world.seen.is_empty() {
                        world.starts.clear();
                    }
                    world.apply(step, &name);
                }
                (None, Some(wake)) => world.now = wake,
                (None, None) => {
                    rest = Some(plan.status.phase);
                    break;
                }
            }
        }
        let rest = rest.unwrap_or_else(|| panic!("seed {seed}: no rest"));
        let fine = [Phase::Running, Phase::Succeeded, Phase::Failed];
        assert!(fine.contains(&rest), "seed {seed}: {rest:?}");
        assert!(world.seen.len() <= 1, "seed {seed}: sandboxes are left");
    }
}

fn live(world: &World) -> Vec<String> {
    let all = world.seen.iter().flat_map(|s| &s.containers);
    all.filter(|c| c.state == State::Running)
        .map(|c| c.id.clone())
        .collect()
}
