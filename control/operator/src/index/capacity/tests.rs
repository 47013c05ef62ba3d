use serde_json::{Value, json};

use hyperion_placement::model::CapacityType;
use hyperion_providers::feeds::{self, Book, Feed, Fetched, Key, Prices};
use jiff::Timestamp;

use super::offers::{Rest, of_market};
use super::*;

fn market(more: Value) -> Market {
    let mut all = json!({ "nodeClassRef": { "group": "g", "kind": "K", "name": "n" } });
    let more = more.as_object().unwrap().clone();
    all.as_object_mut().unwrap().extend(more);
    Market {
        capacity: Some(Arc::new(serde_json::from_value(all).unwrap())),
        provider: Provider::Aws,
        region: "us-east-1".to_owned(),
        selector: BTreeMap::from([("pool".to_owned(), "ours".to_owned())]),
    }
}

fn live(rows: &[(&str, &str, CapacityType, f64)]) -> Prices {
    let now = Timestamp::UNIX_EPOCH;
    let mut fetched = Fetched::default();
    for (kind, zone, capacity_type, price) in rows {
        let key = Key {
            provider: Provider::Aws,
            instance_type: (*kind).to_owned(),
            region: "us-east-1".to_owned(),
            zone: (*zone).to_owned(),
            capacity_type: *capacity_type,
        };
        fetched.add(feeds::Offer::new(key, *price, now), String::new);
    }
    let mut book = Book::new([Feed::Aws], Duration::from_secs(600));
    book.take(Feed::Aws, fetched, now);
    book.prices(now)
}

fn offers(market: &Market, prices: &Prices) -> Vec<(String, f64)> {
    let all = of_market("east", market, prices);
    let of = all
        .into_iter()
        .map(|w| (w.offer.id, w.offer.price_per_hour));
    of.collect()
}

#[test]
fn live_prices_count_before_the_table_and_zones_are_offers_of_their_own() {
    let only = market(json!({ "instanceTypes": ["g6.*"], "zones": ["us-east-1a", "us-east-1b"] }));
    let id = |zone: &str, capacity: &str| format!("east/aws/us-east-1/{zone}/g6.xlarge/{capacity}");
    let table = offers(&only, &Prices::default());
    assert_eq!(
        table,
        [
            (id("us-east-1a", "on-demand"), 0.8048),
            (id("us-east-1a", "spot"), 0.6685),
            (id("us-east-1b", "on-demand"), 0.8048),
            (id("us-east-1b", "spot"), 0.6685),
        ]
    );
    let spot = CapacityType::Spot;
    let prices = live(&[
        ("g6.xlarge", "us-east-1a", spot, 0.3),
        ("g6.xlarge", "us-east-1c", spot, 0.2),
        ("g5.xlarge", "us-east-1a", spot, 0.1),
    ]);
    let mixed = offers(&only, &prices);
    assert_eq!(
        mixed,
        [
            (id("us-east-1a", "on-demand"), 0.8048),
            (id("us-east-1a", "spot"), 0.3),
            (id("us-east-1b", "on-demand"), 0.8048),
        ]
    );
    let demand = market(json!({ "instanceTypes": ["g6.*"], "capacityTypes": ["on-demand"] }));
    assert_eq!(offers(&demand, &prices), [(id("-", "on-demand"), 0.8048)]);
    let nothing = Market {
        capacity: None,
        ..demand
    };
    assert_eq!(offers(&nothing, &prices), []);
}

#[test]
fn a_machine_has_less_for_pods_than_it_has_and_its_node_says_what_it_will_be() {
    let all = of_market(
        "east",
        &market(json!({ "labels": { "team": "v" } })),
        &Prices::default(),
    );
    let find = |end: &str| all.iter().find(|w| w.offer.id.ends_with(end)).unwrap();
    let small = find("g4dn.2xlarge/on-demand");
    assert_eq!(small.offer.allocatable.cpu_millis, 7910);
    // 1 + 0.8 + 0.8 + 0.96 GiB and what evictions begin at are the kubelet's.
    let left = small.offer.allocatable.memory_bytes >> 20;
    assert!((28_000..28_900).contains(&left), "{left}");
    let labels = &small.node.labels;
    for (key, value) in [
        ("pool", "ours"),
        ("team", "v"),
        ("hyperion.io/cluster", "east"),
        ("node.kubernetes.io/instance-type", "g4dn.2xlarge"),
        ("karpenter.sh/capacity-type", "on-demand"),
        ("topology.kubernetes.io/region", "us-east-1"),
    ] {
        assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!labels.contains_key("topology.kubernetes.io/zone"));
}

#[test]
fn what_fails_again_rests_longer_and_is_forgotten_in_the_end() {
    let start = Instant::now();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let mut rest = Rest::again(None, "why", start);
    for expected in [20, 40, 60, 60] {
        rest = Rest::again(Some(&rest), "why", start);
        assert_eq!(rest.due(), start + minutes(expected));
    }
    assert!(rest.on() && !rest.ends(start + minutes(59)));
    assert!(rest.ends(start + minutes(60)) && !rest.ends(start + minutes(61)));
    assert!(!rest.on() && !rest.forgotten(start + minutes(119)));
    assert!(rest.forgotten(start + minutes(120)));
}
