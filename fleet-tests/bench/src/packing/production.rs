//! What the control plane decides today: a [`Fleet`] with the cluster's nodes, one decision per pod,
//! devices and reservation included.
//!
//! All nodes are owned machines of one site that cost nothing, so that price and latency don't tell
//! them apart and only room and packing can.

use std::sync::Arc;

use anyhow::Context;
use hyperion_placement::model::{
    CapacityType, Geography, GpuDevice, GpuRequest, Location, Node, Provider, Request, Resources,
    Supply, Tier,
};
use hyperion_placement::packing::{self, Demand, Free, Models};
use hyperion_placement::{CandidateRef, Fleet, PolicyScorer, RulesScorer, Scorer, Scratch};
use hyperion_policy::{BUILT_IN, PolicyFile};

use super::read::Pods;
use super::replay::{NodeState, Placer};
use super::scorers::Learning;

/// Places pods by the decisions of production.
pub struct Production {
    scorer: Box<dyn Scorer>,
    fleet: Fleet,
    scratch: Scratch,
    /// By kind of pod.
    requests: Vec<Request>,
    /// Where the fleet is told what free capacity is worth.
    learning: Option<Learning>,
}

impl Production {
    /// Decisions of the rules.
    pub fn rules(pods: &Pods, nodes: &[NodeState]) -> Self {
        Self::new(Box::new(RulesScorer), pods, nodes)
    }

    /// Decisions of the built-in policy.
    ///
    /// # Errors
    /// The built-in policy is not one for this program.
    pub fn policy(pods: &Pods, nodes: &[NodeState]) -> anyhow::Result<Self> {
        let file = PolicyFile::read(BUILT_IN).context("the built-in policy")?;
        let network = Arc::new(file.network);
        let scorer = Box::new(PolicyScorer::new(network.clone()));
        let mut production = Self::new(scorer, pods, nodes);
        production.fleet.set_network(Some(network));
        Ok(production)
    }

    /// Tells the fleet what free capacity is worth, as learned on the way.
    #[must_use]
    pub fn packing(mut self) -> Self {
        self.learning = Some(Learning::default());
        self
    }

    /// In production nobody says which models will do, but for a selector of nodes.
    fn learn(&mut self, kind: usize, nodes: &[NodeState]) {
        let (Some(learning), Some(request)) = (&mut self.learning, self.requests.get(kind)) else {
            return;
        };
        let model = packing::class(Tier::Edge, ARCH, false);
        let free = |node| Free {
            model,
            ..NodeState::free(node)
        };
        if learning.arrived(&packing::demand_of(request), || {
            nodes.iter().map(free).collect()
        }) {
            self.fleet.set_packing(learning.prices.clone());
        }
    }

    fn new(scorer: Box<dyn Scorer>, pods: &Pods, nodes: &[NodeState]) -> Self {
        let accepted: Vec<Models> = pods.kinds.iter().map(|kind| kind.models).collect();
        let mut fleet = Fleet::new();
        for (at, state) in nodes.iter().enumerate() {
            fleet.upsert_node(node(at, state, &accepted));
        }
        Self {
            scorer,
            fleet,
            scratch: Scratch::new(),
            requests: pods.kinds.iter().map(request).collect(),
            learning: None,
        }
    }
}

const ARCH: &str = "amd64";

impl Placer for Production {
    fn place(
        &mut self,
        kind: usize,
        _: &Demand,
        nodes: &[NodeState],
        devices: &mut Vec<usize>,
    ) -> Option<usize> {
        devices.clear();
        self.learn(kind, nodes);
        let request = self.requests.get(kind)?;
        let decision = self
            .fleet
            .decide(&mut self.scratch, request, self.scorer.as_ref());
        let choice = decision.choice?;
        self.fleet.reserve(request, &choice).ok()?;
        let CandidateRef::Node(id) = &choice.candidate else {
            return None;
        };
        devices.extend(choice.gpus.iter().filter_map(|(uuid, _)| number(uuid)));
        number(id)
    }
}

/// Ids grow with the place in the run's order, as ties go to the smaller id.
fn id(at: usize) -> String {
    format!("{at:08}")
}

fn number(id: &str) -> Option<usize> {
    id.parse().ok()
}

/// The label of nodes whose model is among these.
fn label(models: Models) -> String {
    format!("models-{:x}", models.0)
}

fn node(at: usize, state: &NodeState, accepted: &[Models]) -> Node {
    let free = state.free();
    let all = Resources {
        cpu_millis: free.cpu_millis,
        memory_bytes: free.memory_bytes,
    };
    let device = |(device, left): (usize, &u32)| GpuDevice {
        uuid: id(device),
        model: label(free.model),
        memory_bytes: 0,
        free_millis: *left,
    };
    let labels = accepted.iter().filter(|models| models.overlaps(free.model));
    Node {
        id: id(at),
        location: Location {
            tier: Tier::Edge,
            provider: Provider::Edge,
            region: String::new(),
            zone: String::new(),
            site: "cluster".to_owned(),
            geography: Some(Geography::Us),
        },
        arch: ARCH.to_owned(),
        capacity_type: CapacityType::Owned,
        instance_type: String::new(),
        allocatable: all,
        free: all,
        gpus: free.gpus.iter().enumerate().map(device).collect(),
        labels: labels
            .map(|models| (label(*models), String::new()))
            .collect(),
        taints: Vec::new(),
        schedulable: true,
        ready: true,
        price_per_hour: 0.0,
        cpu_utilization: 0.0,
        images: Vec::new(),
        supply: Supply::default(),
    }
}

fn request(demand: &Demand) -> Request {
    let mut request = Request::new("default/pod/0");
    request.resources = Resources {
        cpu_millis: demand.cpu_millis,
        memory_bytes: demand.memory_bytes,
    };
    request.gpu = GpuRequest {
        count: demand.gpu_count,
        millis: demand.gpu_millis,
    };
    if demand.models != Models::ANY {
        request
            .node_selector
            .insert(label(demand.models), String::new());
    }
    request
}
