//! A day of the data's prices, played fast over the whole system: the real control plane, three
//! clusters of real API servers, a price file that changes, spot machines that are taken back; and an
//! account of what it cost against static machines, how often it moved, and what it broke.

mod audit;
mod day;
mod fixed;
mod meter;
mod mix;
mod play;
mod plot;
mod seen;
mod stage;
mod supply;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyperion_cluster::nodes::{Service, nodes};
use hyperion_lab::proc::{cpu_model, cpu_seconds};
use hyperion_lab::{needs, wait, workload_cluster};
use hyperion_scheduler::world::World;
use jiff::civil::Date;
use serde_json::Value;

use crate::cluster::check::facts::{of_cluster, pointer, text};
use crate::cluster::{check, say};
use crate::report::Report;
use audit::Known;
use day::{Day, Kind, Origin};
use fixed::{Fixed, Type};
use play::Play;
use plot::Marks;
use stage::{Stage, kind_of};
use supply::Supply;

/// Clouds are asked for prices this often by default, seconds of the replayed time.
const PRICE_REFRESH: f64 = 1800.0;
/// The operator reads a price file this often, seconds of real time.
const FILE_READ: f64 = 5.0;
/// Services are looked at again this often by default, seconds of the replayed time.
const RECONSIDER: f64 = 600.0;
/// Least that the operator takes for that, seconds of real time.
const RECONSIDER_LEAST: f64 = 10.0;
/// Real seconds that a decision may rest on what was true before: the price file, and watches of a
/// busy machine.
const LATE: f64 = FILE_READ + 10.0;
/// Time for what is under way at the end.
const SETTLE: Duration = Duration::from_secs(60);

/// Play a day of prices over the whole system.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Data directory (its layout: docs/simulator.md).
    #[arg(long)]
    pub data: PathBuf,
    /// How many times faster than real time.
    #[arg(long, default_value = "60", value_parser = speed)]
    pub speed: f64,
    /// Hours of the data to play.
    #[arg(long, default_value = "24", value_parser = hours)]
    pub hours: f64,
    /// The day whose beginning (UTC) is the middle of the window; by default the one on which most of
    /// the history's prices of these machines changed.
    #[arg(long)]
    pub day: Option<Date>,
    /// Nodes of each cluster.
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub nodes: u32,
    /// Workloads.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=5000))]
    pub workloads: u32,
    /// Seed of workloads, of reclaims and of drawn prices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Policy of the control plane: a file, or `rules`; by default the one that it brings.
    #[arg(long)]
    pub policy: Option<String>,
    /// Draw the window to this file, as SVG and as PNG.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

fn speed(text: &str) -> Result<f64, String> {
    between(text, 1.0, 600.0)
}

fn hours(text: &str) -> Result<f64, String> {
    between(text, 0.1, 168.0)
}

fn between(text: &str, least: f64, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("a number from {least} to {most}")),
    }
}

/// All that is known before anything runs.
struct Script {
    day: Day,
    /// When each kind of spot machine is there.
    supply: BTreeMap<Kind, Supply>,
    /// By cluster, with their ids: all that are there at some time.
    machines: Vec<(Service, Vec<(String, Value)>)>,
    known: BTreeMap<String, Known>,
    fixed: Fixed,
    items: Vec<mix::Item>,
}

