//! The rules, one by one.

use hyperion_placement::latency::sojourn_p99_ms;

use super::*;

const ON_DEMAND: &str = "aws/us-east-1/a/m/on-demand";
const WEST: &str = "aws/us-west-2/a/m/on-demand";
const SPOT: &str = "aws/us-east-1/a/m/spot";

const OPEN: fn() -> Vec<(f64, f64)> = || vec![(0.0, 1.0)];

fn boot(scenario: &Arc<Scenario>, pool: usize, launch: u64) -> f64 {
    Simulator::new(scenario, stay_put()).boot_hours(pool, launch)
}

#[test]
fn a_service_of_ten_hours_costs_ten_hours_and_the_five_minutes_until_it_is_given_back() {
    let scenario = scenario(
        20.0,
        vec![pool(ON_DEMAND, 0.4, OPEN())],
        vec![],
        vec![service("a", 1.0, 11.0)],
    );
    let outcome = run(&scenario, stay_put(), &mut Wish(vec!["aws"]));
    assert_close!(outcome.instances_usd, 0.4 * (10.0 + 5.0 / 60.0));
    assert_close!(outcome.all.usd, outcome.instances_usd);
    let boot = boot(&scenario, 0, 0);
    let account = outcome.workloads[0].account;
    assert_close!(account.running_hours, 10.0 - boot);
    assert_close!(account.missed_hours, boot);
    // Alone on the machine it answers for all of its price.
    let p99 = 20.0 * 1.3 + sojourn_p99_ms(5.0, 0.5 * 0.25);
    assert_close!(outcome.workloads[0].p99_ms.unwrap(), p99);
    let rate = 0.5 * 0.2 / 0.4 + 0.5 * 50.0 / p99 - 0.1 * 0.4;
    assert_close!(outcome.all.reward, rate * (10.0 - boot) - boot);
    assert_close!(outcome.all.demanded_hours, 10.0);
}

#[test]
fn two_on_an_instance_share_its_price_and_feel_each_others_load() {
    let scenario = scenario(
        10.0,
        vec![pool(ON_DEMAND, 0.4, OPEN())],
        vec![],
        vec![service("a", 0.0, 8.0), service("b", 1.0, 8.0)],
    );
    let outcome = run(
        &scenario,
        stay_put(),
        &mut Wish(vec!["aws/us-east-1/a/m/on-demand/", "aws"]),
    );
    assert_eq!(outcome.counts.launches, 1);
    assert_close!(outcome.instances_usd, 0.4 * (8.0 + 5.0 / 60.0));
    let second = &outcome.workloads[1];
    let p99 = 20.0 * 1.3 + sojourn_p99_ms(5.0, 2.0 * 0.5 * 0.25);
    assert_close!(second.p99_ms.unwrap(), p99);
    assert_close!(
        second.reward,
        7.0 * (0.5 * 0.2 / (0.4 * 0.5) + 0.5 * 50.0 / p99 - 0.1 * 0.2)
    );
    let (a, b) = (outcome.workloads[0].usd, outcome.workloads[1].usd);
    assert_close!(a + b, outcome.instances_usd);
}

#[test]
fn a_reclaim_loses_the_work_since_the_checkpoint_and_the_reward_for_it() {
    // The launch is at 0; the pool closes at 4.5 and stays closed for a day.
    let scenario = scenario(
        20.0,
        vec![
            pool(ON_DEMAND, 0.4, OPEN()),
            pool(SPOT, 0.2, vec![(0.0, 1.0), (4.5, 0.0)]),
        ],
        vec![],
        vec![job("a", 0.0, 6.0)],
    );
    // Does nothing at the notice, and wants nothing but spot afterwards.
    let mut simulator = Simulator::new(&scenario, stay_put());
    while let Some(point) = simulator.next_decision() {
        let idle = point.request.current.is_some();
        let spot = point.candidates.iter().position(|c| c.candidate.id == SPOT);
        simulator.act(spot.filter(|_| !idle));
    }
    let outcome = simulator.outcome();
    let boot = boot(&scenario, 1, 0);
    let worked = 4.5 + 2.0 / 60.0 - boot;
    let account = outcome.workloads[0].account;
    assert_close!(account.lost_hours, worked - worked.floor());
    assert_close!(outcome.instances_usd, 0.2 * (4.5 + 2.0 / 60.0));
    let rate = 0.2 / 0.2 + 5.0 / 50.0 - 0.1 * 0.2;
    let waited = 20.0 - (4.5 + 2.0 / 60.0) + boot;
    assert_close!(outcome.all.reward, worked.floor() * rate - waited);
    assert_eq!((outcome.all.jobs, outcome.all.unfinished), (1, 1));
    assert_close!(outcome.all.jct_minutes, 20.0 * 60.0);
    assert!(outcome.counts.refused > 10, "asked again and again");
}

