//! What holds whatever the scheduler does.

use hyperion_placement::features::RequestSlot;
use proptest::prelude::*;

use super::*;

/// A world in which much goes wrong: little room, pools that come and go, devices that fail.
fn troubled(seed: u64, workloads: usize) -> Arc<Scenario> {
    let wave = |n: u64, length: f64| {
        let points = (0..20).map(|k| {
            let hour = -20.0 + f64::from(k) * length + random::phase(&format!("{seed}/{n}"));
            (hour, f64::from((k + n as u32) % 2))
        });
        path(points.collect())
    };
    let mut pools = vec![
        pool("aws/us-east-1/a/m/on-demand", 0.5, vec![(0.0, 1.0)]),
        pool("aws/us-east-1/a/m/spot", 0.15, vec![(0.0, 1.0)]),
        pool("aws/us-west-2/a/m/spot", 0.1, vec![(0.0, 1.0)]),
    ];
    pools[0].limit = 2;
    pools[1].obtainable = wave(0, 2.3);
    pools[2].obtainable = wave(1, 3.1);
    pools[2].price = path(
        (0..40)
            .map(|k| (f64::from(k), 0.05 + 0.01 * f64::from(k % 7)))
            .collect(),
    );
    let devices = vec![
        device("lab", "edge-0", wave(2, 4.0)),
        device("lab", "edge-1", wave(3, 5.0)),
    ];
    let workloads = (0..workloads).map(|n| {
        let name = format!("w/{seed}/{n:02}");
        let arrival = f64::from(n as u32) * 0.7;
        let mut workload = if n % 2 == 0 {
            service(&name, arrival, arrival + 9.0)
        } else {
            job(&name, arrival, 3.0)
        };
        workload.request.goal = Goal::ALL[n % 3];
        workload.request.gpu = GpuRequest {
            count: u32::from(n % 3 == 0),
            millis: 400,
        };
        workload.image_gib = 2.0;
        workload.load_hours = 0.02;
        workload.request.data_gib = 4.0;
        workload.request.data_locality = Some(Place("aws:us-east-1".to_owned()));
        workload.load = path(
            (0..30)
                .map(|k| (f64::from(k), 0.1 + 0.2 * f64::from(k % 4)))
                .collect(),
        );
        workload
    });
    let workloads = workloads.collect();
    scenario(24.0, pools, devices, workloads)
}

/// Chooses by a list of numbers, over and over; now and then nothing.
struct Dice(Vec<u8>, usize);

impl Brain for Dice {
    fn name(&self) -> &str {
        "dice"
    }