impl Script {
    fn new(args: &Args, world: &World) -> Result<Self> {
        let (mut machines, mut known) = (Vec::new(), BTreeMap::new());
        for service in Service::ALL {
            let mut of_service = Vec::new();
            for node in nodes(service, service.region(), args.nodes as usize) {
                let machine = of_cluster(service.name(), &node);
                let kind = kind_of(service, &machine);
                let id = machine.id.clone();
                let entry = Known {
                    machine,
                    kind,
                    gone: None,
                };
                known.insert(id.clone(), entry);
                of_service.push((id, node));
            }
            machines.push((service, of_service));
        }
        let kinds: BTreeSet<Kind> = known.values().map(|k| k.kind.clone()).collect();
        let day = Day::new(world, &args.data, &kinds, args.day, args.hours, args.seed)?;
        // Nobody can say what these cost.
        known.retain(|_, k| day.prices.contains_key(&k.kind));
        for (_, of_service) in &mut machines {
            of_service.retain(|(id, _)| known.contains_key(id));
        }
        let mut supply = BTreeMap::new();
        for (kind, price) in day.prices.iter().filter(|(kind, _)| kind.spot) {
            let found = supply::of(world, kind, price.gpus, args.hours, args.seed);
            supply.extend(found.map(|found| (kind.clone(), found)));
        }
        let fixed = Fixed::new(static_types(&known, &day));
        let items = mix::items(world, args.workloads as usize, args.hours, args.seed);
        Ok(Self {
            day,
            supply,
            machines,
            known,
            fixed,
            items,
        })
    }

    /// Machines of each cluster that are there at hour 0.
    fn at_first(&self) -> Vec<(Service, Vec<Value>)> {
        let there = |id: &String| {
            let kind = self.known.get(id).map(|k| &k.kind);
            let supply = kind.and_then(|kind| self.supply.get(kind));
            supply.is_none_or(|supply| supply.at_first)
        };
        let of = |(service, all): &(Service, Vec<(String, Value)>)| {
            let nodes = all.iter().filter(|(id, _)| there(id));
            (*service, nodes.map(|(_, node)| node.clone()).collect())
        };
        self.machines.iter().map(of).collect()
    }
}

/// Machine types that the control group has: those of us-east-1 on demand, at list price.
fn static_types(known: &BTreeMap<String, Known>, day: &Day) -> Vec<Type> {
    let mut types = BTreeMap::new();
    for known in known.values() {
        let kind = &known.kind;
        if kind.region != "us-east-1" || kind.spot {
            continue;
        }
        if let Some(price) = day.prices.get(kind) {
            let usd = price.at(0.0);
            types
                .entry(kind.instance_type.clone())
                .or_insert_with(|| Type {
                    usd,
                    has: known.machine.has,
                });
        }
    }
    types.into_values().collect()
}

/// Runs `replay`. The management cluster is the one that `HYPERION_TEST_API` chooses.
///
/// # Errors
/// The data can't be used, or clusters can't run here.
pub fn run(args: &Args) -> Result<Report> {
    let (world, warnings) = day::read(&args.data)?;
    for warning in warnings {
        say(&format!("warning: {warning}"));
    }
    let script = Script::new(args, &world)?;
    for kind in &script.day.unknown {
        let how = if kind.spot { "spot" } else { "on demand" };
        say(&format!(
            "warning: no price of {} {how} in {}: such machines are left out",
            kind.instance_type, kind.zone
        ));
    }
    if let Some(reason) =
        workload_cluster::missing().or_else(|| hyperion_cluster::chosen().missing())
    {
        bail!("can't measure here: {reason}");
    }
    let dir = tempfile::tempdir()?;
    let feed = dir.path().join("prices.csv");
    std::fs::write(&feed, script.day.file(0.0)).with_context(|| feed.display().to_string())?;
    let reconsider = (RECONSIDER / args.speed).max(RECONSIDER_LEAST);
    let refresh = (PRICE_REFRESH / args.speed).max(FILE_READ);
    let mut flags = vec![
        "--price-feed".to_owned(),
        format!("file:{}", feed.display()),
        "--reconsider".to_owned(),
        format!("{}ms", (reconsider * 1000.0) as u64),
    ];
    if let Some(policy) = &args.policy {
        flags.extend(["--policy".to_owned(), policy.clone()]);
    }
    let stage = Stage::start(dir.path(), &script.at_first(), &flags)?;
    let mut play = Play::new(&script, &stage, feed, refresh, args.speed)?;
    play.warm_up()?;
    play.run()?;
    play.settle(SETTLE);
    let (left, without) = at_the_end(&stage)?;
    for line in play.wrong.iter().take(50) {
        say(&format!("violation: {line}"));
    }
    for line in left.iter().take(50) {
        say(&format!("violation at the end: {line}"));
    }
    let mut report = Report::new("replay", args.seed);
    note(&play, &script, &mut report);
    report.figure("violations_at_end", left.len() as f64);
    report.figure("without_a_place_at_end", without as f64);
    conditions(args, &script, reconsider, refresh, &mut report);
    if let Some(base) = &args.plot {
        let marks = marks(&play, &script);
        let title = format!(
            "{} hours of prices at {} times speed",
            args.hours, args.speed
        );
        plot::draw(base, &title, &script.day, &play.meter, &marks)?;
    }
    Ok(report)
}

