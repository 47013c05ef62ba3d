//! Nodes as people see them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use hyperion_api::node::{AgentMode, HyperionNode};
use hyperion_api::update::{NodeSlot, NodeUpdate, UpdatePhase};
use serde::{Deserialize, Serialize};

use super::column::{Cell, Column, Context, Mark, Row, float_order};
use super::live::Live;
use super::{Condition, millis_of, word};
use crate::text::{self, Tone, clean_in_place};

/// State of a node in one word, worst first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeState {
    /// Its certificate is refused.
    Revoked,
    /// No contact.
    Lost,
    /// Never seen, or not known yet.
    #[default]
    Unknown,
    /// Replicas move away.
    Draining,
    /// Takes no new replicas.
    Cordoned,
    /// Works.
    Ready,
}

impl NodeState {
    /// Its cell.
    #[must_use]
    pub fn cell(self) -> Cell {
        let (mark, tone) = match self {
            Self::Ready => (Mark::Good, Tone::Good),
            Self::Cordoned | Self::Draining => (Mark::Half, Tone::Warn),
            Self::Lost | Self::Revoked => (Mark::Bad, Tone::Bad),
            Self::Unknown => (Mark::Unknown, Tone::Warn),
        };
        Cell::marked(mark, format!("{self:?}"), tone)
    }
}

/// A node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// Id.
    pub id: String,
    /// State.
    pub state: NodeState,
    /// Mode of the agent.
    pub mode: String,
    /// Site.
    pub site: String,
    /// Provider.
    pub provider: String,
    /// Tier.
    pub tier: String,
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Geography.
    pub geography: String,
    /// Architecture.
    pub arch: String,
    /// Instance type or board.
    pub instance_type: String,
    /// Capacity type.
    pub capacity_type: String,
    /// Host name.
    pub hostname: String,
    /// Agent version.
    pub version: String,
    /// US dollars per hour.
    pub price: f64,
    /// Allocatable, as Kubernetes quantities.
    pub allocatable: BTreeMap<String, String>,
    /// Models of its GPUs.
    pub gpus: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Conditions.
    pub conditions: Vec<Condition>,
    /// Version of its system, and its board.
    pub system: String,
    /// Its slots: name, version, state.
    pub slots: Vec<String>,
    /// How far its last update is.
    pub update: String,
    /// When it enrolled.
    pub created_ms: Option<i64>,
    /// Last values.
    #[serde(skip)]
    pub live: Option<Box<Live>>,
    /// Placements on it.
    #[serde(skip)]
    pub replicas: u32,
    #[serde(skip)]
    pub(crate) haystack: String,
}

impl From<&HyperionNode> for Node {
    fn from(object: &HyperionNode) -> Self {
        let status = object.status.clone().unwrap_or_default();
        let state = if object.spec.revoked {
            NodeState::Revoked
        } else {
            match (
                status.ready.as_str(),
                object.spec.draining,
                object.spec.unschedulable,
            ) {
                ("False", ..) => NodeState::Lost,
                ("True", true, _) => NodeState::Draining,
                ("True", _, true) => NodeState::Cordoned,
                ("True", ..) => NodeState::Ready,
                _ if status.mode == AgentMode::Connected => NodeState::Ready,
                _ => NodeState::Unknown,
            }
        };
        Self {
            id: object.metadata.name.clone().unwrap_or_default(),
            state,
            mode: word(&status.mode),
            site: object.spec.site.clone(),
            provider: status.provider.map(|p| word(&p)).unwrap_or_default(),
            tier: status.tier.map(|t| word(&t)).unwrap_or_default(),
            region: status.region,
            zone: status.zone,
            geography: status.geography.map(|g| word(&g)).unwrap_or_default(),
            arch: status.arch,
            instance_type: status.instance_type,
            capacity_type: status.capacity_type.map(|c| word(&c)).unwrap_or_default(),
            hostname: status.hostname,
            version: status.agent_version,
            price: status.price_per_hour,
            allocatable: status.allocatable,
            gpus: status.gpus.into_iter().map(|g| g.model).collect(),
            labels: status.labels,
            conditions: status.conditions.iter().map(Condition::from).collect(),
            system: status.update.as_ref().map(system).unwrap_or_default(),
            slots: status.update.iter().flat_map(slots).collect(),
            update: progress(status.update.as_ref()),
            created_ms: object.metadata.creation_timestamp.as_ref().map(millis_of),
            ..Self::default()
        }
    }
}

