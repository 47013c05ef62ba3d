//! Where events about the fleet come from: five watches and a poll of live telemetry, in a thread
//! of their own, so that reading ten thousand nodes never makes a key wait.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt as _;
use hyperion_api::fleet::ScorerStatus;
use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::rollout::HyperionRollout;
use hyperion_api::workload::HyperionWorkload;
use k8s_openapi::api::core::v1::Event as KubeEvent;
use kube::Client;
use kube::api::Api;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use super::event::{Channel, Event};
use super::simulate::Simulation;
use crate::cli::lists::now_ms;
use crate::connect::{ConnectArgs, Connection};
use crate::error::Explained;
use crate::fleet::{Change, Happening, Node, Placement, Rollout, Workload};

/// Live telemetry is asked for this often.
const POLL: Duration = Duration::from_secs(1);
/// A poll that takes longer counts as no answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// First wait of a watch that failed.
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// A watch begins anew after this long: one whose connection died in silence is not silent for ever.
const WATCH_SECONDS: u32 = 60;
/// Objects asked for at a time.
const PAGE: u32 = 500;

/// Starts the thread. It ends when the receiver is gone.
pub fn start(args: ConnectArgs, events: Sender<Event>) -> std::io::Result<()> {
    in_thread(async move {
        match args.connect().await {
            Ok(connection) => follow(&connection, &events).await,
            Err(e) => {
                let failed = Event::Failed {
                    channel: Channel::Api,
                    cause: e.message,
                };
                let _ = events.send(failed).await;
            }
        }
    })
}

/// Starts a simulated fleet instead.
pub fn simulate(nodes: usize, events: Sender<Event>) -> std::io::Result<()> {
    in_thread(async move {
        let mut simulation = Simulation::new(1, nodes, now_ms());
        let mut changes = simulation.all();
        let mut clock = tokio::time::interval(POLL);
        loop {
            clock.tick().await;
            changes.extend(simulation.step(now_ms()));
            for change in changes.drain(..) {
                if events.send(Event::Change(change)).await.is_err() {
                    return;
                }
            }
        }
    })
}

fn in_thread(work: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("fleet".to_owned())
        .spawn(move || runtime.block_on(work))?;
    Ok(())
}

async fn follow(connection: &Connection, events: &Sender<Event>) {
    let client = &connection.client;
    let happening = |e: &KubeEvent| Happening::from_event(e);
    tokio::select! {
        () = poll(connection, events) => {}
        () = watch::<HyperionNode, Node>(client, events, Some(Channel::Nodes), |o| Some(Node::from(o))) => {}
        () = watch::<HyperionWorkload, Workload>(client, events, Some(Channel::Workloads), |o| Some(Workload::from(o))) => {}
        () = watch::<HyperionPlacement, Placement>(client, events, Some(Channel::Placements), |o| Some(Placement::from(o))) => {}
        // A control plane that knows none is no trouble.
        () = watch::<HyperionRollout, Rollout>(client, events, None, |o| Some(Rollout::from(o))) => {}
        () = watch::<KubeEvent, Happening>(client, events, Some(Channel::Events), happening) => {}
    }
}

