//! Carries out what was decided, against the API. It has no choices left.
//!
//! Every object has a lane: at most one write at a time, the part that a decision is made of
//! before its status, and of several writes that wait only the newest. Different objects do not
//! wait for each other. Where more waits than can be written at once, decisions go before statuses
//! and new finalizers: nodes wait for those, and a status that waits is often overtaken by the next.
//! A workload that is deleted before its finalizer was written has its replicas stopped all the same.

mod placement;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hyperion_api::placement::HyperionPlacement;
use hyperion_api::quota::HyperionQuota;
use hyperion_api::workload::HyperionWorkload;
use hyperion_api::{FINALIZER, MANAGER};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::index::Name;
use crate::metrics::Metrics;
use crate::plan::Action;

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// The API holds the decision.
    Stored {
        /// Workload.
        workload: Name,
        /// Replica.
        replica: u32,
        /// Generation.
        generation: i64,
    },
    /// The API holds no such placement, and will not.
    Gone {
        /// Workload.
        workload: Name,
        /// Replica.
        replica: u32,
        /// Generation that could not be stored; any, where it was to be deleted.
        generation: i64,
    },
    /// The API refused a workload that was applied at a site.
    NotMade {
        /// Workload.
        workload: Name,
        /// The API server's word.
        error: String,
    },
}

/// Field manager of workloads that were applied at a site first.
const SITE_MANAGER: &str = "hyperion-site";
/// Writes in flight.
const PARALLEL: usize = 32;
/// Of these, statuses and other writes that can wait, which go on however many decisions do.
const PATIENT: usize = 4;
/// First wait after a failure.
const BACKOFF: Duration = Duration::from_millis(100);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// Attempts at something that the API refuses.
const REFUSALS: u32 = 5;
/// Time for writes in flight when the leader stops.
const DRAIN: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Lane {
    Workload(Name),
    Placement(Name, u32),
    Quota(Name),
}

#[derive(Debug, Clone)]
enum Write {
    Store(Box<HyperionPlacement>),
    Delete,
    Finalizer { uid: String, present: bool },
    Status(Value),
    Make(Box<HyperionWorkload>),
}

impl Write {
    /// Nobody waits for it: replicas run without it.
    fn can_wait(&self) -> bool {
        matches!(
            self,
            Self::Status(_) | Self::Finalizer { present: true, .. }
        )
    }
}

#[derive(Default)]
struct Work {
    spec: Option<Write>,
    status: Option<Write>,
    stage: Stage,
    failures: u32,
}

