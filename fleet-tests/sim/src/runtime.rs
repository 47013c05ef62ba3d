//! The container runtime of a device with the supervisor before it. Its containers are what is
//! true: they go on when the agent dies, and end when the device does. What the agent wants comes
//! in as the whole desired state, as in the product; reports go back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use hyperion_agent::supervisor::{Desired, Exits};
use hyperion_proto::agent_v1::{PodSpec, ReplicaPhase, ReplicaReport, RestartPolicy};
use hyperion_proto::domain::ReplicaKey;

use crate::rng::Rng;

/// Environment variable of a job's container: milliseconds that it runs.
pub(crate) const RUNS: &str = "RUNS_MS";
/// First wait of a crash loop; it doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A pull that failed is tried again after this.
const PULL_AGAIN: Duration = Duration::from_secs(3);

/// A live container.
#[derive(Debug, Clone)]
pub(crate) struct Container {
    /// One for each start in the whole run.
    pub id: u64,
    pub pod: PodSpec,
    pub ready_at: Duration,
    /// A job's end.
    ends_at: Option<Duration>,
    /// It was told to stop, and is gone then.
    stops_at: Option<Duration>,
}

/// Why a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The agent wanted it gone.
    Unwanted,
    /// The agent wants another pod.
    Replaced,
    /// It ended by itself, with this code.
    Exit(i32),
    /// The device went down.
    Power,
}

/// Something that happened to containers.
#[derive(Clone)]
pub(crate) enum Happened {
    Started {
        key: ReplicaKey,
        generation: u64,
        id: u64,
        pod: Box<PodSpec>,
    },
    Ended {
        key: ReplicaKey,
        id: u64,
        cause: Cause,
        pod: Box<PodSpec>,
    },
}

impl fmt::Debug for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started {
                key,
                generation,
                id,
                ..
            } => write!(
                f,
                "container {id:x} of {key} starts, generation {generation}"
            ),
            Self::Ended { key, id, cause, .. } => {
                write!(f, "container {id:x} of {key} ends: {cause:?}")
            }
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    want: Option<Desired>,
    /// Of what was wanted last.
    generation: u64,
    container: Option<Container>,
    /// The image is here, or on its way until then.
    pulling: Option<Duration>,
    pull_failed: bool,
    /// Nothing is started before.
    not_before: Duration,
    crashes: u32,
    /// How its last container ended, of which pod.
    exit: Option<(i32, PodSpec)>,
}

/// The runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    slots: BTreeMap<ReplicaKey, Slot>,
    images: BTreeSet<String>,
    rng: Rng,
    /// The agent has said what it wants since it started.
    told: bool,
    /// Images can be fetched.
    pub registry: bool,
    pub happened: Vec<Happened>,
    /// Last words of replicas that are gone.
    stopped: Vec<ReplicaReport>,
    starts: u64,
    /// Makes ids of containers different between devices.
    device: u64,
}

fn same_pod(container: &Container, want: &Desired) -> bool {
    container.pod == want.start.pod
}

fn runs_for(pod: &PodSpec) -> Option<Duration> {
    let env = pod
        .containers
        .first()?
        .env
        .iter()
        .find(|e| e.name == RUNS)?;
    Some(Duration::from_millis(env.value.parse().ok()?))
}

impl Runtime {
    pub(crate) fn new(device: usize, rng: Rng) -> Self {
        Self {
            slots: BTreeMap::new(),
            images: BTreeSet::new(),
            rng,
            told: false,
            registry: true,
            happened: Vec::new(),
            stopped: Vec::new(),
            starts: 0,
            device: device as u64,
        }
    }

    pub(crate) fn add_image(&mut self, image: &str) {
        self.images.insert(image.to_owned());
    }

    pub(crate) fn images(&self) -> impl Iterator<Item = &String> {
        self.images.iter()
    }

    /// Live containers.
    pub(crate) fn live(&self) -> impl Iterator<Item = (&ReplicaKey, &Container)> {
        self.slots
            .iter()
            .filter_map(|(key, slot)| Some((key, slot.container.as_ref()?)))
    }

    pub(crate) fn container(&self, key: &ReplicaKey) -> Option<&Container> {
        self.slots.get(key)?.container.as_ref()
    }