/// Asks for live telemetry; that it is answered at all shows that the API server is there.
async fn poll(connection: &Connection, events: &Sender<Event>) {
    let mut since = 0;
    let mut scorer = ScorerStatus::default();
    let mut clock = tokio::time::interval(POLL);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let answer = tokio::time::timeout(PATIENCE, connection.live(since)).await;
        let mut sent = Vec::new();
        match answer {
            Ok(Ok(live)) => {
                // A control plane that was restarted counts from the beginning.
                since = if live.version < since {
                    0
                } else {
                    live.version
                };
                sent.push(Event::Reached(Channel::Api));
                sent.push(Event::Reached(Channel::Live));
                if live.scorer != scorer {
                    scorer = live.scorer.clone();
                    sent.push(Event::Change(Change::Scorer(live.scorer)));
                }
                if !live.nodes.is_empty() {
                    sent.push(Event::Change(Change::Live(live.nodes)));
                }
            }
            Ok(Err(error)) => {
                let explained = Explained::of(&error);
                let channel = if explained.unreachable {
                    Channel::Api
                } else {
                    sent.push(Event::Reached(Channel::Api));
                    Channel::Live
                };
                sent.push(Event::Failed {
                    channel,
                    cause: without_prefix(&explained.cause),
                });
            }
            Err(_) => sent.push(Event::Failed {
                channel: Channel::Api,
                cause: format!("no answer within {} s", PATIENCE.as_secs()),
            }),
        }
        for event in sent {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// The notice says already that it cannot be reached.
fn without_prefix(cause: &str) -> String {
    cause
        .strip_prefix("the API server cannot be reached: ")
        .unwrap_or(cause)
        .to_owned()
}

/// A kind of row, as changes.
trait Watched: Sized {
    fn all(rows: Vec<Self>) -> Change;
    fn one(row: Self) -> Change;
    fn gone(row: Self) -> Option<Change>;
}

macro_rules! watched {
    ($row:ty, $all:ident, $one:ident, $gone:ident, $id:ident) => {
        impl Watched for $row {
            fn all(rows: Vec<Self>) -> Change {
                Change::$all(rows)
            }
            fn one(row: Self) -> Change {
                Change::$one(Box::new(row))
            }
            fn gone(row: Self) -> Option<Change> {
                Some(Change::$gone(row.$id))
            }
        }
    };
}
watched!(Node, Nodes, Node, NodeGone, id);
watched!(Workload, Workloads, Workload, WorkloadGone, key);
watched!(Placement, Placements, Placement, PlacementGone, key);
watched!(Rollout, Rollouts, Rollout, RolloutGone, name);

impl Watched for Happening {
    fn all(rows: Vec<Self>) -> Change {
        Change::Happenings(rows)
    }
    fn one(row: Self) -> Change {
        Change::Happenings(vec![row])
    }
    /// The cluster forgets events after an hour; the screen keeps them a little longer.
    fn gone(_: Self) -> Option<Change> {
        None
    }
}

async fn watch<K, R>(
    client: &Client,
    events: &Sender<Event>,
    channel: Option<Channel>,
    row: impl Fn(&K) -> Option<R>,
) where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    R: Watched,
{
    let api: Api<K> = Api::all(client.clone());
    let config = watcher::Config::default()
        .page_size(PAGE)
        .timeout(WATCH_SECONDS);
    let mut stream = std::pin::pin!(watcher(api, config).backoff(Retry(0)));
    let mut listed = Vec::new();
    while let Some(next) = stream.next().await {
        let event = match next {
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.extend(row(&object));
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                Some(Event::Change(R::all(std::mem::take(&mut listed))))
            }
            Ok(watcher::Event::Apply(object)) => row(&object).map(|r| Event::Change(R::one(r))),
            Ok(watcher::Event::Delete(object)) => row(&object).and_then(R::gone).map(Event::Change),
            Err(error) => channel.and_then(|channel| failure(channel, &error)),
        };
        if let Some(event) = event
            && events.send(event).await.is_err()
        {
            return;
        }
    }
}

/// Waits between attempts: doubled up to [`PATIENCE`], with jitter. Somebody looks at the screen:
/// half a minute, as is usual for programs, would be long.
struct Retry(u32);

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = FIRST_RETRY.saturating_mul(1 << self.0.min(6)).min(PATIENCE);
        self.0 = self.0.saturating_add(1);
        Some(wait.mul_f64(rand::random_range(0.5..1.0)))
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        self.0 = 0;
    }
}

/// What a person should know of a failed watch. That nothing answers is the poll's to say, and a
/// watch that merely ended begins anew by itself.
fn failure(channel: Channel, error: &watcher::Error) -> Option<Event> {
    use watcher::Error as E;
    let cause = match error {
        E::InitialListFailed(e) | E::WatchStartFailed(e) => {
            let explained = Explained::of(e);
            if explained.unreachable {
                return None;
            }
            explained.cause
        }
        E::WatchFailed(_) | E::WatchError(_) => return None,
        E::NoResourceVersion => error.to_string(),
    };
    Some(Event::Failed { channel, cause })
}
