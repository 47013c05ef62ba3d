use super::*;
use crate::model::{GpuRequest, Resources};

const GIB: u64 = 1 << 30;

fn demand(cpu: u64, count: u32, millis: u32) -> Demand {
    Demand::new(
        Resources {
            cpu_millis: cpu,
            memory_bytes: GIB,
        },
        GpuRequest { count, millis },
    )
}

fn free(cpu: u64, gpus: &[u32]) -> Free<'_> {
    Free {
        cpu_millis: cpu,
        memory_bytes: 640 * GIB,
        gpus,
        model: Models::ANY,
    }
}

fn typical(of: &[(Demand, usize)]) -> TypicalRequests {
    let mut typical = TypicalRequests::default();
    for (demand, times) in of {
        for _ in 0..*times {
            typical.observe(*demand);
        }
    }
    typical
}

fn prices(typical: &TypicalRequests, fleet: &[Free<'_>]) -> Prices {
    Prices::refresh(typical, fleet, &Prices::default())
}

#[test]
fn a_rest_that_no_expected_request_can_use_is_worth_nothing() {
    let typical = typical(&[(demand(1000, 1, 800), 10)]);
    let whole = [1000; 8];
    let prices = prices(&typical, &[free(96_000, &whole)]);
    assert!(worth(prices.pools.first(), 200).abs() < 1e-9);
    assert!((prices.wasted(&free(96_000, &[200])) - 0.2).abs() < 1e-9);
    // What is left of the whole device after one is useless too.
    assert!(prices.wasted(&free(96_000, &[1000])) >= 0.2 - 1e-9);
}

#[test]
fn shares_are_paired_with_what_completes_a_device() {
    let typical = typical(&[(demand(1000, 1, 700), 10), (demand(1000, 1, 300), 10)]);
    let fleet = [free(96_000, &[1000; 8])];
    let prices = prices(&typical, &fleet);
    // On the device of 300 nothing is lost; on that of 600, 300 would be left for a later one; on
    // the whole one it is fine too, but the fullest is preferred.
    let node = free(96_000, &[1000, 600, 300, 500]);
    let devices = prices.assign(&node, &demand(1000, 1, 300)).unwrap();
    assert_eq!(devices, [2]);
    // 700 fits on the first only.
    let devices = prices.assign(&node, &demand(1000, 1, 700)).unwrap();
    assert_eq!(devices, [0]);
    assert_eq!(prices.assign(&node, &demand(1000, 2, 700)), None);
}

#[test]
fn scarce_complements_lower_the_worth_of_what_waits_for_them() {
    let fleet = [free(960_000, &[1000; 64])];
    let many = prices(
        &typical(&[(demand(1000, 1, 810), 10), (demand(1000, 1, 190), 10)]),
        &fleet,
    );
    let few = prices(
        &typical(&[(demand(1000, 1, 810), 100), (demand(1000, 1, 190), 1)]),
        &fleet,
    );
    let rest = |prices: &Prices| worth(prices.pools.first(), 190);
    assert!(
        rest(&many) > rest(&few) + 0.05,
        "{} {}",
        rest(&many),
        rest(&few)
    );
}

#[test]
fn gpus_that_cpu_cannot_carry_are_wasted() {
    let typical = typical(&[(demand(12_000, 1, 1000), 10)]);
    let prices = prices(&typical, &[free(96_000, &[1000; 8])]);
    let rich = prices.wasted(&free(96_000, &[1000; 8]));
    let poor = prices.wasted(&free(24_000, &[1000; 8]));
    assert!(poor > rich + 5.0, "{poor} {rich}");
    // So a request that wants CPU only goes where CPU is to spare.
    let cpu_only = demand(24_000, 0, 0);
    let tight = prices.loss(&free(96_000, &[1000; 8]), &cpu_only).unwrap();
    let spare = prices.loss(&free(96_000, &[1000; 2]), &cpu_only).unwrap();
    assert!(spare < tight, "{spare} {tight}");
}

#[test]
fn a_scarce_whole_node_is_kept_for_those_who_need_it() {
    let typical = typical(&[(demand(1000, 1, 1000), 40), (demand(8000, 8, 1000), 5)]);
    let used = [0, 1000, 1000, 1000, 1000, 1000, 1000, 1000];
    let prices = prices(&typical, &[free(96_000, &[1000; 8]), free(96_000, &used)]);
    let one = demand(1000, 1, 1000);
    let breaks = prices.loss(&free(96_000, &[1000; 8]), &one).unwrap();
    let spares = prices.loss(&free(96_000, &used), &one).unwrap();
    assert!(spares < breaks, "{spares} {breaks}");
}

#[test]
fn a_model_that_only_few_accept_is_worth_less() {
    let mut picky = demand(1000, 1, 1000);
    picky.models = Models(0b01);
    let anywhere = demand(1000, 1, 500);
    let typical = typical(&[(picky, 50), (anywhere, 10)]);
    let gpus = [1000; 8];
    let node = |model| Free {
        model: Models(model),
        ..free(96_000, &gpus)
    };
    let prices = prices(&typical, &[node(0b01), node(0b10)]);
    let wanted = prices.loss(&node(0b01), &anywhere).unwrap();
    let other = prices.loss(&node(0b10), &anywhere).unwrap();
    assert!(other < wanted, "{other} {wanted}");
    assert!(prices.loss(&node(0b10), &picky).is_none());
}

#[test]
fn without_experience_the_fullest_device_with_room_is_taken() {
    let prices = Prices::default();
    let node = free(1000, &[1000, 400, 300]);
    let devices = prices.assign(&node, &demand(1000, 1, 350)).unwrap();
    assert_eq!(devices, [1]);
    assert!((prices.loss(&free(1000, &[]), &demand(1000, 0, 0)).unwrap()).abs() < 1e-12);
    assert_eq!(
        Prices::refresh(&TypicalRequests::default(), &[node], &prices),
        Prices::default()
    );
    assert_eq!(
        Prices::refresh(&typical(&[(demand(1, 1, 1), 1)]), &[], &prices),
        Prices::default()
    );
}

#[test]
fn the_same_input_gives_the_same_prices() {
    let typical = typical(&[(demand(1000, 1, 470), 7), (demand(3000, 1, 1000), 3)]);
    let fleet = [free(96_000, &[1000; 8]), free(16_000, &[530, 1000])];
    let first = prices(&typical, &fleet);
    assert_eq!(first, prices(&typical, &fleet));
    let again = Prices::refresh(&typical, &fleet, &first);
    assert_eq!(again, Prices::refresh(&typical, &fleet, &first));
}
