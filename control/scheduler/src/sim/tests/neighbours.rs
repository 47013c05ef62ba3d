//! What a replica does to those on its machine, computed by hand.

use hyperion_placement::latency::sojourn_p99_ms;

use super::*;
use crate::ppo::Environment as _;

const ON_DEMAND: &str = "aws/us-east-1/a/m/on-demand";

/// Two services on one machine; the second is there for five hours.
fn shared(pools: Vec<Pool>, devices: Vec<Device>) -> Arc<Scenario> {
    let workloads = vec![service("a", 0.0, 8.0), service("b", 1.0, 6.0)];
    scenario(10.0, pools, devices, workloads)
}

fn done(scenario: &Arc<Scenario>, wish: Vec<&'static str>) -> [f64; 2] {
    let mut simulator = Simulator::new(scenario, stay_put());
    simulator.count_neighbours();
    let mut wish = Wish(wish);
    while let Some(p) = simulator.next_decision() {
        let choice = wish.decide(p.snapshot, p.request, &p.candidates, &p.truth());
        simulator.act(choice);
    }
    [0, 1].map(|i| simulator.done_to_neighbours(i))
}

/// What a neighbour's load takes of the reward for latency, an hour.
fn slower(rtt_ms: f64) -> f64 {
    let p99 = |busy: f64| rtt_ms * 1.3 + sojourn_p99_ms(5.0, busy);
    25.0 / p99(0.125) - 25.0 / p99(0.25)
}

#[test]
fn on_an_instance_a_neighbour_shares_the_price_and_adds_load() {
    let scenario = shared(vec![pool(ON_DEMAND, 0.4, vec![(0.0, 1.0)])], vec![]);
    let [a, b] = done(&scenario, vec!["aws/us-east-1/a/m/on-demand/", "aws"]);
    let price = |usd: f64| 0.5 * 0.2 / usd - 0.1 * usd;
    let rate = price(0.2) - price(0.4) - slower(20.0);
    assert_close!(a, 5.0 * rate);
    assert_close!(b, 5.0 * rate);
}

#[test]
fn on_a_device_a_neighbour_adds_load_alone() {
    let scenario = shared(vec![], vec![device("lab", "edge-0", Path::constant(1.0))]);
    let [a, b] = done(&scenario, vec!["edge"]);
    assert_close!(a, -5.0 * slower(10.0));
    assert_close!(b, a);
}

#[test]
fn who_is_alone_does_nothing_to_anybody() {
    let pools = vec![pool(ON_DEMAND, 0.4, vec![(0.0, 1.0)])];
    let devices = vec![device("lab", "edge-0", Path::constant(1.0))];
    let mut other = service("b", 1.0, 6.0);
    other.request.tiers = vec![Tier::Cloud];
    let workloads = vec![service("a", 0.0, 8.0), other];
    let scenario = scenario(10.0, pools, devices, workloads);
    assert_eq!(done(&scenario, vec!["edge", "aws"]), [0.0, 0.0]);
}

#[test]
fn a_learner_that_cares_earns_what_it_does_to_its_neighbours() {
    let earned = |share: f64| {
        let draw = |_| {
            (
                shared(vec![], vec![device("lab", "edge-0", Path::constant(1.0))]),
                None,
            )
        };
        let mut env = FleetEnv::new(Box::new(draw), stay_put()).caring(share);
        env.reset(1);
        let mut earned = 0.0;
        while let Some(turn) = env.turn() {
            earned += turn.earned;
            env.act(0);
        }
        earned + env.endings().iter().map(|e| e.earned).sum::<f64>()
    };
    // Each slows the other down for five hours.
    assert_close!(earned(0.5) - earned(0.0), -0.5 * 2.0 * 5.0 * slower(10.0));
}