impl Work {
    /// The next write of it is one that others wait for.
    fn urgent(&self) -> bool {
        self.spec.as_ref().is_some_and(|write| !write.can_wait())
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// Nothing is asked for.
    #[default]
    Idle,
    /// For its turn.
    Waiting,
    /// A write is in flight, or it rests after a failure.
    Busy,
}

/// Lanes that wait for their turn. One may be in both queues, or twice in one: whoever takes it out
/// sees by its stage whether it still waits.
#[derive(Default)]
struct Turns {
    decisions: VecDeque<Lane>,
    patient: VecDeque<Lane>,
}

impl Turns {
    /// The next one, where so many writes that could wait are being made.
    fn next(&mut self, patient: usize) -> Option<Lane> {
        let first = (patient < PATIENT)
            .then(|| self.patient.pop_front())
            .flatten();
        first
            .or_else(|| self.decisions.pop_front())
            .or_else(|| self.patient.pop_front())
    }
}

struct Done {
    lane: Lane,
    write: Write,
    result: Result<(), kube::Error>,
}

/// Carries out actions until `stop`; what became of decisions goes to `results`.
pub async fn run(
    client: kube::Client,
    mut actions: mpsc::UnboundedReceiver<Vec<Action>>,
    results: mpsc::UnboundedSender<Applied>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut lanes = Lanes {
        client,
        results,
        metrics,
        lanes: HashMap::new(),
        turns: Turns::default(),
        patient: 0,
        running: JoinSet::new(),
        resting: JoinSet::new(),
    };
    loop {
        lanes.fill();
        tokio::select! {
            () = stop.cancelled() => break,
            asked = actions.recv() => match asked {
                Some(asked) => asked.into_iter().for_each(|a| lanes.add(a)),
                None => break,
            },
            Some(done) = lanes.running.join_next(), if !lanes.running.is_empty() => {
                if let Ok(done) = done {
                    lanes.done(done);
                }
            }
            Some(lane) = lanes.resting.join_next(), if !lanes.resting.is_empty() => {
                if let Ok(lane) = lane {
                    lanes.queue(lane);
                }
            }
        }
    }
    // What was begun is finished; what was not is decided again by the next leader.
    let drain = async { while lanes.running.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drain).await.is_err() {
        debug!("writes in flight were cut off");
    }
}

struct Lanes {
    client: kube::Client,
    results: mpsc::UnboundedSender<Applied>,
    metrics: Metrics,
    lanes: HashMap<Lane, Work>,
    turns: Turns,
    /// Writes in flight that could have waited.
    patient: usize,
    running: JoinSet<Done>,
    /// Lanes that wait after a failure; they take no place from others.
    resting: JoinSet<Lane>,
}

impl Lanes {
    fn add(&mut self, action: Action) {
        let (lane, write) = match action {
            Action::Store(object) => {
                let workload = Name::new(
                    object.metadata.namespace.as_deref().unwrap_or_default(),
                    &object.spec.workload,
                );
                let replica = u32::try_from(object.spec.replica).unwrap_or(0);
                (Lane::Placement(workload, replica), Write::Store(object))
            }
            Action::Delete { workload, replica } => {
                (Lane::Placement(workload, replica), Write::Delete)
            }
            Action::PlacementStatus {
                workload,
                replica,
                status,
            } => (
                Lane::Placement(workload, replica),
                Write::Status(json!(status)),
            ),
            Action::WorkloadStatus { workload, status } => {
                (Lane::Workload(workload), Write::Status(json!(status)))
            }
            Action::QuotaStatus { quota, status } => {
                (Lane::Quota(quota), Write::Status(json!(status)))
            }
            Action::Finalizer {
                workload,
                uid,
                present,
            } => (Lane::Workload(workload), Write::Finalizer { uid, present }),
            Action::Make(object) => {
                let name = Name::new(
                    object.metadata.namespace.as_deref().unwrap_or_default(),
                    object.metadata.name.as_deref().unwrap_or_default(),
                );
                (Lane::Workload(name), Write::Make(object))
            }
            Action::Start { .. }
            | Action::Stop { .. }
            | Action::Event { .. }
            | Action::Experience(_) => return,
        };
        let work = self.lanes.entry(lane.clone()).or_default();
        let was_urgent = work.urgent();
        match write {
            Write::Status(_) => work.status = Some(write),
            // There is nothing left to write a status on.
            Write::Delete => (work.spec, work.status) = (Some(write), None),
            _ => work.spec = Some(write),
        }
        let promoted = work.stage == Stage::Waiting && !was_urgent && work.urgent();
        if work.stage == Stage::Idle || promoted {
            self.queue(lane);
        }
    }

    /// Has a lane wait for its turn, or forgets it where nothing is left to do.
    fn queue(&mut self, lane: Lane) {
        let Some(work) = self.lanes.get_mut(&lane) else {
            return;
        };
        work.stage = Stage::Waiting;
        if work.urgent() {
            self.turns.decisions.push_back(lane);
        } else if work.spec.is_some() || work.status.is_some() {
            self.turns.patient.push_back(lane);
        } else {
            self.lanes.remove(&lane);
        }
    }

    fn fill(&mut self) {
        while self.running.len() < PARALLEL
            && let Some(lane) = self.turns.next(self.patient)
        {
            let waiting = self.lanes.get_mut(&lane);
            let Some(work) = waiting.filter(|w| w.stage == Stage::Waiting) else {
                continue;
            };
            let Some(write) = work.spec.take().or_else(|| work.status.take()) else {
                continue;
            };
            work.stage = Stage::Busy;
            self.patient += usize::from(write.can_wait());
            let client = self.client.clone();
            self.running.spawn(async move {
                let result = write_one(&client, &lane, &write).await;
                Done {
                    lane,
                    write,
                    result,
                }
            });
        }
    }