    /// Containers that ended and were not taken away, as an agent that starts finds them.
    pub(crate) fn exits(&self) -> Vec<Exits> {
        let ended = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.container.is_none());
        let exits = ended.filter_map(|(key, slot)| {
            let (code, pod) = slot.exit.as_ref()?;
            Some(Exits::of(key, pod, vec![*code]))
        });
        exits.collect()
    }

    /// True where the replica answers requests.
    pub(crate) fn serves(&self, key: &ReplicaKey, now: Duration) -> bool {
        self.container(key)
            .is_some_and(|c| c.ready_at <= now && c.stops_at.is_none())
    }

    /// The agent's process is gone: what it wanted stays as containers and is not wanted anew until
    /// the next one says so.
    pub(crate) fn agent_gone(&mut self) {
        self.told = false;
        self.stopped.clear();
        for slot in self.slots.values_mut() {
            slot.want = None;
            slot.pulling = None;
            slot.pull_failed = false;
            slot.not_before = Duration::ZERO;
            slot.crashes = 0;
        }
        // What has ended keeps its exit code in the runtime.
        self.slots
            .retain(|_, slot| slot.container.is_some() || slot.exit.is_some());
    }

    /// The device is off.
    pub(crate) fn power_off(&mut self) {
        self.agent_gone();
        for (key, slot) in std::mem::take(&mut self.slots) {
            if let Some(container) = slot.container {
                self.happened.push(Happened::Ended {
                    key,
                    id: container.id,
                    cause: Cause::Power,
                    pod: Box::new(container.pod),
                });
            }
        }
    }

    /// A container ends by itself.
    pub(crate) fn crash(&mut self, key: &ReplicaKey, now: Duration) {
        if let Some(slot) = self.slots.get_mut(key)
            && let Some(container) = slot.container.take()
        {
            slot.exit = Some((137, container.pod.clone()));
            slot.crashes += 1;
            slot.not_before = now + backoff(slot.crashes);
            self.happened.push(Happened::Ended {
                key: key.clone(),
                id: container.id,
                cause: Cause::Exit(137),
                pod: Box::new(container.pod),
            });
        }
    }

    /// What should run, complete.
    pub(crate) fn set_desired(&mut self, desired: Vec<Desired>) {
        self.told = true;
        for slot in self.slots.values_mut() {
            slot.want = None;
        }
        for want in desired {
            let slot = self.slots.entry(want.start.key.clone()).or_default();
            slot.generation = want.start.generation;
            slot.want = Some(want);
        }
    }

    /// Does what is due; gives when the next is.
    pub(crate) fn advance(&mut self, now: Duration) -> Duration {
        let mut next = Duration::MAX;
        let keys: Vec<ReplicaKey> = self.slots.keys().cloned().collect();
        for key in keys {
            // A step may make the next one possible.
            loop {
                let (again, wake) = self.step(&key, now);
                if !again {
                    next = next.min(wake);
                    break;
                }
            }
        }
        next
    }

    fn step(&mut self, key: &ReplicaKey, now: Duration) -> (bool, Duration) {
        let never = (false, Duration::MAX);
        let told = self.told;
        let Some(slot) = self.slots.get_mut(key) else {
            return never;
        };
        if let Some(container) = &mut slot.container {
            if let Some(at) = container.ends_at
                && at <= now
            {
                let (id, pod) = (container.id, Box::new(container.pod.clone()));
                slot.container = None;
                slot.exit = Some((0, (*pod).clone()));
                self.happened.push(Happened::Ended {
                    key: key.clone(),
                    id,
                    cause: Cause::Exit(0),
                    pod,
                });
                return (true, now);
            }
            let unwanted = told
                && slot
                    .want
                    .as_ref()
                    .is_none_or(|w| w.finished.is_some() || !same_pod(container, w));
            if unwanted && container.stops_at.is_none() {
                container.stops_at = Some(now + self.rng.millis(50, 800));
            }
            if let Some(at) = container.stops_at {
                if at > now {
                    return (false, at);
                }
                let (id, pod) = (container.id, Box::new(container.pod.clone()));
                slot.container = None;
                let cause = if slot.want.is_some() {
                    Cause::Replaced
                } else {
                    Cause::Unwanted
                };
                self.happened.push(Happened::Ended {
                    key: key.clone(),
                    id,
                    cause,
                    pod,
                });
                return (true, now);
            }
            let ready = (container.ready_at > now).then_some(container.ready_at);
            let wake = ready.unwrap_or(Duration::MAX);
            return (false, wake.min(container.ends_at.unwrap_or(Duration::MAX)));
        }
        if !told {
            return never;
        }
        let Some(want) = slot.want.clone() else {
            let generation = slot.generation;
            self.slots.remove(key);
            self.stopped.push(ReplicaReport {
                key: Some(key.into()),
                generation,
                phase: ReplicaPhase::Stopped.into(),
                ..ReplicaReport::default()
            });
            return never;
        };
        let policy = want.start.pod.restart_policy();
        if slot
            .exit
            .as_ref()
            .is_some_and(|(_, pod)| *pod != want.start.pod)
        {
            slot.exit = None;
        }
        let over = match (slot.exit_code(), policy) {
            (Some(_), RestartPolicy::Never) | (Some(0), RestartPolicy::OnFailure) => true,
            _ => want.finished.is_some(),
        };
        if over {
            return never;
        }
        if slot.not_before > now {
            return (false, slot.not_before);
        }
        let image = want.start.pod.containers.first().map(|c| c.image.clone());
        let image = image.unwrap_or_default();
        if !self.images.contains(&image) {
            match slot.pulling {
                None => slot.pulling = Some(now + self.rng.millis(300, 2000)),
                Some(at) if at <= now => {
                    slot.pulling = None;
                    if self.registry {
                        slot.pull_failed = false;
                        self.images.insert(image);
                        return (true, now);
                    }
                    slot.pull_failed = true;
                    slot.not_before = now + PULL_AGAIN;
                    return (false, slot.not_before);
                }
                Some(_) => {}
            }
            return (false, slot.pulling.unwrap_or(Duration::MAX));
        }
        self.starts += 1;
        let id = (self.device << 32) | self.starts;
        let ready_at = now + self.rng.millis(100, 900);
        slot.exit = None;
        let pod = Box::new(want.start.pod.clone());
        slot.container = Some(Container {
            id,
            ready_at,
            ends_at: runs_for(&want.start.pod).map(|runs| now + runs),
            stops_at: None,
            pod: want.start.pod,
        });
        self.happened.push(Happened::Started {
            key: key.clone(),
            generation: want.start.generation,
            id,
            pod,
        });
        (true, now)
    }

    /// The last report of each replica, as a supervisor gives them.
    pub(crate) fn reports(&self, now: Duration) -> Vec<ReplicaReport> {
        let wanted = self
            .slots
            .iter()
            .filter(|(_, s)| s.want.is_some() || s.container.is_some());
        wanted.map(|(key, slot)| slot.report(key, now)).collect()
    }

    /// Last words since the last call.
    pub(crate) fn take_stopped(&mut self) -> Vec<ReplicaReport> {
        std::mem::take(&mut self.stopped)
    }
}