/// What is wrong when all has come to rest, and how many replicas have no place. What is under way for
/// the moment is looked at again.
fn at_the_end(stage: &Stage) -> Result<(Vec<String>, u64)> {
    let with: Vec<_> = stage
        .clusters
        .iter()
        .map(|(service, cluster)| (service.name(), cluster.kubectl()))
        .collect();
    let mut left = (Vec::new(), 0);
    let rest = wait::until("rest", SETTLE, || {
        std::thread::sleep(Duration::from_secs(2));
        let read = check::World::read(stage.control.kubectl(), &with);
        let mut world = read.map_err(|e| format!("{e:#}"))?;
        let without = for_the_checker(&mut world);
        left = (check::violations(&world), without);
        match left.0.len() {
            0 => Ok(()),
            n => Err(format!("{n} violations")),
        }
    });
    if let Err(e) = rest {
        say(&format!("{e:#}"));
    }
    Ok(left)
}

/// Takes out what the checker of a fleet at work does not know: jobs that have ended, which need no
/// room; replicas for which there is none, which are counted; costs, which the audit has looked at by
/// the prices of the moment.
fn for_the_checker(world: &mut check::World) -> u64 {
    let ended = |object: &Value| ["Succeeded", "Failed"].contains(&text(object, "/status/phase"));
    let over: BTreeSet<String> = world
        .placements
        .iter()
        .filter(|p| ended(p))
        .map(|p| text(p, "/spec/workload").to_owned())
        .collect();
    world.placements.retain(|p| !ended(p));
    world
        .workloads
        .retain(|w| !over.contains(text(w, "/metadata/name")));
    for (_, _, pods) in &mut world.clusters {
        pods.retain(|pod| !ended(pod));
    }
    let mut without = 0;
    for workload in &mut world.workloads {
        let name = text(workload, "/metadata/name").to_owned();
        let placed = world.placements.iter();
        let placed = placed.filter(|p| text(p, "/spec/workload") == name).count() as u64;
        let wanted = pointer(workload, "/spec/replicas").as_u64().unwrap_or(1);
        without += wanted.saturating_sub(placed);
        if let Some(replicas) = workload.pointer_mut("/spec/replicas") {
            *replicas = Value::from(wanted.min(placed));
        }
        if let Some(policy) = workload
            .pointer_mut("/spec/policy")
            .and_then(Value::as_object_mut)
        {
            policy.remove("maxHourlyCost");
        }
    }
    without
}