    fn decide(
        &mut self,
        _: &Snapshot,
        _: &Request,
        candidates: &[Considered<'_>],
        _: &dyn Truth,
    ) -> Option<usize> {
        self.1 += 1;
        let roll = usize::from(self.0[self.1 % self.0.len()]);
        (roll % 8 != 7).then_some(roll % candidates.len())
    }
}

fn room_is_kept(simulator: &Simulator) {
    for (host, at) in simulator.hosts.iter().enumerate() {
        let shape = &simulator.shapes[at.shape].node;
        let (mut cpu, mut memory, mut gpu) = (0, 0, 0);
        for promise in &at.promises {
            let replica = &simulator.replicas[promise.replica];
            cpu += replica.request.resources.cpu_millis;
            memory += replica.request.resources.memory_bytes;
            gpu += promise.gpus.iter().map(|g| g.1).sum::<u32>();
            let there =
                replica.serving == Some(host) || replica.coming == replica::Coming::Host(host);
            assert!(there, "a promise for who is elsewhere");
        }
        assert!(cpu <= shape.allocatable.cpu_millis);
        assert!(memory <= shape.allocatable.memory_bytes);
        assert!(gpu <= 1000 * shape.gpus.len() as u32);
        if at.state == host::State::Gone {
            assert!(at.promises.is_empty());
        }
        let lent = simulator
            .pending
            .as_ref()
            .is_some_and(|p| p.lent == Some(host));
        if let (Some(node), false) = (simulator.view.find(at), lent) {
            assert_eq!(node.free.cpu_millis, shape.allocatable.cpu_millis - cpu);
            assert_eq!(
                node.free.memory_bytes,
                shape.allocatable.memory_bytes - memory
            );
            let free: u32 = node.gpus.iter().map(|g| g.free_millis).sum();
            assert_eq!(free, 1000 * shape.gpus.len() as u32 - gpu);
        }
    }
    for (pool, state) in simulator.pools.iter().enumerate() {
        assert!(state.taken <= simulator.scenario.pools[pool].limit);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_choices_break_nothing(
        seed in 0_u64..1000,
        rolls in proptest::collection::vec(any::<u8>(), 1..40),
        workloads in 1_usize..16,
    ) {
        let scenario = troubled(seed, workloads);
        let mut simulator = Simulator::new(&scenario, SimConfig::default());
        let mut dice = Dice(rolls.clone(), 0);
        let mut before = 0.0;
        while let Some(point) = simulator.next_decision() {
            prop_assert!(point.hour >= before);
            before = point.hour;
            let choice = dice.decide(
                point.snapshot,
                point.request,
                &point.candidates,
                &point.truth(),
            );
            room_is_kept(&simulator);
            simulator.act(choice);
            room_is_kept(&simulator);
        }
        let outcome = simulator.outcome();
        prop_assert_eq!(outcome.all.violations, 0);
        let mut usd = 0.0;
        let mut devices_usd = 0.0;
        for (record, workload) in outcome.workloads.iter().zip(&scenario.workloads) {
            let account = record.account;
            prop_assert!(account.usd >= 0.0 && account.egress_usd >= 0.0);
            prop_assert!(account.lost_hours >= -1e-9);
            prop_assert!(account.missed_hours <= account.hours + 1e-9);
            if record.workload_type == WorkloadType::Job {
                let kept = account.running_hours - account.lost_hours;
                prop_assert!(kept <= workload.work_hours + 1e-9, "{kept} hours of work");
            } else {
                let hours = workload.end.min(scenario.horizon) - workload.arrival;
                prop_assert!((account.hours - hours).abs() < 1e-9);
            }
            usd += account.usd - account.egress_usd;
            devices_usd += account.hours * 0.1;
        }
        // What is paid for instances is paid by somebody, and nothing else is but devices.
        prop_assert!(usd >= outcome.instances_usd - 1e-9);
        prop_assert!(usd <= outcome.instances_usd + devices_usd + 1e-9);
        prop_assert_eq!(&outcome, &run(&scenario, SimConfig::default(), &mut Dice(rolls, 0)));
    }
}

#[test]
fn turns_and_endings_of_the_learner_add_up_to_the_reward() {
    use crate::ppo::Environment as _;
    let mut env = FleetEnv::new(
        Box::new(|seed| (troubled(seed, 12), None)),
        SimConfig::default(),
    );
    env.reset(3);
    let mut earned = 0.0;
    let mut turns = 0;
    while let Some(turn) = env.turn() {
        // As in production, nobody says how long a job will take.
        assert_eq!(turn.request[RequestSlot::Hours as usize], 0.0);
        assert_eq!(turn.request[RequestSlot::HoursKnown as usize], 0.0);
        earned += turn.earned;
        turns += 1;
        env.act(turns % turn.candidates.len());
    }
    let endings = env.endings();
    earned += endings.iter().map(|e| e.earned).sum::<f64>();
    let outcome = env.simulator().unwrap().outcome();
    assert!(turns > 100);
    assert_eq!(endings.len(), 12);
    let lead: f64 = outcome.all.reward - earned;
    // What was lost before a first turn, waiting without a candidate, is nobody's choice.
    assert!((-1.0..=1e-9).contains(&lead), "{lead}");
    let last = endings.iter().map(|e| e.hour).fold(0.0, f64::max);
    assert!(last <= 24.0);
}