fn system(update: &NodeUpdate) -> String {
    match (update.system_version.as_str(), update.machine.as_str()) {
        (version, "") => version.to_owned(),
        ("", machine) => format!("unknown version for {machine}"),
        (version, machine) => format!("{version} for {machine}"),
    }
}

fn slots(update: &NodeUpdate) -> Vec<String> {
    let slot = |slot: &NodeSlot| {
        let version = match slot.version.as_str() {
            "" => "",
            version => &format!(" {version}"),
        };
        let runs = if slot.running { ", runs" } else { "" };
        format!("{}:{version} {}{runs}", slot.name, slot.state)
    };
    update.slots.iter().map(slot).collect()
}

fn progress(update: Option<&NodeUpdate>) -> String {
    let Some(progress) = update.and_then(|u| u.progress.as_ref()) else {
        return String::new();
    };
    let percent = match progress.phase {
        UpdatePhase::Downloading | UpdatePhase::Installing => format!(" {}%", progress.percent),
        _ => String::new(),
    };
    let why = [&progress.reason, &progress.message];
    let why: Vec<&str> = why
        .into_iter()
        .filter(|w| !w.is_empty())
        .map(String::as_str)
        .collect();
    let why = if why.is_empty() {
        String::new()
    } else {
        format!(": {}", why.join(", "))
    };
    format!("{} {}{percent}{why}", progress.version, progress.phase)
}

impl Node {
    /// Cleans every string and prepares the filter's text. Called once per row that comes in.
    pub fn prepare(&mut self) {
        for text in [
            &mut self.id,
            &mut self.mode,
            &mut self.site,
            &mut self.provider,
            &mut self.tier,
            &mut self.region,
            &mut self.zone,
            &mut self.geography,
            &mut self.arch,
            &mut self.instance_type,
            &mut self.capacity_type,
            &mut self.hostname,
            &mut self.version,
            &mut self.system,
            &mut self.update,
        ] {
            clean_in_place(text);
        }
        self.gpus.iter_mut().for_each(clean_in_place);
        self.slots.iter_mut().for_each(clean_in_place);
        self.conditions.iter_mut().for_each(Condition::prepare);
        for map in [&mut self.allocatable, &mut self.labels] {
            *map = std::mem::take(map)
                .into_iter()
                .map(|(k, v)| (text::clean(&k).into_owned(), text::clean(&v).into_owned()))
                .collect();
        }
        let mut hay = format!(
            "{} {:?} {} {} {} {} {} {} {} {} {} {}",
            self.id,
            self.state,
            self.mode,
            self.site,
            self.provider,
            self.region,
            self.zone,
            self.geography,
            self.arch,
            self.instance_type,
            self.capacity_type,
            self.hostname
        );
        for (key, value) in &self.labels {
            hay.push(' ');
            hay.push_str(key);
            hay.push('=');
            hay.push_str(value);
        }
        self.haystack = hay.to_lowercase();
    }

    /// Where it is: the region, or the site of an edge node.
    #[must_use]
    pub fn place(&self) -> &str {
        if self.region.is_empty() {
            &self.site
        } else {
            &self.region
        }
    }

    fn live_value(&self, value: impl Fn(&Live) -> f32) -> f64 {
        self.live
            .as_deref()
            .map_or(f64::NAN, |l| f64::from(value(l)))
    }
}

/// Indices of [`Node::COLUMNS`].
pub mod columns {
    #![allow(missing_docs)]
    pub const NODE: usize = 0;
    pub const STATE: usize = 1;
    pub const SITE: usize = 2;
    pub const PROVIDER: usize = 3;
    pub const REGION: usize = 4;
    pub const TYPE: usize = 5;
    pub const ARCH: usize = 6;
    pub const CPU: usize = 7;
    pub const MEMORY: usize = 8;
    pub const GPU: usize = 9;
    pub const NET: usize = 10;
    pub const RTT: usize = 11;
    pub const TEMPERATURE: usize = 12;
    pub const REPLICAS: usize = 13;
    pub const COST: usize = 14;
    pub const AGE: usize = 15;
}

