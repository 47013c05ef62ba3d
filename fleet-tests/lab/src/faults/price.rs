//! A price rises a little, which moves nothing, and then triples, which moves everything that is there to
//! where it is cheaper: within the budget of moves, make before break.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyperion_cluster::nodes::Service;
use serde_json::{Value, json};

use super::cloud::instance_type;
use super::seen::{Asking, Copy, Served};
use super::stage::{PATIENCE, Plan, Stage, missing};
use super::{note_conditions, note_lines, note_served, say, wanted};
use crate::measure::Measured;
use crate::scene::set;
use crate::wait;

/// How to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Real API servers.
    pub real: bool,
    /// Services of one replica each.
    pub services: u32,
}

/// US dollars an hour of a whole machine, in the order of [`Service::ALL`]: at first, when the cheapest
/// has become slightly dearer than the next, and when it has tripled.
const PRICES: [[f64; 3]; 3] = [[0.40, 0.45, 0.60], [0.50, 0.45, 0.60], [1.20, 0.45, 0.60]];
/// Long enough for a look, a second look, and another.
const NOTHING_MOVES: Duration = Duration::from_secs(75);
/// Cores of each replica, of a machine with eight.
const CORES: &str = "2500m";

/// Measures.
///
/// # Errors
/// The stage can't run here, or what had to move did not.
pub fn run(options: &Options) -> Result<Measured> {
    if let Some(reason) = missing(false, options.real) {
        bail!("can't measure here: {reason}");
    }
    let dir = tempfile::tempdir()?;
    let feed = dir.path().join("prices.csv");
    write(&feed, &PRICES[0])?;
    let feed_flag = format!("file:{}", feed.display());
    let flags = [
        "--policy",
        "rules",
        "--reconsider",
        "10s",
        "--price-feed",
        &feed_flag,
    ];
    let nodes = usize::try_from(options.services.div_ceil(3))?;
    let stage = Stage::start(&Plan {
        name: "price".to_owned(),
        clouds: Service::ALL.into_iter().map(|s| (s, nodes)).collect(),
        args: flags.map(str::to_owned).into(),
        real: options.real,
        ..Plan::default()
    })?;
    wait_price(&stage, PRICES[0][0])?;
    let names: Vec<String> = (0..options.services).map(|n| format!("web-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        let mut object = wanted(name, 1, "cost");
        set(
            &mut object,
            "/spec/template/spec/containers/0/resources/requests/cpu",
            json!(CORES),
        );
        stage.apply(&object)?;
    }
    stage.at_rest(&names, PATIENCE)?;
    let at = |service: Service| -> usize {
        let of = |name: &&&str| {
            let copies = stage.seen.copies(name);
            copies
                .last()
                .is_some_and(|c| c.cluster == service.name() && c.serves)
        };
        names.iter().filter(of).count()
    };
    let at_first = at(Service::Eks);
    let mut measured = Measured::default();
    count(&mut measured, "services", names.len());
    count(&mut measured, "at_the_cheapest_first", at_first);
    let rate = |now: &Stage| -> f64 {
        let copies = names.iter().filter_map(|n| now.seen.copies(n).pop());
        copies.filter_map(|c| now.seen.hourly(&c)).sum()
    };
    measured.figure("usd_per_hour_first", rate(&stage));

    let begin = Instant::now();
    let asking: Vec<Asking> = names.iter().map(|name| stage.ask(name)).collect();
    write(&feed, &PRICES[1])?;
    wait_price(&stage, PRICES[1][0])?;
    std::thread::sleep(NOTHING_MOVES);
    count(
        &mut measured,
        "moves_within_hysteresis",
        moves(&stage, &names),
    );
    say("the price triples");
    let zero = Instant::now();
    write(&feed, &PRICES[2])?;
    let mut most_at_once = 0;
    let mut first = None;
    let moved = wait::until("a cheaper place for all", PATIENCE * 2, || {
        let under_way = names.iter().filter(|n| {
            let copies = stage.seen.copies(n);
            copies.iter().filter(|c| c.to.is_none()).count() > 1
        });
        most_at_once = most_at_once.max(under_way.count());
        if first.is_none() && moves(&stage, &names) > 0 {
            first = Some(zero.elapsed());
        }
        match at(Service::Eks) {
            0 => Ok(()),
            n => Err(format!("{n} are still at the dearest")),
        }
    });
    moved.with_context(|| stage.log())?;
    measured.figure(
        "first_new_placement_s",
        first.unwrap_or_default().as_secs_f64(),
    );
    measured.figure("all_moved_s", zero.elapsed().as_secs_f64());
    stage.at_rest(&names, PATIENCE)?;
    let end = Instant::now();
    count(&mut measured, "moves", moves(&stage, &names));
    count(&mut measured, "most_moves_at_once", most_at_once);
    let mut served = Served::default();
    for asking in asking {
        served = served.and(asking.end()?);
    }
    note_served(&mut measured, "", &served);
    measured.figure("usd_per_hour_after", rate(&stage));
    // What the same would cost where it was.
    let stayed = rate_of(&names, PRICES[2][0], PRICES[0][0], &stage);
    measured.figure("usd_per_hour_unmoved", stayed);
    measured.figure("spent_usd", stage.seen.spent(begin, end));
    measured.figure("seconds", end.duration_since(begin).as_secs_f64());
    count(&mut measured, "restarts", restarts(&stage, &names));
    let left = stage.remove_all(&names)?;
    note_lines(&mut measured, "leaked", &left);
    measured.condition("usd_per_hour_of_a_machine", json!(PRICES));
    measured.condition("watched_for_hysteresis_s", NOTHING_MOVES.as_secs());
    measured.condition(
        "decided_by",
        "rules, --reconsider 10s; 30 s between two looks; five moves at once",
    );
    note_conditions(&mut measured, options.real);
    Ok(measured)
}

/// Moves so far: copies beyond the first of each.
fn moves(stage: &Stage, names: &[&str]) -> usize {
    let more = |name: &&str| stage.seen.copies(name).len().saturating_sub(1);
    names.iter().map(more).sum()
}

/// Copies so far that were made where the one before was.
fn restarts(stage: &Stage, names: &[&str]) -> usize {
    let same = |name: &&str| {
        let copies = stage.seen.copies(name);
        let pairs = copies.windows(2);
        pairs
            .filter(|pair| matches!(pair, [a, b] if a.cluster == b.cluster))
            .count()
    };
    names.iter().map(same).sum()
}

/// What the first copies would cost an hour now, had nothing moved: the price of the first cloud's
/// machines has changed from `before` to `price`.
fn rate_of(names: &[&str], price: f64, before: f64, stage: &Stage) -> f64 {
    let first = names
        .iter()
        .filter_map(|n| stage.seen.copies(n).into_iter().next());
    let cost = |copy: Copy| {
        let usd = stage.seen.hourly(&copy)?;
        let dearer = copy.cluster == Service::Eks.name();
        Some(if dearer { usd * price / before } else { usd })
    };
    first.filter_map(cost).sum()
}

#[expect(clippy::cast_precision_loss, reason = "some dozens")]
fn count(measured: &mut Measured, name: &str, number: usize) {
    measured.figure(name, number as f64);
}

/// Writes a price file, beside and renamed, as the documentation says.
fn write(feed: &Path, prices: &[f64; 3]) -> Result<()> {
    let mut text = "provider,region,instance_type,capacity_type,price_per_hour\n".to_owned();
    for (service, price) in Service::ALL.iter().zip(prices) {
        text.push_str(&format!(
            "{},{},{},on-demand,{price}\n",
            service.provider().as_str(),
            service.region(),
            instance_type(*service)
        ));
    }
    let new = feed.with_extension("new");
    std::fs::write(&new, text).with_context(|| new.display().to_string())?;
    std::fs::rename(&new, feed).with_context(|| feed.display().to_string())
}

/// Waits until the control plane knows the price of the first cloud's machines.
fn wait_price(stage: &Stage, price: f64) -> Result<()> {
    let address = stage.http();
    let known = wait::until("the new price", PATIENCE, || {
        let text = crate::http::get(&address, "/fleet/v1/prices").map_err(|e| format!("{e:#}"))?;
        let offers: Vec<Value> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        let ours = |o: &&Value| o.get("instanceType") == Some(&json!(instance_type(Service::Eks)));
        let is = offers.iter().find(ours).and_then(|o| o.get("pricePerHour"));
        if is.and_then(Value::as_f64) == Some(price) {
            Ok(())
        } else {
            Err(text)
        }
    });
    known.with_context(|| stage.log())
}