    fn done(&mut self, done: Done) {
        let Done {
            lane,
            write,
            result,
        } = done;
        self.patient -= usize::from(write.can_wait());
        let Some(work) = self.lanes.get_mut(&lane) else {
            return;
        };
        let verdict = match result {
            Ok(()) => Ok(true),
            // A status of something that is gone, or a deletion of it.
            Err(kube::Error::Api(e)) if e.code == 404 && !matches!(write, Write::Store(_)) => {
                Ok(false)
            }
            // Another object of the same name.
            Err(kube::Error::Api(e)) if e.code == 409 && matches!(write, Write::Make(_)) => {
                Ok(false)
            }
            Err(kube::Error::Api(e)) if matches!(write, Write::Finalizer { .. }) && other(&e) => {
                Ok(false)
            }
            Err(e) => Err(e),
        };
        let mut told = None;
        match verdict {
            Ok(found) => {
                work.failures = 0;
                told = outcome(&lane, &write, found);
            }
            Err(e) => {
                work.failures += 1;
                self.metrics.write_failures.inc();
                let refused = matches!(&e, kube::Error::Api(s) if (400..500).contains(&s.code) && s.code != 409 && s.code != 429);
                warn!(object = ?lane, error = %e, attempt = work.failures, "cannot write");
                if refused && work.failures >= REFUSALS {
                    work.failures = 0;
                    told = match (&lane, &write) {
                        (Lane::Workload(workload), Write::Make(_)) => Some(Applied::NotMade {
                            workload: workload.clone(),
                            error: e.to_string(),
                        }),
                        _ => outcome(&lane, &write, false),
                    };
                } else {
                    // A newer write of the same part takes its place.
                    match write {
                        Write::Status(_) => work.status = work.status.take().or(Some(write)),
                        _ => work.spec = work.spec.take().or(Some(write)),
                    }
                }
            }
        }
        let wait = wait(work.failures);
        if wait.is_zero() {
            self.queue(lane);
        } else {
            self.resting.spawn(async move {
                tokio::time::sleep(wait).await;
                lane
            });
        }
        if let Some(told) = told {
            // Nobody listens any more: the leader stops.
            let _ = self.results.send(told);
        }
    }
}

/// Says the API that the uid in a patch is not that of the object, or that there is none any more?
fn other(status: &kube::core::Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    let uid = causes.any(|cause| cause.field == "metadata.uid");
    status.code == 409 || status.code == 422 && uid
}

fn outcome(lane: &Lane, write: &Write, found: bool) -> Option<Applied> {
    let Lane::Placement(workload, replica) = lane else {
        return None;
    };
    let (workload, replica) = (workload.clone(), *replica);
    match write {
        Write::Store(object) if found => Some(Applied::Stored {
            workload,
            replica,
            generation: object.spec.generation,
        }),
        Write::Store(object) => Some(Applied::Gone {
            workload,
            replica,
            generation: object.spec.generation,
        }),
        // Where there was one, the watch tells when it is gone.
        Write::Delete if !found => Some(Applied::Gone {
            workload,
            replica,
            generation: i64::MAX,
        }),
        _ => None,
    }
}

fn wait(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    (BACKOFF * 2_u32.pow(failures.min(7) - 1)).min(BACKOFF_MAX)
}

async fn write_one(client: &kube::Client, lane: &Lane, write: &Write) -> Result<(), kube::Error> {
    let params = PatchParams::apply(MANAGER).force();
    match (lane, write) {
        (Lane::Placement(workload, replica), write) => {
            let api: Api<HyperionPlacement> = Api::namespaced(client.clone(), &workload.namespace);
            let name = format!("{}-{replica}", workload.name);
            match write {
                Write::Store(object) => placement::store(&api, &name, object).await?,
                Write::Delete => {
                    api.delete(&name, &DeleteParams::default()).await?;
                }
                Write::Status(status) => {
                    let body = body("HyperionPlacement", &name, "status", status);
                    api.patch_status(&name, &params, &Patch::Apply(body))
                        .await?;
                }
                Write::Finalizer { .. } | Write::Make(_) => {}
            }
        }
        (Lane::Quota(quota), Write::Status(status)) => {
            let api: Api<kube::core::PartialObjectMeta<HyperionQuota>> =
                Api::namespaced(client.clone(), &quota.namespace);
            let body = body("HyperionQuota", &quota.name, "status", status);
            api.patch_status(&quota.name, &params, &Patch::Apply(body))
                .await?;
        }
        (Lane::Quota(_), _) => {}
        (Lane::Workload(workload), write) => {
            let api: Api<HyperionWorkload> = Api::namespaced(client.clone(), &workload.namespace);
            let name = &workload.name;
            match write {
                Write::Finalizer { uid, present } => {
                    let list: &[&str] = if *present { &[FINALIZER] } else { &[] };
                    let mut body = body("HyperionWorkload", name, "spec", &Value::Null);
                    if let Some(fields) = body.as_object_mut() {
                        fields.remove("spec");
                    }
                    // The uid keeps a namesake that was made since from being touched.
                    body["metadata"]["uid"] = json!(uid);
                    body["metadata"]["finalizers"] = json!(list);
                    let api: Api<kube::core::PartialObjectMeta<HyperionWorkload>> =
                        Api::namespaced(client.clone(), &workload.namespace);
                    api.patch(name, &params, &Patch::Apply(body)).await?;
                }
                Write::Status(status) => {
                    let body = body("HyperionWorkload", name, "status", status);
                    // The answer need not be readable: the object may be a bad one.
                    let api: Api<kube::core::PartialObjectMeta<HyperionWorkload>> =
                        Api::namespaced(client.clone(), &workload.namespace);
                    api.patch_status(name, &params, &Patch::Apply(body)).await?;
                }
                Write::Make(object) => {
                    ensure_namespace(client, &workload.namespace).await?;
                    let params = PostParams {
                        field_manager: Some(SITE_MANAGER.to_owned()),
                        ..PostParams::default()
                    };
                    api.create(&params, object).await?;
                }
                Write::Store(_) | Write::Delete => drop(api),
            }
        }
    }
    Ok(())
}

async fn ensure_namespace(client: &kube::Client, name: &str) -> Result<(), kube::Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    if api.get_opt(name).await?.is_some() {
        return Ok(());
    }
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.to_owned());
    match api.create(&PostParams::default(), &namespace).await {
        Err(kube::Error::Api(e)) if e.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

fn body(kind: &str, name: &str, part: &str, value: &Value) -> Value {
    json!({
        "apiVersion": "hyperion.io/v1alpha1",
        "kind": kind,
        "metadata": { "name": name },
        part: value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_go_before_statuses_and_some_statuses_are_written_all_the_same() {
        let lane = |n: u32| Lane::Placement(Name::new("d", "w"), n);
        let mut turns = Turns::default();
        turns.patient.extend((0..3).map(lane));
        turns.decisions.extend((10..12).map(lane));
        let mut order = Vec::new();
        for patient in [PATIENT - 1, PATIENT, PATIENT, PATIENT, PATIENT] {
            order.push(turns.next(patient).unwrap());
        }
        assert_eq!(order, [0, 10, 11, 1, 2].map(lane));
        assert_eq!(turns.next(0), None);
    }

    #[test]
    fn a_new_finalizer_can_wait_and_one_that_is_taken_off_cannot() {
        let work = |present| Work {
            spec: Some(Write::Finalizer {
                uid: String::new(),
                present,
            }),
            ..Work::default()
        };
        assert!(!work(true).urgent());
        assert!(work(false).urgent());
        assert!(!Work::default().urgent());
    }

    #[test]
    fn a_namesake_is_told_from_a_refusal() {
        let status = |code: u16, field: &str| -> kube::core::Status {
            let causes = json!([{ "reason": "FieldValueInvalid", "field": field }]);
            let status = json!({ "code": code, "details": { "causes": causes } });
            serde_json::from_value(status).unwrap()
        };
        assert!(other(&status(409, "")));
        assert!(other(&status(422, "metadata.uid")));
        assert!(!other(&status(422, "metadata.finalizers")));
        assert!(!other(&status(403, "metadata.uid")));
    }
}
