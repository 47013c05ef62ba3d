//! Makes and deletes NodeClaims in one cluster, and tells what it sees of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hyperion_api::capacity::{Capacity, NodeClassRef};
use hyperion_api::conditions;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::DynamicObject;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::{Make, Seen, Wants, object};
use crate::clusters::connect::{self, Trouble};
use crate::clusters::pod::LABEL_OWNER;

/// Time for one answer. Admission webhooks take their time.
const ANSWER: Duration = Duration::from_secs(15);
/// How often it is looked whether machines can be launched, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(15);
/// Wait before a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Writes in flight.
const PARALLEL: usize = 8;
/// Watches are begun anew so often, seconds, as those of nodes.
const WATCH: u32 = 120;
/// What waits to be heard.
const SAID: usize = 256;

/// What is seen.
#[derive(Debug)]
pub enum Said {
    /// Whether machines can be launched.
    Works(Result<(), Trouble>),
    /// All claims of ours.
    Listed(Vec<Seen>),
    /// One that was made or changed.
    Seen(Box<Seen>),
    /// There is no such claim any more.
    Gone(String),
    /// The API server does not take it, for this reason.
    Refused(String, String),
}

/// The claims of one cluster. They are looked after until this is dropped.
pub struct Claims {
    said: mpsc::Receiver<Said>,
    leave: watch::Sender<bool>,
    held: BTreeSet<String>,
    listed: bool,
    _task: JoinSet<()>,
}

impl Claims {
    /// Looks after the claims of the cluster whose HyperionCluster has the uid `owner`. Without a
    /// capacity nothing is made, and what there is can be given back.
    #[must_use]
    pub fn start(
        client: kube::Client,
        owner: &str,
        capacity: Option<&Capacity>,
        wants: watch::Receiver<Arc<Wants>>,
    ) -> Self {
        let (out, said) = mpsc::channel(SAID);
        let (leave, leaving) = watch::channel(false);
        let work = Work {
            api: Api::all_with(client.clone(), &object::kind()),
            client,
            owner: owner.to_owned(),
            class: capacity.map(|c| c.node_class_ref.clone()),
            wants,
            leaving,
            out,
            held: BTreeMap::new(),
            made: BTreeSet::new(),
            busy: BTreeSet::new(),
            listed: false,
            writes: JoinSet::new(),
        };
        let mut task = JoinSet::new();
        task.spawn(work.run());
        Self {
            said,
            leave,
            held: BTreeSet::new(),
            listed: false,
            _task: task,
        }
    }

    /// What is seen next.
    pub async fn next(&mut self) -> Said {
        let Some(said) = self.said.recv().await else {
            return std::future::pending().await;
        };
        match &said {
            Said::Listed(all) => {
                self.held = all.iter().map(|s| s.name.clone()).collect();
                self.listed = true;
            }
            // There are none of what there is not.
            Said::Works(Err(trouble)) if trouble.reason == conditions::REASON_KARPENTER_MISSING => {
                self.held.clear();
                self.listed = true;
            }
            Said::Seen(seen) => drop(self.held.insert(seen.name.clone())),
            Said::Gone(name) => drop(self.held.remove(name)),
            Said::Works(_) | Said::Refused(..) => {}
        }
        said
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.held.len()
    }

    /// It is known which there are.
    #[must_use]
    pub const fn is_listed(&self) -> bool {
        self.listed
    }

    /// Deletes all of them, whatever is wanted: the cluster is to be left.
    pub fn leave(&self) {
        self.leave.send_replace(true);
    }
}

enum Wrote {
    /// It is done, or somebody else has done it.
    Done(String),
    /// It is to be tried again.
    Again(String),
    /// It will not be done, and this is why; whether a right is missing.
    Refused(String, String, bool),
}

struct Work {
    client: kube::Client,
    api: Api<DynamicObject>,
    owner: String,
    class: Option<NodeClassRef>,
    wants: watch::Receiver<Arc<Wants>>,
    leaving: watch::Receiver<bool>,
    out: mpsc::Sender<Said>,
    /// Uid of each claim that there is; none of one that is being deleted.
    held: BTreeMap<String, Option<String>>,
    /// Those that were made for what is wanted now: never a second time.
    made: BTreeSet<String>,
    /// With a write in flight.
    busy: BTreeSet<String>,
    listed: bool,
    writes: JoinSet<Wrote>,
}