fn backoff(crashes: u32) -> Duration {
    (BACKOFF * 2_u32.pow(crashes.min(6) - 1)).min(BACKOFF_MAX)
}

impl Slot {
    fn exit_code(&self) -> Option<i32> {
        self.exit.as_ref().map(|(code, _)| *code)
    }

    fn report(&self, key: &ReplicaKey, now: Duration) -> ReplicaReport {
        let mut report = ReplicaReport {
            key: Some(key.into()),
            generation: self.generation,
            restarts: self.crashes,
            ..ReplicaReport::default()
        };
        let finished = self.want.as_ref().and_then(|w| w.finished.as_ref());
        let (phase, reason) = match (&self.container, finished) {
            (Some(c), _) if self.want.is_none() || c.stops_at.is_some() => {
                (ReplicaPhase::Stopping, "")
            }
            (Some(c), _) => {
                report.ready = c.ready_at <= now;
                report.container_ids = vec![format!("{:x}", c.id)];
                (ReplicaPhase::Running, "")
            }
            (None, Some(finished)) => {
                report.exit_code = finished.exit_code;
                (finished.phase, "Completed")
            }
            (None, None) => match self.exit_code() {
                _ if self.pull_failed => (ReplicaPhase::Backoff, "ImagePullFailed"),
                Some(code) => {
                    report.exit_code = code;
                    let policy = self.want.as_ref().map(|w| w.start.pod.restart_policy());
                    match (policy, code) {
                        (Some(RestartPolicy::Never | RestartPolicy::OnFailure), 0) => {
                            (ReplicaPhase::Succeeded, "Completed")
                        }
                        (Some(RestartPolicy::Never), _) => (ReplicaPhase::Failed, "Error"),
                        _ => (ReplicaPhase::Backoff, "CrashLoop"),
                    }
                }
                None if self.pulling.is_some() => (ReplicaPhase::Pulling, ""),
                None => (ReplicaPhase::Starting, ""),
            },
        };
        report.phase = phase.into();
        report.reason = reason.to_owned();
        report
    }
}
