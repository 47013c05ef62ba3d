//! The fleet on virtual time: one queue of events, one source of chance.

mod control;
mod device;
mod lies;
mod links;
mod offline_day;
mod people;
mod trouble;
mod verdict;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyperion_agent::node::Now;
use hyperion_operator::apply::Applied;
use hyperion_operator::plan::Action;
use hyperion_proto::agent_v1::StartReplica;
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::domain::ReplicaKey;
use hyperion_proto::peer_v1::Frame;

use crate::check::Checker;
use crate::control::api::Change;
use crate::control::{Api, Heard, Leader};
use crate::faults::{Counts, Fault, Kind, schedule};
use crate::net::Net;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::users;
use device::Device;
use links::Session;
pub use offline_day::{OfflineDay, offline_day};

/// The control plane's default of `replaceAfter` in a run: short, so that a run is.
const REPLACE_AFTER: Duration = Duration::from_secs(15);
/// The control plane's wall clock at the start of a run, Unix milliseconds.
const EPOCH_MS: i64 = 1_800_000_000_000;
/// Time between two looks at invariants that hold over time.
const CHECK: Duration = Duration::from_millis(500);

/// What a run is.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Seed of everything.
    pub seed: u64,
    /// Devices.
    pub nodes: usize,
    /// Sites that they are spread over.
    pub sites: usize,
    /// Kinds of faults.
    pub faults: Vec<Kind>,
    /// Keeps a trace.
    pub watched: bool,
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Broken invariants, the first first.
    pub violations: Vec<crate::check::Violation>,
    /// Faults that were injected.
    pub faults: Counts,
    /// The last things that happened, where the run was watched.
    pub trace: Vec<String>,
    /// Equal for two runs that were the same.
    pub digest: u64,
    /// Container starts.
    pub starts: u64,
    /// Orders that had been overtaken and arrived again.
    pub stale_orders: u64,
    /// Requests of clients, and those that nobody answered.
    pub requests: (u64, u64),
    /// Decisions of sites that were adopted.
    pub site_decisions: u64,
    /// Decisions of the control plane.
    pub decisions: u64,
    /// Virtual time.
    pub time: Duration,
    /// Events of the run's queue.
    pub events: u64,
}

enum Event {
    Wake {
        node: usize,
        epoch: u64,
    },
    RuntimeWake {
        node: usize,
    },
    Tell {
        node: usize,
    },
    Datagram {
        from: usize,
        to: usize,
        bytes: Bytes,
    },
    Frame {
        from: usize,
        to: usize,
        frame: Box<Frame>,
    },
    Discover {
        node: usize,
        epoch: u64,
    },
    Measure {
        node: usize,
        epoch: u64,
    },
    Connect {
        node: usize,
        epoch: u64,
    },
    Hello {
        session: u64,
    },
    ToControl {
        session: u64,
        body: Box<Body>,
    },
    ToNode {
        session: u64,
        body: Box<Body>,
    },
    Admit {
        session: u64,
        body: Box<Body>,
        until: Duration,
    },
    Goodbye {
        session: u64,
    },
    Links,
    Control {
        leader: u64,
    },
    Watch {
        leader: u64,
        change: Change,
    },
    Write {
        leader: u64,
        action: Box<Action>,
    },
    Applied {
        leader: u64,
        applied: Box<Applied>,
    },
    Lead,
    Begin(usize),
    End(usize),
    Boot {
        node: usize,
        epoch: u64,
    },
    StartAgent {
        node: usize,
        epoch: u64,
    },
    Person(usize),
    Lie {
        fault: usize,
    },
    Check,
}

struct Queued {
    at: Duration,
    order: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// When the phases of a run begin, and what is to happen in them.
struct Plan {
    /// Everything is mended.
    healed: Duration,
    /// All must be well.
    end: Duration,
    /// Time between telemetry messages.
    telemetry: Duration,
    faults: Vec<Fault>,
    actions: Vec<(Duration, users::Action)>,
}

impl Plan {
    /// What the seed says.
    fn drawn(scenario: &Scenario, sites: &[(String, Vec<usize>)]) -> Self {
        let (trouble, healed) = (Duration::from_secs(25), Duration::from_secs(95));
        let groups: Vec<Vec<usize>> = sites.iter().map(|(_, nodes)| nodes.clone()).collect();
        let mut rng = Rng::new(scenario.seed, "faults");
        let faults = schedule(&scenario.faults, &groups, trouble, healed, &mut rng);
        let mut rng = Rng::new(scenario.seed, "people");
        let workloads = 3 + scenario.nodes * 2 / 3;
        Self {
            healed,
            end: healed + Duration::from_secs(80),
            telemetry: Duration::from_secs(2),
            faults,
            actions: users::schedule(sites, workloads, trouble, healed, &mut rng),
        }
    }

