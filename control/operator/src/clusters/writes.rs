//! Writes to a workload cluster: one per Pod that is made or deleted.

use std::collections::VecDeque;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, Namespace, ObjectReference, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::core::ObjectMeta;
use tokio::task::JoinSet;
use tracing::debug;

use super::connect::plain;
use super::pod;
use super::state::{At, CreateError};

/// Writes in flight. Each is a request of its own, so that none waits for another.
const PARALLEL: usize = 64;
/// Time for one.
const ANSWER: Duration = Duration::from_secs(15);

/// What became of a write.
pub enum Written {
    /// A Pod was to be made.
    Created {
        /// Which attempt.
        ticket: u64,
        /// Of which replica.
        at: At,
        /// Whether it was.
        result: Result<(), CreateError>,
        /// A right is missing.
        forbidden: bool,
    },
    /// A Pod could not be deleted, or bound to its node.
    NotDone {
        /// Of which replica.
        at: At,
        /// Name of the Pod.
        name: String,
        /// A right is missing.
        forbidden: bool,
    },
    /// It was, or is on its way, or nothing is left to be done.
    Done,
}

enum Write {
    Create(u64, At, Box<Pod>),
    Delete {
        at: At,
        name: String,
        uid: String,
        grace: Option<u32>,
    },
    Bind {
        at: At,
        name: String,
        uid: String,
        machine: String,
    },
}

/// Writes that wait, and those in flight.
pub struct Writes {
    client: kube::Client,
    owner: String,
    queue: VecDeque<Write>,
    running: JoinSet<Written>,
}

impl Writes {
    /// To the cluster whose HyperionCluster has the uid `owner`.
    #[must_use]
    pub fn new(client: kube::Client, owner: &str) -> Self {
        Self {
            client,
            owner: owner.to_owned(),
            queue: VecDeque::new(),
            running: JoinSet::new(),
        }
    }

    /// Makes a Pod.
    pub fn create(&mut self, ticket: u64, at: At, pod: Box<Pod>) {
        self.queue.push_back(Write::Create(ticket, at, pod));
        self.fill();
    }

    /// Deletes a Pod.
    pub fn delete(&mut self, at: At, name: String, uid: String, grace: Option<u32>) {
        self.queue.push_back(Write::Delete {
            at,
            name,
            uid,
            grace,
        });
        self.fill();
    }

    /// Binds a Pod to its node.
    pub fn bind(&mut self, at: At, name: String, uid: String, machine: String) {
        self.queue.push_back(Write::Bind {
            at,
            name,
            uid,
            machine,
        });
        self.fill();
    }

    /// The next that is done; never, while there is none.
    pub async fn next(&mut self) -> Written {
        loop {
            match self.running.join_next().await {
                Some(Ok(written)) => {
                    self.fill();
                    return written;
                }
                // One that ended badly is found out of by the next list.
                Some(Err(e)) => debug!(error = %e, "write"),
                None => std::future::pending().await,
            }
        }
    }

    fn fill(&mut self) {
        while self.running.len() < PARALLEL
            && let Some(write) = self.queue.pop_front()
        {
            let (client, owner) = (self.client.clone(), self.owner.clone());
            match write {
                Write::Create(ticket, at, pod) => {
                    self.running.spawn(async move {
                        let (result, forbidden) = create(&client, &owner, &pod).await;
                        Written::Created {
                            ticket,
                            at,
                            result,
                            forbidden,
                        }
                    });
                }
                Write::Delete {
                    at,
                    name,
                    uid,
                    grace,
                } => {
                    self.running.spawn(async move {
                        let failed = delete(&client, &at.1.namespace, &name, uid, grace).await;
                        done(failed, at, name)
                    });
                }
                Write::Bind {
                    at,
                    name,
                    uid,
                    machine,
                } => {
                    self.running.spawn(async move {
                        let failed = bind(&client, &at.1.namespace, &name, uid, machine).await;
                        done(failed, at, name)
                    });
                }
            }
        }
    }
}

/// What became of a write to a Pod that is there: where it failed, whether a right is missing.
fn done(failed: Option<bool>, at: At, name: String) -> Written {
    match failed {
        None => Written::Done,
        Some(forbidden) => Written::NotDone {
            at,
            name,
            forbidden,
        },
    }
}