fn note(play: &Play<'_>, script: &Script, report: &mut Report) {
    let total = play.meter.total();
    let saved = |ours: f64, of: f64| (of > 0.0).then(|| (1.0 - ours / of) * 100.0);
    for (name, value) in [
        ("hyperion_usd", total.usd),
        ("static_usd", total.static_usd),
        ("same_places_on_demand_usd", total.on_demand_usd),
        ("never_moved_usd", total.stayed_usd),
        ("hyperion_machines_usd", total.machines_usd),
        ("static_machines_usd", total.static_machines_usd),
        ("moves_chosen", f64::from(total.moves_chosen)),
        ("moves_forced", f64::from(total.moves_forced)),
        ("violations", f64::from(total.violations)),
        ("waiting_s", total.waiting_s),
        ("unplaced_s", total.unplaced_s),
        ("over_limit_s", total.over_limit_s),
        ("wanted_s", total.wanted_s),
        ("price_changes", f64::from(total.price_changes)),
        ("machines_taken_back", f64::from(total.machines_taken_back)),
        (
            "jobs",
            script.items.iter().filter(|i| i.runs.is_some()).count() as f64,
        ),
        ("jobs_ended", play.jobs_ended as f64),
        ("requests_failed", play.failed as f64),
        ("decisions_audited", play.audited as f64),
    ] {
        report.figure(name, value);
    }
    report.figure("saved_percent", saved(total.usd, total.static_usd));
    report.figure(
        "saved_machines_percent",
        saved(total.machines_usd, total.static_machines_usd),
    );
    report.figure(
        "waiting_percent",
        (total.wanted_s > 0.0).then(|| total.waiting_s / total.wanted_s * 100.0),
    );
    for (name, group) in &play.meter.groups {
        report.figure(&format!("{name}_hyperion_usd"), group.usd);
        report.figure(&format!("{name}_static_usd"), group.static_usd);
        report.figure(
            &format!("{name}_saved_percent"),
            saved(group.usd, group.static_usd),
        );
    }
    let hours: Vec<Value> = play
        .meter
        .hours
        .iter()
        .filter_map(|hour| serde_json::to_value(hour).ok())
        .collect();
    report.condition("by_hour", hours);
    report.condition("decided_by", serde_json::json!(play.scorers));
    if let Ok(cpu) = cpu_seconds(std::process::id()) {
        report.figure("bench_cpu_s", cpu);
    }
}

fn conditions(args: &Args, script: &Script, reconsider: f64, refresh: f64, report: &mut Report) {
    let day = &script.day;
    report.condition("hours", args.hours);
    report.condition("speed", args.speed);
    report.condition("middle_of_window", day.date.map(|d| d.to_string()));
    report.condition("nodes_of_each_cluster", args.nodes);
    report.condition("workloads", args.workloads);
    report.condition(
        "replicas",
        script.items.iter().map(|i| i.replicas).sum::<u64>(),
    );
    report.condition("prices_of_list", day.count(Origin::List));
    report.condition("prices_of_history", day.count(Origin::History));
    report.condition("prices_drawn", day.count(Origin::Drawn));
    report.condition("spot_pools_with_a_trace", script.supply.len());
    report.condition("policy", args.policy.as_deref().unwrap_or("built in"));
    report.condition(
        "scaled",
        format!(
            "reconsideration every {reconsider} s and new prices every {refresh} s of real time, which \
             are {:.0} and {:.0} replayed minutes",
            reconsider * args.speed / 60.0,
            refresh * args.speed / 60.0
        ),
    );
    report.condition(
        "not_scaled",
        "second look at a better place (30 s), five moves at a time, reading of the price file (5 s), \
         starts, stops and decisions themselves: in replayed time they take longer than they would",
    );
    report.condition(
        "cores",
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    // Who shares the machine makes everything late, and sixty times as late in replayed time.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    report.condition("load_average_at_the_end", load.trim());
    report.condition("cpu", cpu_model());
    report.condition("programs", needs::programs().display().to_string());
}

fn marks(play: &Play<'_>, script: &Script) -> Vec<Marks> {
    let moves = |forced: bool| {
        let moves = play.meter.moves.iter().filter(|m| m.forced == forced);
        moves.map(|m| m.hour).collect()
    };
    let prices = script.day.changes().into_iter().map(|(hour, _)| hour);
    vec![
        Marks {
            name: "prices that change",
            hours: prices.collect(),
        },
        Marks {
            name: "machines taken back",
            hours: play.taken_back.clone(),
        },
        Marks {
            name: "moves: machine gone",
            hours: moves(true),
        },
        Marks {
            name: "moves: better place",
            hours: moves(false),
        },
        Marks {
            name: "violations",
            hours: play.wrong_at.clone(),
        },
    ]
}

#[cfg(test)]
mod tests;
