use std::sync::Mutex;

use hyperion_proto::agent_v1::{ReplicaReport, RestartPolicy};

use super::super::Finished;
use super::super::model::{Container, Ended, Sandbox, State};
use super::*;
use crate::testing::desired;

/// A driver that has looked, and found nothing. Nobody answers its steps.
fn driver() -> Driver {
    let (sender, changes) = watch::channel(None);
    let config = SupervisorConfig {
        socket: "/nowhere/c.sock".into(),
        node_id: "n".to_owned(),
        log_dir: "/nowhere/logs".into(),
    };
    let shared = Arc::new(Shared {
        log_dir: config.log_dir.clone(),
        desired: sender,
        reports: Mutex::default(),
        hurried: Mutex::default(),
        runtime: Mutex::new(RuntimeState::Unavailable {
            reason: String::new(),
        }),
        images: Arc::default(),
    });
    let (events, _) = mpsc::channel(1);
    let mut driver = Driver::new(config, Tuning::default(), shared, changes, events);
    driver.down = None;
    driver.look.done = true;
    driver
}

fn only(driver: &mut Driver) -> &mut Replica {
    driver.replicas.values_mut().next().unwrap()
}

fn reported(driver: &mut Driver) -> ReplicaReport {
    only(driver).reported.clone().unwrap()
}

fn step(driver: &mut Driver) -> Option<Step> {
    only(driver).busy.take().map(|busy| busy.step)
}

/// A sandbox of the wanted pod with one container.
fn sandbox(driver: &mut Driver, state: State) -> Sandbox {
    Sandbox {
        id: "s0".to_owned(),
        attempt: 0,
        hash: only(driver).want.as_ref().unwrap().hash.clone(),
        ready: state == State::Running,
        ip: String::new(),
        grace: Duration::ZERO,
        containers: vec![Container {
            id: "c0".to_owned(),
            name: "main".to_owned(),
            attempt: 0,
            restarts: 0,
            state,
            started: Instant::now(),
        }],
    }
}

#[tokio::test]
async fn a_failed_job_that_is_ordered_again_runs_again() {
    let mut driver = driver();
    let mut job = desired("job", 0, 1);
    job.start.pod.restart_policy = RestartPolicy::Never.into();
    job.finished = Some(Finished {
        phase: ReplicaPhase::Failed,
        exit_code: 1,
        reason: "Error".to_owned(),
        message: String::new(),
    });
    driver.take_desired(Some(&vec![job.clone()]));
    let ended = State::Exited(Ended {
        code: 1,
        reason: "Error".to_owned(),
        message: String::new(),
        ran: Duration::from_secs(1),
        at: Instant::now(),
    });
    let dead = sandbox(&mut driver, ended);
    only(&mut driver).seen = vec![dead];
    driver.advance();
    assert_eq!(reported(&mut driver).phase(), ReplicaPhase::Failed);
    assert_eq!(step(&mut driver), None, "its logs stay");

    job.start.generation = 2;
    job.finished = None;
    driver.take_desired(Some(&vec![job.clone()]));
    only(&mut driver).memory.images.insert("demo:1".to_owned());
    driver.advance();
    let report = reported(&mut driver);
    assert_eq!(
        (report.generation, report.phase()),
        (2, ReplicaPhase::Starting)
    );
    let remove = Step::RemoveSandbox {
        id: "s0".to_owned(),
    };
    assert_eq!(step(&mut driver), Some(remove));
    only(&mut driver).seen.clear();
    driver.advance();
    assert_eq!(step(&mut driver), Some(Step::RunSandbox { attempt: 1 }));
}

#[tokio::test]
async fn what_runs_is_adopted_at_a_higher_generation() {
    let mut driver = driver();
    driver.take_desired(Some(&vec![desired("web", 0, 1)]));
    let running = sandbox(&mut driver, State::Running);
    only(&mut driver).seen = vec![running];
    driver.take_desired(Some(&vec![desired("web", 0, 2)]));
    driver.advance();
    let report = reported(&mut driver);
    assert_eq!(
        (report.generation, report.phase()),
        (2, ReplicaPhase::Running)
    );
    assert_eq!(step(&mut driver), None);
}

#[tokio::test]
async fn a_replica_that_is_hurried_gets_no_more_time_to_stop_than_that() {
    let mut driver = driver();
    let grace = |driver: &mut Driver| {
        let mut running = sandbox(driver, State::Running);
        running.grace = Duration::from_secs(30);
        only(driver).seen = vec![running];
        driver.take_desired(Some(&Vec::new()));
        driver.advance();
        match step(driver) {
            Some(Step::StopSandbox { grace, .. }) => grace,
            other => panic!("{other:?}"),
        }
    };
    let web = desired("web", 0, 1);
    for (said, got) in [(60, 30), (7, 7)] {
        driver.take_desired(Some(&vec![web.clone()]));
        let key = web.start.key.clone();
        lock(&driver.shared.hurried).insert(key, Duration::from_secs(said));
        assert_eq!(grace(&mut driver), Duration::from_secs(got));
    }
    // Wanted again, it has its own time again.
    driver.take_desired(Some(&vec![web]));
    assert_eq!(grace(&mut driver), Duration::from_secs(30));
}

#[tokio::test]
async fn only_replicas_that_can_be_planned_wake_the_loop() {
    let mut driver = driver();
    driver.take_desired(Some(&vec![desired("web", 0, 1)]));
    let past = Instant::now();
    only(&mut driver).wake = Some(past);
    only(&mut driver).stale = true;
    assert_eq!(driver.advance(), None, "it waits for a look");
    only(&mut driver).stale = false;
    let abort = driver.tasks.spawn(std::future::pending());
    let step = Step::RunSandbox { attempt: 0 };
    only(&mut driver).busy = Some(Busy { step, abort });
    assert_eq!(driver.advance(), None, "it waits for a step");
    only(&mut driver).busy = None;
    driver.advance();
    let step = only(&mut driver).busy.take().unwrap().step;
    let (now, tuning) = (Instant::now(), Tuning::default());
    let memory = &mut only(&mut driver).memory;
    memory.fail(&step, "no network".to_owned(), now, &tuning);
    assert_eq!(driver.advance(), Some(now + tuning.backoff_base));
}