#[test]
fn a_job_that_moves_at_the_notice_loses_nothing() {
    let scenario = scenario(
        20.0,
        vec![
            pool(ON_DEMAND, 0.4, OPEN()),
            pool(SPOT, 0.2, vec![(0.0, 1.0), (4.5, 0.0)]),
        ],
        vec![device("lab", "edge-0", path(vec![(0.0, 0.0), (4.0, 1.0)]))],
        vec![job("a", 0.0, 6.0)],
    );
    let outcome = run(&scenario, stay_put(), &mut Wish(vec![SPOT, "edge"]));
    // The spot offer is still listed at the notice: nobody is told that it gives none. The launch
    // is refused after a minute, and then the device is taken.
    let boot = boot(&scenario, 1, 0);
    let account = outcome.workloads[0].account;
    assert_eq!((account.lost_hours, account.moves), (0.0, 1));
    assert_close!(account.over.unwrap(), 6.0 + boot + 1.0 / 60.0);
    assert_close!(account.running_hours, 6.0);
}

#[test]
fn a_refused_launch_is_known_after_a_minute_and_the_pool_cools_down_for_ten() {
    let scenario = scenario(
        2.0,
        vec![pool(SPOT, 0.2, vec![(0.0, 0.0), (0.1, 1.0)])],
        vec![],
        vec![service("a", 0.0, 2.0)],
    );
    let mut simulator = Simulator::new(&scenario, stay_put());
    let mut hours = Vec::new();
    while let Some(point) = simulator.next_decision() {
        hours.push(point.hour);
        simulator.act(Some(0));
    }
    assert_eq!(hours.len(), 2, "{hours:?}");
    assert_close!(hours[1], 11.0 / 60.0);
    let outcome = simulator.outcome();
    assert_eq!((outcome.counts.refused, outcome.counts.launches), (1, 1));
    assert_close!(outcome.instances_usd, 0.2 * (2.0 - 11.0 / 60.0));
}

#[test]
fn a_launch_whose_pool_closes_before_it_is_ready_is_refused() {
    let scenario = scenario(
        1.0,
        vec![pool(SPOT, 0.2, vec![(0.0, 1.0), (0.01, 0.0)])],
        vec![],
        vec![service("a", 0.0, 1.0)],
    );
    let outcome = run(&scenario, stay_put(), &mut Wish(vec!["aws"]));
    assert_eq!(outcome.counts.launches, 0);
    assert_eq!(outcome.instances_usd, 0.0);
    assert_close!(outcome.all.reward, -1.0);
}

#[test]
fn a_service_that_moves_is_served_without_a_gap_and_pays_twice_meanwhile() {
    let mut moving = service("a", 0.0, 4.0);
    moving.load_hours = 0.25;
    let devices = vec![
        device("lab", "edge-0", Path::constant(1.0)),
        device("lab", "edge-1", path(vec![(0.0, 0.0), (1.0, 1.0)])),
    ];
    let scenario = scenario(4.0, vec![], devices, vec![moving]);
    let config = SimConfig::default();
    let outcome = run(&scenario, config, &mut Wish(vec!["edge-1", "edge-0"]));
    let account = outcome.workloads[0].account;
    assert_eq!(account.moves, 1);
    assert_close!(account.running_hours, 3.75);
    assert_close!(account.missed_hours, 0.25);
    // A quarter of a device for 4 hours, and a second one for the quarter of an hour of the move.
    assert_close!(outcome.all.usd, 0.1 * 0.25 * 4.25);
    let p99 = 10.0 * 1.3 + sojourn_p99_ms(5.0, 0.125);
    let rate = 0.5 * 0.2 / 0.025 + 25.0 / p99 - 0.1 * 0.025;
    let second = 0.5 * (0.1 * 0.25 * 0.25) / 0.2;
    assert_close!(outcome.all.reward, rate * 3.75 - 0.25 - second);
}