impl Row for Node {
    const COLUMNS: &'static [Column] = &[
        Column::text("NODE", 'n', 18, 32, 0),
        Column::text("STATE", 't', 10, 10, 0),
        Column::text("SITE", 'i', 8, 14, 4),
        Column::text("PROV", 'p', 5, 6, 3),
        Column::text("REGION", 'e', 10, 15, 7),
        Column::text("TYPE", 'y', 11, 15, 9),
        Column::text("ARCH", 'a', 5, 5, 10),
        Column::live("CPU", 'c', 4, 15, 0),
        Column::live("MEM", 'm', 4, 15, 0),
        Column::live("GPU", 'u', 4, 15, 5),
        Column::live("NET/s", 'b', 6, 7, 3),
        Column::live("RTT", 'l', 6, 6, 6),
        Column::live("TEMP", 'h', 5, 5, 11),
        Column::number("REPL", 'o', 4, 5, 1),
        Column::number("$/h", 'd', 7, 8, 2),
        Column::number("AGE", 'w', 5, 6, 8),
    ];
    const FIRST_SORT: (usize, bool) = (columns::NODE, false);

    fn id(&self) -> &str {
        &self.id
    }

    fn haystack(&self) -> &str {
        &self.haystack
    }

    fn cell(&self, column: usize, context: Context) -> Cell {
        use columns as c;
        let live = self.live.as_deref();
        let stale = live.is_none_or(|l| l.is_stale(context.now_ms));
        let with = |make: &dyn Fn(&Live) -> Cell| {
            let mut cell = live.map_or_else(Cell::unknown, make);
            if stale {
                cell.tone = Tone::Dim;
            }
            cell
        };
        match column {
            c::NODE => Cell::toned(&*self.id, Tone::Strong),
            c::STATE => self.state.cell(),
            c::SITE => Cell::plain(&*self.site),
            c::PROVIDER => Cell::plain(&*self.provider),
            c::REGION => Cell::plain(&*self.region),
            c::TYPE => Cell::plain(&*self.instance_type),
            c::ARCH => Cell::plain(&*self.arch),
            c::CPU => with(&|l| Cell::load(l.cpu, stale)),
            c::MEMORY => with(&|l| Cell::load(l.memory_percent(), stale)),
            c::GPU if self.gpus.is_empty() => Cell::toned("", Tone::Dim),
            c::GPU => with(&|l| Cell::load(l.gpu_percent(), stale)),
            c::NET => with(&|l| Cell::plain(text::bytes(l.rx.saturating_add(l.tx)))),
            c::RTT => with(&|l| Cell::plain(text::millis(f64::from(l.rtt_ms)))),
            c::TEMPERATURE => with(&|l| match l.celsius {
                Some(t) => Cell::toned(
                    format!("{t:.0}°C"),
                    if t >= 85.0 { Tone::Bad } else { Tone::Plain },
                ),
                None => Cell::unknown(),
            }),
            c::REPLICAS if self.replicas == 0 => Cell::toned("0", Tone::Dim),
            c::REPLICAS => Cell::plain(self.replicas.to_string()),
            c::COST if self.price == 0.0 => Cell::toned("owned", Tone::Dim),
            c::COST => Cell::plain(text::dollars(self.price)),
            _ => context.age(self.created_ms),
        }
    }

    fn order(&self, other: &Self, column: usize) -> Ordering {
        use columns as c;
        let live =
            |value: fn(&Live) -> f32| float_order(self.live_value(value), other.live_value(value));
        match column {
            c::NODE => self.id.cmp(&other.id),
            c::STATE => self.state.cmp(&other.state),
            c::SITE => self.site.cmp(&other.site),
            c::PROVIDER => self.provider.cmp(&other.provider),
            c::REGION => self.region.cmp(&other.region),
            c::TYPE => self.instance_type.cmp(&other.instance_type),
            c::ARCH => self.arch.cmp(&other.arch),
            c::CPU => live(|l| l.cpu),
            c::MEMORY => live(Live::memory_percent),
            c::GPU => live(Live::gpu_percent),
            c::NET => live(|l| l.rx.saturating_add(l.tx) as f32),
            c::RTT => live(|l| l.rtt_ms),
            c::TEMPERATURE => live(|l| l.celsius.unwrap_or(f32::NAN)),
            c::REPLICAS => self.replicas.cmp(&other.replicas),
            c::COST => float_order(self.price, other.price),
            // The youngest is first in ascending order of age.
            c::AGE => other.created_ms.cmp(&self.created_ms),
            _ => Ordering::Equal,
        }
    }
}