/// Makes a Pod, and its namespace where there is none. The second value is true where a right is
/// missing.
async fn create(client: &kube::Client, owner: &str, pod: &Pod) -> (Result<(), CreateError>, bool) {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let params = PostParams::default();
    let mut first = true;
    loop {
        let error = match tokio::time::timeout(ANSWER, api.create(&params, pod)).await {
            Ok(Ok(_)) => return (Ok(()), false),
            Ok(Err(kube::Error::Api(e))) => e,
            Ok(Err(e)) => return (Err(CreateError::Busy(plain(&e))), false),
            Err(_) => return (Err(CreateError::Busy("no answer".to_owned())), false),
        };
        let refused = |forbidden: bool| {
            let reason = match error.reason.as_str() {
                "" => "Refused".to_owned(),
                reason => reason.to_owned(),
            };
            let message = error.message.clone();
            (Err(CreateError::Refused { reason, message }), forbidden)
        };
        match error.code {
            404 if first => {
                first = false;
                if let Some(answer) = namespaced(client, &namespace).await {
                    return answer;
                }
            }
            409 if error.reason == "AlreadyExists" => {
                return (existing(&api, owner, pod).await, false);
            }
            409 | 429 => return (Err(CreateError::Busy(error.message.clone())), false),
            // A quota, or an account that is being made, is no right that is missing.
            403 => return refused(error.message.contains("cannot create resource")),
            400..=499 => return refused(false),
            _ => return (Err(CreateError::Busy(error.message.clone())), false),
        }
    }
}

/// Makes a namespace; an answer where that fails.
async fn namespaced(client: &kube::Client, name: &str) -> Option<(Result<(), CreateError>, bool)> {
    let api: Api<Namespace> = Api::all(client.clone());
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(pod::namespace_labels()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let error =
        match tokio::time::timeout(ANSWER, api.create(&PostParams::default(), &object)).await {
            Ok(Ok(_)) => return None,
            Ok(Err(kube::Error::Api(e))) if e.code == 409 => return None,
            Ok(Err(kube::Error::Api(e))) if (400..500).contains(&e.code) && e.code != 429 => {
                let (reason, message) = (e.reason.clone(), e.message.clone());
                return Some((Err(CreateError::Refused { reason, message }), false));
            }
            Ok(Err(e)) => plain(&e),
            Err(_) => "no answer".to_owned(),
        };
    Some((
        Err(CreateError::Busy(format!("namespace {name}: {error}"))),
        false,
    ))
}

/// There is a Pod of that name: ours, made before an answer was lost, or somebody else's.
async fn existing(api: &Api<Pod>, owner: &str, wanted: &Pod) -> Result<(), CreateError> {
    let name = wanted.name_any();
    let held = match tokio::time::timeout(ANSWER, api.get_opt(&name)).await {
        Ok(Ok(held)) => held,
        Ok(Err(e)) => return Err(CreateError::Busy(plain(&e))),
        Err(_) => return Err(CreateError::Busy("no answer".to_owned())),
    };
    let Some(held) = held else {
        return Err(CreateError::Busy(format!("Pod {name} was just deleted")));
    };
    match (pod::ours(&held, owner), pod::ours(wanted, owner)) {
        (Some(held), Some(wanted)) if held.node == wanted.node => Ok(()),
        _ => {
            let namespace = wanted.namespace().unwrap_or_default();
            let text = format!("Pod {namespace}/{name} is there, and is not of this replica");
            Err(CreateError::Taken(text))
        }
    }
}

/// Binds a Pod to a node, as a scheduler does; none where that is done or the Pod is gone, else whether
/// a right is missing.
async fn bind(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    uid: String,
    machine: String,
) -> Option<bool> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(uid),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(machine),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = PostParams::default();
    let asked = api.create_subresource::<_, serde_json::Value>("binding", name, &params, &binding);
    settled(asked, "bind", namespace, name).await
}

/// Deletes a Pod; none where it is gone or on its way, else whether a right is missing.
async fn delete(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    uid: String,
    grace: Option<u32>,
) -> Option<bool> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions {
            uid: Some(uid),
            ..Preconditions::default()
        }),
        ..DeleteParams::default()
    };
    settled(api.delete(name, &params), "delete", namespace, name).await
}

/// What became of a request about a Pod; none where it is done or there is nothing left to do, else
/// whether a right is missing.
async fn settled<T>(
    asked: impl Future<Output = Result<T, kube::Error>>,
    what: &str,
    namespace: &str,
    name: &str,
) -> Option<bool> {
    let error = match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(_)) => return None,
        // Gone, another of the same name, or bound already: the watch tells.
        Ok(Err(kube::Error::Api(e))) if matches!(e.code, 404 | 409) => return None,
        Ok(Err(e)) => e,
        Err(_) => return Some(false),
    };
    debug!(namespace, name, error = plain(&error), "cannot {what} Pod");
    Some(matches!(&error, kube::Error::Api(e) if e.code == 403))
}
