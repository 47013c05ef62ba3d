//! The run itself: what is due happens, what the API servers tell goes into the account.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::audit::{Audit, Decision, Known, asked};
use super::day::Kind;
use super::meter::{Meter, Replica};
use super::mix::Item;
use super::seen::{Change, Source, Watches};
use super::stage::{Act, Stage, another};
use super::{LATE, Script};
use crate::cluster::check::facts::{Asked, of_cluster, pointer, text};
use crate::cluster::say;

/// Between two looks at what is due.
const TICK: Duration = Duration::from_millis(100);
/// At hour 0 nothing more comes when nothing was told for this long.
const STILL: Duration = Duration::from_secs(20);
/// Longest time until what is there at hour 0 runs.
const WARM_UP: Duration = Duration::from_secs(240);

/// Something that happens at an hour whatever the scheduler does.
#[derive(Debug, Clone, Copy)]
enum Due<'a> {
    Price(&'a Kind),
    Supply(&'a Kind, bool),
    Create(usize),
    EndOnStatic(usize),
}

/// A Pod that has not ended.
struct Running {
    replica: Replica,
    machine: String,
    asked: Asked,
    /// Of a job: hour since when it runs.
    since: Option<f64>,
    told_to_end: bool,
}

/// The run.
pub(super) struct Play<'a> {
    script: &'a Script,
    stage: &'a Stage,
    watches: Watches,
    feed: PathBuf,
    refresh: f64,
    speed: f64,
    pub meter: Meter,
    audit: Audit,
    items: BTreeMap<&'a str, &'a Item>,
    /// Machines that are there now, by kind: id, cluster, name, and the node that they are like.
    there: BTreeMap<&'a Kind, Vec<(String, usize, String)>>,
    pods: BTreeMap<(Source, String), Running>,
    /// Generation of each replica's last decision.
    generations: BTreeMap<Replica, i64>,
    placements: BTreeMap<String, Replica>,
    ended: BTreeSet<Replica>,
    /// Number of machines that were made anew.
    made: u32,
    pub wrong: Vec<String>,
    pub wrong_at: Vec<f64>,
    pub taken_back: Vec<f64>,
    pub jobs_ended: usize,
    pub failed: usize,
    pub audited: usize,
    /// Decisions by scorer.
    pub scorers: BTreeMap<String, usize>,
}

impl<'a> Play<'a> {
    pub(super) fn new(
        script: &'a Script,
        stage: &'a Stage,
        feed: PathBuf,
        refresh: f64,
        speed: f64,
    ) -> Result<Self> {
        let configs: Vec<PathBuf> = stage
            .clusters
            .iter()
            .map(|(_, cluster)| cluster.kubeconfig().to_owned())
            .collect();
        let mut play = Self {
            script,
            stage,
            watches: Watches::start(stage.control.kubectl().kubeconfig(), &configs)?,
            feed,
            refresh,
            speed,
            meter: Meter::new(script.fixed.clone()),
            audit: Audit {
                lag: (refresh + LATE) * speed / 3600.0,
                ..Audit::default()
            },
            items: script.items.iter().map(|i| (i.name.as_str(), i)).collect(),
            there: BTreeMap::new(),
            pods: BTreeMap::new(),
            generations: BTreeMap::new(),
            placements: BTreeMap::new(),
            ended: BTreeSet::new(),
            made: 0,
            wrong: Vec::new(),
            wrong_at: Vec::new(),
            taken_back: Vec::new(),
            jobs_ended: 0,
            failed: 0,
            audited: 0,
            scorers: BTreeMap::new(),
        };
        for (at, (_, machines)) in script.machines.iter().enumerate() {
            for (id, node) in machines {
                let Some((id, known)) = script.known.get_key_value(id) else {
                    continue;
                };
                let supply = script.supply.get(&known.kind);
                if supply.is_none_or(|supply| supply.at_first) {
                    let name = text(node, "/metadata/name").to_owned();
                    play.comes(id, at, name, known.clone());
                }
            }
        }
        Ok(play)
    }