#[test]
fn a_start_pulls_the_image_once_and_brings_the_data_for_money() {
    let mut first = service("a", 0.0, 10.0);
    first.image_gib = 9.0;
    first.request.data_gib = 18.0;
    first.request.data_locality = Some(Place("aws:us-west-2".to_owned()));
    let mut second = first.clone();
    (second.request.replica, second.arrival) = ("b".to_owned(), 5.0);
    let scenario = scenario(
        10.0,
        vec![pool(ON_DEMAND, 0.4, OPEN())],
        vec![],
        vec![first, second],
    );
    let outcome = run(
        &scenario,
        stay_put(),
        &mut Wish(vec!["aws/us-east-1/a/m/on-demand/", "aws"]),
    );
    let gib = GBIT_PER_GIB / 3600.0;
    let missed = |i: usize| outcome.workloads[i].account.missed_hours;
    assert_close!(missed(0), boot(&scenario, 0, 0) + (9.0 + 18.0) * gib);
    assert_close!(missed(1), 18.0 * gib);
    let egress = outcome.workloads[0].account.egress_usd;
    assert_close!(egress, 18.0 * 0.02);
    assert_close!(outcome.all.usd, outcome.instances_usd + 2.0 * egress);
}

#[test]
fn a_device_that_goes_down_loses_what_runs_there_at_once() {
    let up = path(vec![(0.0, 1.0), (2.5, 0.0), (3.0, 1.0)]);
    let scenario = scenario(
        10.0,
        vec![],
        vec![device("lab", "edge-0", up)],
        vec![job("a", 0.0, 4.0)],
    );
    let outcome = run(&scenario, stay_put(), &mut Wish(vec!["edge"]));
    let account = outcome.workloads[0].account;
    assert_close!(account.lost_hours, 0.5);
    assert_close!(account.over.unwrap(), 5.0);
    assert_close!(
        outcome.all.reward,
        4.0 * (0.2 / 0.025 + 0.1 - 0.1 * 0.025) - 0.5
    );
    assert_close!(outcome.all.jct_minutes, 300.0);
}

#[test]
fn who_waits_is_decided_when_room_comes_free() {
    let mut whole = service("a", 0.0, 3.0);
    whole.request.resources = SHAPE;
    let mut next = service("b", 1.0, 5.0);
    next.request.resources = SHAPE;
    let devices = vec![device("lab", "edge-0", Path::constant(1.0))];
    let scenario = scenario(6.0, vec![], devices, vec![whole, next]);
    let outcome = run(&scenario, stay_put(), &mut Wish(vec!["edge"]));
    assert_close!(outcome.workloads[1].account.missed_hours, 2.0);
    assert_close!(outcome.workloads[1].account.running_hours, 2.0);
}

#[test]
fn a_full_pool_is_not_offered() {
    let mut limited = pool(ON_DEMAND, 0.4, OPEN());
    limited.limit = 1;
    let whole = |name: &str| {
        let mut w = service(name, 0.0, 3.0);
        w.request.resources = SHAPE;
        w
    };
    let workloads = vec![whole("a"), whole("b")];
    let scenario = scenario(3.0, vec![limited], vec![], workloads);
    let outcome = run(&scenario, stay_put(), &mut Wish(vec!["aws"]));
    assert_eq!(outcome.counts.launches, 1);
    assert_close!(outcome.workloads[1].reward, -3.0);
}

#[test]
fn a_choice_that_breaks_a_constraint_is_refused_and_punished() {
    let mut picky = service("a", 0.0, 1.0);
    picky.request.tiers = vec![Tier::Edge];
    let scenario = scenario(
        1.0,
        vec![pool(ON_DEMAND, 0.4, OPEN())],
        vec![device("lab", "edge-0", Path::constant(1.0))],
        vec![picky],
    );
    let mut simulator = Simulator::new(&scenario, stay_put());
    while simulator.next_decision().is_some() {
        let choice = hyperion_placement::CandidateRef::Offer(ON_DEMAND.to_owned());
        simulator.act_on(&choice);
    }
    let outcome = simulator.outcome();
    // Asked anew every five minutes.
    assert_eq!(outcome.all.violations, 12);
    assert_close!(outcome.all.reward, -1.0 - 1200.0);
}