impl Work {
    async fn run(mut self) {
        let labels = format!("{LABEL_OWNER}={}", self.owner);
        let config = watcher::Config::default().labels(&labels).timeout(WATCH);
        let watch = |api: &Api<DynamicObject>| watcher(api.clone(), config.clone());
        let mut events = watch(&self.api).default_backoff().boxed();
        let mut worked = true;
        let mut list = Vec::new();
        let mut look = tokio::time::interval(LOOK);
        loop {
            self.reconcile();
            tokio::select! {
                event = events.next() => match event {
                    None => return,
                    Some(Err(e)) => {
                        debug!(error = connect::plain(&e), "watch of NodeClaims");
                        look.reset_after(AGAIN);
                    }
                    Some(Ok(event)) => if !self.seen(event, &mut list).await { return },
                },
                changed = self.wants.changed() => if changed.is_err() { return },
                changed = self.leaving.changed() => if changed.is_err() { return },
                Some(wrote) = self.writes.join_next() => {
                    if let Ok(wrote) = wrote && !self.wrote(wrote).await {
                        return;
                    }
                }
                _ = look.tick() => {
                    let works = self.works().await;
                    if !std::mem::replace(&mut worked, works.is_ok()) && works.is_ok() {
                        // Not when the old one would try again.
                        events = watch(&self.api).default_backoff().boxed();
                    }
                    if !self.tell(Said::Works(works)).await {
                        return;
                    }
                }
            }
        }
    }

    /// False where nobody listens any more.
    async fn tell(&self, said: Said) -> bool {
        self.out.send(said).await.is_ok()
    }

    async fn seen(
        &mut self,
        event: watcher::Event<DynamicObject>,
        list: &mut Vec<DynamicObject>,
    ) -> bool {
        let clock = Timestamp::now();
        match event {
            watcher::Event::Init => list.clear(),
            watcher::Event::InitApply(claim) => list.push(claim),
            watcher::Event::InitDone => {
                self.held.clear();
                list.iter().for_each(|claim| self.hold(claim));
                self.listed = true;
                let all = list.drain(..).map(|c| object::seen(&c, clock)).collect();
                return self.tell(Said::Listed(all)).await;
            }
            watcher::Event::Apply(claim) => {
                self.hold(&claim);
                let seen = object::seen(&claim, clock);
                return self.tell(Said::Seen(Box::new(seen))).await;
            }
            watcher::Event::Delete(claim) => {
                self.held.remove(&claim.name_any());
                return self.tell(Said::Gone(claim.name_any())).await;
            }
        }
        true
    }

    fn hold(&mut self, claim: &DynamicObject) {
        let open = claim.metadata.deletion_timestamp.is_none();
        let uid = claim.uid().filter(|_| open);
        self.held.insert(claim.name_any(), uid);
    }

    /// Begins what is to be done and not under way.
    fn reconcile(&mut self) {
        if !self.listed {
            return;
        }
        let wants = self.wants.borrow_and_update().clone();
        let leave = *self.leaving.borrow_and_update();
        self.made.retain(|name| wants.make.contains_key(name));
        for (name, make) in wants.make.iter().filter(|_| !leave) {
            let known = self.held.contains_key(name) || self.made.contains(name);
            if known || self.busy.contains(name) || self.writes.len() >= PARALLEL {
                continue;
            }
            self.made.insert(name.clone());
            self.busy.insert(name.clone());
            let (api, owner) = (self.api.clone(), self.owner.clone());
            self.writes
                .spawn(create(api, owner, name.clone(), make.clone()));
        }
        for (name, uid) in &self.held {
            let over = leave || wants.give_back.contains(name);
            let (true, Some(uid)) = (over, uid) else {
                continue;
            };
            if self.busy.contains(name) || self.writes.len() >= PARALLEL {
                continue;
            }
            self.busy.insert(name.clone());
            self.writes
                .spawn(delete(self.api.clone(), name.clone(), uid.clone()));
        }
    }

    async fn wrote(&mut self, wrote: Wrote) -> bool {
        match wrote {
            Wrote::Done(name) => {
                self.busy.remove(&name);
                true
            }
            Wrote::Again(name) => {
                self.busy.remove(&name);
                self.made.remove(&name);
                true
            }
            Wrote::Refused(name, why, forbidden) => {
                self.busy.remove(&name);
                warn!(claim = name, why, "NodeClaim is refused");
                let reason = if forbidden {
                    conditions::REASON_FORBIDDEN
                } else {
                    conditions::REASON_NODE_CLAIM_REFUSED
                };
                let trouble = Trouble {
                    reason,
                    message: why.clone(),
                };
                self.tell(Said::Works(Err(trouble))).await
                    && self.tell(Said::Refused(name, why)).await
            }
        }
    }