    /// What is there at hour 0 is made and runs, before the clock starts.
    pub(super) fn warm_up(&mut self) -> Result<()> {
        let mut acts = Vec::new();
        for at in 0..self.script.items.len() {
            acts.extend(self.create(at, |item| item.at <= 0.0));
        }
        self.perform(acts);
        let begin = Instant::now();
        let mut heard = begin;
        loop {
            if self.hear() {
                heard = Instant::now();
            }
            let waiting = self.meter.waiting();
            let still = heard.elapsed() > STILL && self.audited > 0;
            if waiting == 0 || still || begin.elapsed() > WARM_UP {
                let took = begin.elapsed();
                say(&format!(
                    "hour 0 after {took:?}; {waiting} replicas do not run yet"
                ));
                break;
            }
            std::thread::sleep(TICK);
        }
        self.meter.begin();
        for pod in self.pods.values_mut().filter(|pod| pod.since.is_some()) {
            pod.since = Some(0.0);
        }
        Ok(())
    }

    /// Plays the window.
    pub(super) fn run(&mut self) -> Result<()> {
        let due = self.due();
        let mut due = due.into_iter().peekable();
        let begin = Instant::now();
        let (mut next_feed, mut said) = (self.refresh, 0.0);
        loop {
            let real = begin.elapsed().as_secs_f64();
            let hour = (real * self.speed / 3600.0).min(self.script.day.hours);
            let mut acts = Vec::new();
            while let Some((at, what)) = due.next_if(|(at, _)| *at <= hour) {
                self.meter.advance(at);
                self.happens(what, &mut acts);
            }
            self.meter.advance(hour);
            self.hear();
            self.end_jobs(hour, &mut acts);
            self.perform(acts);
            if real >= next_feed {
                self.publish(hour)?;
                next_feed = real + self.refresh;
            }
            if hour >= said + 1.0 {
                said = hour.floor();
                self.tell(hour);
            }
            if hour >= self.script.day.hours {
                return Ok(());
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until what is under way at the end is done; it is in no figure.
    pub(super) fn settle(&mut self, patience: Duration) {
        let begin = Instant::now();
        while self.meter.waiting() > 0 && begin.elapsed() < patience {
            self.hear();
            std::thread::sleep(TICK);
        }
    }

    /// Everything that is due after hour 0, in order.
    fn due(&self) -> Vec<(f64, Due<'a>)> {
        let script = self.script;
        let mut all: Vec<(f64, Due<'a>)> = Vec::new();
        all.extend(
            script
                .day
                .changes()
                .into_iter()
                .map(|(at, kind)| (at, Due::Price(kind))),
        );
        for (kind, supply) in &script.supply {
            let changes = supply.changes.iter();
            all.extend(changes.map(|(at, there)| (*at, Due::Supply(kind, *there))));
        }
        for (n, item) in script.items.iter().enumerate() {
            if item.at > 0.0 {
                all.push((item.at, Due::Create(n)));
            }
            all.extend(item.runs.map(|runs| (item.at + runs, Due::EndOnStatic(n))));
        }
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all
    }

    fn happens(&mut self, what: Due<'a>, acts: &mut Vec<Act>) {
        match what {
            Due::Price(kind) => {
                let now = self.meter.now();
                let price = self.script.day.prices.get(kind).map(|p| p.at(now));
                // Machines that are gone count, too: what staying there would have cost.
                let of_kind = self.audit.machines.iter().filter(|(_, k)| k.kind == *kind);
                for (id, _) in of_kind {
                    self.meter.price(id, price.unwrap_or_default());
                }
                self.meter.hour().price_changes += 1;
            }
            Due::Supply(kind, false) => {
                for (id, cluster, name) in self.there.remove(kind).unwrap_or_default() {
                    self.meter.machine_gone(&id);
                    if let Some(known) = self.audit.machines.get_mut(&id) {
                        known.gone = Some(self.meter.now());
                    }
                    self.meter.hour().machines_taken_back += 1;
                    self.taken_back.push(self.meter.now());
                    acts.push(Act::RemoveNode(cluster, name));
                }
            }
            Due::Supply(kind, true) => self.come_again(kind, acts),
            Due::Create(at) => acts.extend(self.create(at, |_| true)),
            Due::EndOnStatic(at) => {
                if let Some(item) = self.script.items.get(at) {
                    self.meter.ends_on_static(&(item.name.clone(), 0));
                }
            }
        }
    }

    /// All machines of a kind, anew.
    fn come_again(&mut self, kind: &'a Kind, acts: &mut Vec<Act>) {
        for (at, (service, machines)) in self.script.machines.iter().enumerate() {
            for (id, node) in machines {
                if self.script.known.get(id).is_none_or(|k| k.kind != *kind) {
                    continue;
                }
                self.made += 1;
                let node = another(node, self.made);
                let machine = of_cluster(service.name(), &node);
                let name = text(&node, "/metadata/name").to_owned();
                let known = Known {
                    machine,
                    kind: kind.clone(),
                    gone: None,
                };
                let id = known.machine.id.clone();
                self.comes(&id, at, name, known);
                acts.push(Act::AddNode(at, node));
            }
        }
    }

    fn comes(&mut self, id: &str, cluster: usize, name: String, known: Known) {
        let Some((kind, price)) = self.script.day.prices.get_key_value(&known.kind) else {
            return;
        };
        let now = self.meter.now();
        self.meter.machine(id, price.at(now), price.on_demand);
        self.audit.machines.insert(id.to_owned(), known);
        self.there
            .entry(kind)
            .or_default()
            .push((id.to_owned(), cluster, name));
    }

    /// A user makes a workload, if it is such a one.
    fn create(&mut self, at: usize, which: impl Fn(&Item) -> bool) -> Option<Act> {
        let item = self.script.items.get(at).filter(|item| which(item))?;
        let asked = asked(&item.object);
        for n in 0..item.replicas {
            let replica = (item.name.clone(), n);
            if !self.meter.want(&replica, item.group, asked, item.limit) {
                say(&format!("warning: {} fits on no static machine", item.name));
            }
        }
        Some(Act::Create(item.object.clone()))
    }

    fn perform(&mut self, acts: Vec<Act>) {
        for failure in self.stage.perform(acts) {
            self.failed += 1;
            say(&format!("failed: {failure}"));
        }
    }

    /// Writes the prices of an hour beside the file, and renames it.
    fn publish(&self, hour: f64) -> Result<()> {
        let new = self.feed.with_extension("new");
        std::fs::write(&new, self.script.day.file(hour))
            .with_context(|| new.display().to_string())?;
        std::fs::rename(&new, &self.feed).with_context(|| self.feed.display().to_string())
    }

    /// Takes what the API servers told; false where that was nothing.
    fn hear(&mut self) -> bool {
        let changes = self.watches.changes();
        if changes.is_empty() {
            return false;
        }
        for change in changes {
            match change.source {
                Source::Placements => self.placement(&change),
                Source::Pods(at) => self.pod(at, &change),
            }
        }
        let mut used: BTreeMap<String, Asked> = BTreeMap::new();
        for pod in self.pods.values() {
            used.entry(pod.machine.clone()).or_default().add(&pod.asked);
        }
        for line in self.audit.rooms(&used) {
            self.wrong(line);
        }
        true
    }

    fn placement(&mut self, change: &Change) {
        let Some(object) = &change.object else {
            if let Some(replica) = self.placements.remove(&change.key) {
                self.meter.placed(&replica, None);
            }
            return;
        };
        let name = text(object, "/spec/workload");
        let number = pointer(object, "/spec/replica")
            .as_u64()
            .unwrap_or_default();
        let replica = (name.to_owned(), number);
        let machine = text(object, "/spec/node");
        self.placements.insert(change.key.clone(), replica.clone());
        self.meter.placed(&replica, Some(machine));
        let generation = pointer(object, "/spec/generation")
            .as_i64()
            .unwrap_or_default();
        if self.generations.insert(replica, generation) == Some(generation) {
            return;
        }
        self.audited += 1;
        let scorer = text(object, "/spec/explanation/scorer").to_owned();
        *self.scorers.entry(scorer).or_default() += 1;
        let Some(item) = self.items.get(name) else {
            self.wrong(format!("{}: a placement of no workload", change.key));
            return;
        };
        let decision = Decision {
            machine,
            usd: pointer(object, "/spec/hourlyCost")
                .as_f64()
                .unwrap_or(f64::NAN),
            hour: self.meter.now(),
        };
        for line in self.audit.decision(item, &self.script.day, &decision) {
            self.wrong(format!("{} on {machine}: {line}", change.key));
        }
    }

    fn pod(&mut self, cluster: usize, change: &Change) {
        let id = format!("{cluster}/{}", change.key);
        let at = (change.source, change.key.clone());
        let live = change.object.as_ref().filter(|object| {
            let phase = text(object, "/status/phase");
            phase != "Succeeded" && phase != "Failed"
        });
        let Some(object) = live else {
            self.meter.pod_gone(&id);
            let pod = self.pods.remove(&at);
            let phase = change.object.as_ref().map(|o| text(o, "/status/phase"));
            if let Some(pod) = pod.filter(|_| phase == Some("Succeeded"))
                && self.ended.insert(pod.replica.clone())
            {
                self.jobs_ended += 1;
                self.meter.unwant(&pod.replica);
            }
            return;
        };
        let workload = text(object, "/metadata/annotations/hyperion.io~1workload");
        let replica = text(object, "/metadata/labels/hyperion.io~1replica").parse();
        let (Some((service, _)), Some(item), Ok(number)) = (
            self.stage.clusters.get(cluster),
            self.items.get(workload),
            replica,
        ) else {
            return;
        };
        let replica: Replica = (workload.to_owned(), number);
        let machine = format!("{}.{}", service.name(), text(object, "/spec/nodeName"));
        let asked = Asked::of_pod(pointer(object, "/spec"));
        let has = self.audit.machines.get(&machine).map(|k| k.machine.has);
        let share = has.map_or(0.0, |has| asked.share_of(&has));
        let leaving = !pointer(object, "/metadata/deletionTimestamp").is_null();
        let runs = text(object, "/status/phase") == "Running" && !leaving;
        self.meter.pod(&id, &replica, (&machine, share), runs);
        let now = self.meter.now();
        let pod = self.pods.entry(at).or_insert_with(|| Running {
            replica,
            machine,
            asked,
            since: None,
            told_to_end: false,
        });
        if runs && item.runs.is_some() {
            pod.since.get_or_insert(now);
        }
    }

    /// Jobs that have run for as long as they take, without a break, end.
    fn end_jobs(&mut self, hour: f64, acts: &mut Vec<Act>) {
        for ((source, key), pod) in &mut self.pods {
            let (Source::Pods(cluster), Some(since)) = (source, pod.since) else {
                continue;
            };
            let runs = self.items.get(&*pod.replica.0).and_then(|item| item.runs);
            let over = runs.is_some_and(|runs| hour - since >= runs);
            if over && !pod.told_to_end && self.meter.has_machine(&pod.machine) {
                pod.told_to_end = true;
                acts.push(Act::EndPod(*cluster, key.clone()));
            }
        }
    }

    fn wrong(&mut self, line: String) {
        let hour = self.meter.now();
        self.meter.hour().violations += 1;
        self.wrong_at.push(hour);
        self.wrong.push(format!("hour {hour:.2}: {line}"));
    }

    fn tell(&self, hour: f64) {
        let total = self.meter.total();
        say(&format!(
            "hour {hour:.0}: {:.2} USD, static {:.2}; {} moves to better places, {} off machines that \
             went; {} replicas do not run; {} violations",
            total.usd,
            total.static_usd,
            total.moves_chosen,
            total.moves_forced,
            self.meter.waiting(),
            total.violations
        ));
    }
}