#[test]
fn the_view_is_what_production_would_consider() {
    let scenario = scenario(
        10.0,
        vec![
            pool(ON_DEMAND, 0.4, OPEN()),
            pool(SPOT, 0.2, vec![(0.0, 1.0), (4.5, 0.0), (6.0, 1.0)]),
            pool(WEST, 0.3, OPEN()),
        ],
        vec![device("lab", "edge-0", path(vec![(0.0, 1.0), (3.0, 0.0)]))],
        vec![
            share(service("a", 0.0, 9.0), 300),
            share(service("b", 0.5, 9.0), 500),
            job("c", 1.0, 5.0),
        ],
    );
    let mut simulator = Simulator::new(&scenario, SimConfig::default()).packing();
    let mut turn = 0;
    while let Some(point) = simulator.next_decision() {
        let (considered, rejected) = hyperion_placement::consider(point.snapshot, point.request);
        assert_eq!(&rejected, point.rejected);
        assert_eq!(considered.len(), point.candidates.len());
        for (theirs, ours) in considered.iter().zip(&point.candidates) {
            assert_eq!(theirs.candidate.id, ours.candidate.id);
            assert_eq!(theirs.features, ours.features);
        }
        let decision = hyperion_placement::decide(
            point.snapshot,
            point.request,
            &hyperion_placement::RulesScorer,
        );
        let mut rules = ScorerBrain(hyperion_placement::RulesScorer);
        let choice = rules.decide(
            point.snapshot,
            point.request,
            &point.candidates,
            &point.truth(),
        );
        let id = match decision.choice.unwrap().candidate {
            hyperion_placement::CandidateRef::Node(id)
            | hyperion_placement::CandidateRef::Offer(id) => id,
        };
        assert_eq!(point.candidates[choice.unwrap()].candidate.id, id);
        // Not always the best, so that replicas come around.
        turn += 1;
        let choice = if turn % 3 == 0 {
            Some(turn % considered.len())
        } else {
            choice
        };
        simulator.act(choice);
    }
    assert!(turn > 20, "{turn} decisions");
}

/// One that wants so many thousandths of a GPU.
fn share(mut workload: Workload, millis: u32) -> Workload {
    workload.request.gpu = GpuRequest { count: 1, millis };
    workload
}

#[test]
fn a_share_of_a_gpu_goes_where_it_leaves_nothing_useless() {
    // The first two are told where to go, and leave 600 of one device and 300 of the other. What
    // is left of 600 after a 300 suits neither a 400 nor a 700.
    let up = || Path::constant(1.0);
    let workloads = vec![
        share(service("a", 0.0, 9.0), 400),
        share(service("b", 0.1, 9.0), 700),
        share(service("c", 1.0, 9.0), 300),
    ];
    let devices = ["edge-0", "edge-1"].map(|id| device("lab", id, up()));
    let scenario = scenario(10.0, Vec::new(), devices.to_vec(), workloads);
    let last = |packs: bool| {
        let mut simulator = Simulator::new(&scenario, stay_put());
        if packs {
            simulator = simulator.packing();
        }
        let mut rules = ScorerBrain(hyperion_placement::RulesScorer);
        let mut taken = Vec::new();
        while let Some(point) = simulator.next_decision() {
            let choice = match point.workload {
                2 => rules.decide(
                    point.snapshot,
                    point.request,
                    &point.candidates,
                    &point.truth(),
                ),
                told => {
                    let id = ["edge-0", "edge-1"][told];
                    point.candidates.iter().position(|c| c.candidate.id == id)
                }
            };
            taken.extend(choice.map(|c| point.candidates[c].candidate.id.to_owned()));
            simulator.act(choice);
        }
        assert_eq!(taken[..2], ["edge-0", "edge-1"]);
        taken.pop()
    };
    assert_eq!(last(false).as_deref(), Some("edge-0"), "nothing is known");
    assert_eq!(last(true).as_deref(), Some("edge-1"));
}