    /// Whether machines can be launched: there are NodeClaims, and the node class.
    async fn works(&self) -> Result<(), Trouble> {
        let params = ListParams::default().limit(1);
        match tokio::time::timeout(ANSWER, self.api.list_metadata(&params)).await {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(e))) if e.code == 404 => {
                return Err(Trouble {
                    reason: conditions::REASON_KARPENTER_MISSING,
                    message: "the cluster has no NodeClaims (karpenter.sh/v1): Karpenter is not installed, or too old".to_owned(),
                });
            }
            Ok(Err(e)) => return Err(connect::trouble(&e)),
            Err(_) => return Err(silent()),
        }
        match &self.class {
            Some(class) => self.class_is_there(class).await,
            None => Ok(()),
        }
    }

    async fn class_is_there(&self, class: &NodeClassRef) -> Result<(), Trouble> {
        let missing = |what: String| Trouble {
            reason: conditions::REASON_NODE_CLASS_MISSING,
            message: format!("spec.capacity.nodeClassRef: {what}"),
        };
        let NodeClassRef { group, kind, name } = class;
        let found = kube::discovery::group(&self.client, group);
        let found = match tokio::time::timeout(ANSWER, found).await {
            Ok(Ok(found)) => found.recommended_kind(kind),
            Ok(Err(kube::Error::Discovery(_))) => None,
            Ok(Err(e)) => return Err(connect::trouble(&e)),
            Err(_) => return Err(silent()),
        };
        let Some((resource, _)) = found else {
            return Err(missing(format!("the cluster has no {kind} of {group}")));
        };
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        match tokio::time::timeout(ANSWER, api.get_metadata_opt(name)).await {
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err(missing(format!("there is no {kind} {name}"))),
            // Who may not look takes Karpenter's word for it.
            Ok(Err(kube::Error::Api(e))) if e.code == 403 => Ok(()),
            Ok(Err(e)) => Err(connect::trouble(&e)),
            Err(_) => Err(silent()),
        }
    }
}

fn silent() -> Trouble {
    Trouble {
        reason: conditions::REASON_UNREACHABLE,
        message: format!("no answer within {ANSWER:?}"),
    }
}

async fn create(api: Api<DynamicObject>, owner: String, name: String, make: Arc<Make>) -> Wrote {
    let claim = object::claim(&name, &owner, &make);
    let params = PostParams::default();
    let error = match tokio::time::timeout(ANSWER, api.create(&params, &claim)).await {
        Ok(Ok(_)) => {
            info!(claim = name, offer = make.purpose.offer, "NodeClaim made");
            return Wrote::Done(name);
        }
        Ok(Err(kube::Error::Api(e))) if e.code == 409 => {
            return match api.get_opt(&name).await {
                Ok(Some(held)) if held.metadata.deletion_timestamp.is_some() => again(name).await,
                Ok(Some(held)) if held.labels().get(LABEL_OWNER) == Some(&owner) => {
                    Wrote::Done(name)
                }
                Ok(Some(_)) => {
                    let why = "another NodeClaim has that name".to_owned();
                    Wrote::Refused(name, why, false)
                }
                _ => again(name).await,
            };
        }
        Ok(Err(e)) => e,
        // It may have been made: the name tells when it is tried again.
        Err(_) => return again(name).await,
    };
    match &error {
        kube::Error::Api(e) if (400..500).contains(&e.code) && !matches!(e.code, 408 | 429) => {
            Wrote::Refused(name, connect::plain(&error), e.code == 403)
        }
        _ => {
            debug!(
                claim = name,
                error = connect::plain(&error),
                "cannot make NodeClaim"
            );
            again(name).await
        }
    }
}

async fn delete(api: Api<DynamicObject>, name: String, uid: String) -> Wrote {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    match tokio::time::timeout(ANSWER, api.delete(&name, &params)).await {
        Ok(Ok(_)) => {
            info!(claim = name, "NodeClaim deleted");
            // The watch says so, and until then it is not asked for again.
            again(name).await
        }
        // Gone, or another of the same name.
        Ok(Err(kube::Error::Api(e))) if matches!(e.code, 404 | 409) => again(name).await,
        Ok(Err(e)) => {
            warn!(
                claim = name,
                error = connect::plain(&e),
                "cannot delete NodeClaim"
            );
            again(name).await
        }
        Err(_) => again(name).await,
    }
}

async fn again(name: String) -> Wrote {
    tokio::time::sleep(AGAIN).await;
    Wrote::Again(name)
}