    /// A site without its uplink for a long time, and nothing else.
    fn cut(from: Duration, to: Duration, telemetry: Duration) -> Self {
        Self {
            healed: to,
            end: to + Duration::from_secs(3600),
            telemetry,
            faults: vec![Fault {
                kind: Kind::SiteCut,
                site: 0,
                nodes: vec![0],
                begin: from,
                end: to,
                dice: 0,
            }],
            actions: Vec::new(),
        }
    }
}

struct World {
    base: Instant,
    now: Duration,
    order: u64,
    queue: BinaryHeap<Reverse<Queued>>,
    events: u64,
    rng: Rng,
    net: Net,
    devices: Vec<Device>,
    /// Names of sites and the devices of each.
    sites: Vec<(String, Vec<usize>)>,
    numbers: BTreeMap<String, usize>,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    api: Api,
    heard: Heard,
    leader: Option<Leader>,
    /// Which leader, from 1.
    leaders: u64,
    /// Stops of the control plane that are going on.
    stopped: u32,
    /// When the control plane wakes next.
    control_at: Duration,
    /// When the last write of the leader arrives.
    write_at: Duration,
    plan: Plan,
    counts: Counts,
    /// When something last went wrong or was mended, by site.
    disturbed: Vec<Duration>,
    /// Local networks that are in trouble now, by site.
    lan_trouble: Vec<u32>,
    /// Uplinks that are in trouble now, by site.
    uplink_trouble: Vec<u32>,
    checker: Checker,
    trace: Trace,
    /// Orders that were sent, by device: what may arrive again.
    orders: Vec<VecDeque<(ReplicaKey, StartReplica)>>,
    /// Datagrams of the past, for replays.
    past: VecDeque<(usize, usize, Bytes)>,
    requests: (u64, u64),
    /// Stale orders that were delivered.
    stale: u64,
    /// Decisions of sites that were adopted, and those of control planes.
    decided: (u64, u64),
}

/// Plays a scenario to its end.
#[must_use]
pub fn run(scenario: &Scenario) -> Outcome {
    let sites = layout(scenario);
    let plan = Plan::drawn(scenario, &sites);
    let mut world = World::new(scenario, sites, plan);
    world.begin();
    world.play(world.plan.end);
    world.settle_accounts();
    world.end_lead(false);
    world.into_outcome()
}

/// Names of sites, and the devices of each.
fn layout(scenario: &Scenario) -> Vec<(String, Vec<usize>)> {
    let nodes = scenario.nodes.max(1);
    let sites = scenario.sites.clamp(1, nodes);
    let mut layout: Vec<(String, Vec<usize>)> = (0..sites)
        .map(|s| (format!("site-{s}"), Vec::new()))
        .collect();
    for node in 0..nodes {
        layout[node % sites].1.push(node);
    }
    layout
}

impl World {
    fn new(scenario: &Scenario, sites: Vec<(String, Vec<usize>)>, plan: Plan) -> Self {
        let seed = scenario.seed;
        let nodes = scenario.nodes.max(1);
        let devices: Vec<Device> = (0..nodes)
            .map(|node| {
                let site = node % sites.len();
                Device::new(node, site, &sites[site].0, seed)
            })
            .collect();
        let numbers = devices.iter().enumerate().map(|(n, d)| (d.id.clone(), n));
        Self {
            trace: Trace::new(scenario.watched),
            rng: Rng::new(seed, "world"),
            base: Instant::now(),
            now: Duration::ZERO,
            order: 0,
            queue: BinaryHeap::new(),
            events: 0,
            net: Net::new(nodes),
            orders: vec![VecDeque::new(); nodes],
            numbers: numbers.collect(),
            devices,
            disturbed: vec![Duration::ZERO; sites.len()],
            lan_trouble: vec![0; sites.len()],
            uplink_trouble: vec![0; sites.len()],
            sites,
            sessions: BTreeMap::new(),
            next_session: 0,
            api: Api::default(),
            heard: Heard::default(),
            leader: None,
            leaders: 0,
            stopped: 0,
            control_at: Duration::MAX,
            write_at: Duration::ZERO,
            plan,
            counts: Counts::new(),
            checker: Checker::default(),
            past: VecDeque::new(),
            requests: (0, 0),
            stale: 0,
            decided: (0, 0),
        }
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.order += 1;
        let at = at.max(self.now);
        self.queue.push(Reverse(Queued {
            at,
            order: self.order,
            event,
        }));
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    /// Virtual time as a device has it.
    fn instant(&self, node: usize) -> Now {
        let wall = EPOCH_MS + self.now.as_millis() as i64 + self.devices[node].clock_error_ms;
        Now {
            at: self.base + self.now,
            unix_ms: wall,
        }
    }

    fn begin(&mut self) {
        for node in 0..self.devices.len() {
            self.enrol(node);
        }
        self.after(Duration::ZERO, Event::Lead);
        for node in 0..self.devices.len() {
            let epoch = self.devices[node].epoch;
            let wait = self.rng.millis(0, 1500);
            self.after(wait, Event::StartAgent { node, epoch });
        }
        for n in 0..self.plan.actions.len() {
            self.at(self.plan.actions[n].0, Event::Person(n));
        }
        for n in 0..self.plan.faults.len() {
            let (begin, end) = (self.plan.faults[n].begin, self.plan.faults[n].end);
            self.at(begin, Event::Begin(n));
            self.at(end, Event::End(n));
        }
        self.after(links::TICK, Event::Links);
        self.after(CHECK, Event::Check);
    }

    fn play(&mut self, until: Duration) {
        while let Some(Reverse(next)) = self.queue.peek() {
            if next.at > until || self.checker.violations.len() > 20 {
                break;
            }
            let Some(Reverse(Queued { at, event, .. })) = self.queue.pop() else {
                break;
            };
            self.now = at;
            self.events += 1;
            self.happen(event);
        }
        self.now = self.now.max(until);
    }

    fn happen(&mut self, event: Event) {
        self.trace.mix(self.now.as_nanos() as u64);
        match event {
            Event::Wake { node, epoch } => self.wake(node, epoch),
            Event::RuntimeWake { node } => self.runtime_wake(node),
            Event::Tell { node } => self.tell_reports(node),
            Event::Datagram { from, to, bytes } => self.datagram(from, to, bytes),
            Event::Frame { from, to, frame } => self.frame(from, to, frame),
            Event::Discover { node, epoch } => self.discover(node, epoch),
            Event::Measure { node, epoch } => self.measure(node, epoch),
            Event::Connect { node, epoch } => self.connect(node, epoch),
            Event::Hello { session } => self.hello(session),
            Event::ToControl { session, body } => self.arrive_up(session, *body),
            Event::ToNode { session, body } => self.arrive_down(session, *body),
            Event::Admit {
                session,
                body,
                until,
            } => self.admit(session, body, until),
            Event::Goodbye { session } => self.goodbye(session),
            Event::Links => self.links(),
            Event::Control { leader } => self.control(leader),
            Event::Watch { leader, change } => self.watch(leader, change),
            Event::Write { leader, action } => self.write(leader, *action),
            Event::Applied { leader, applied } => self.applied(leader, &applied),
            Event::Lead => self.lead(),
            Event::Begin(n) => self.trouble(n, true),
            Event::End(n) => self.trouble(n, false),
            Event::Boot { node, epoch } => self.boot(node, epoch),
            Event::StartAgent { node, epoch } => self.start_agent(node, epoch),
            Event::Person(n) => self.person(n),
            Event::Lie { fault } => self.lie(fault),
            Event::Check => self.check(),
        }
    }

    fn into_outcome(self) -> Outcome {
        Outcome {
            violations: self.checker.violations,
            faults: self.counts,
            digest: self.trace.digest(),
            trace: self.trace.into_lines(),
            starts: self.checker.starts,
            requests: self.requests,
            stale_orders: self.stale,
            site_decisions: self.decided.0,
            decisions: self.decided.1,
            time: self.now,
            events: self.events,
        }
    }
}

/// Notes in the trace, without making the text where nobody reads it.
macro_rules! note {
    ($world:expr, $($text:tt)+) => {
        if $world.trace.is_kept() {
            $world.trace.note($world.now, format_args!($($text)+));
        }
    };
}
use note;
