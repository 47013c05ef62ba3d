//! Live prices, and what they change.

use hyperion_placement::model::{CapacityType, Provider};
use hyperion_providers::feeds::{Book, Feed, Fetched, Key, Offer, Prices};

use super::*;
use crate::plan::better::LATER;

const INTERVAL: Duration = Duration::from_secs(600);

fn node_of(provider: &str, region: &str, kind: &str) -> Value {
    json!({ "hyperion.io/provider": provider, "topology.kubernetes.io/region": region,
        "node.kubernetes.io/instance-type": kind })
}

/// Prices of a g4dn.xlarge and of an NC4as.
fn prices(aws: f64, azure: f64) -> Arc<Prices> {
    let now = Timestamp::UNIX_EPOCH;
    let mut fetched = Fetched::default();
    for (provider, region, kind, price) in [
        (Provider::Aws, "us-east-1", "g4dn.xlarge", aws),
        (Provider::Azure, "eastus", "Standard_NC4as_T4_v3", azure),
    ] {
        let key = Key {
            provider,
            instance_type: kind.to_owned(),
            region: region.to_owned(),
            zone: String::new(),
            capacity_type: CapacityType::OnDemand,
        };
        fetched.add(Offer::new(key, price, now), String::new);
    }
    let mut book = Book::new([Feed::Aws], INTERVAL);
    book.take(Feed::Aws, fetched, now);
    Arc::new(book.prices(now))
}

fn world() -> World {
    let mut w = World::new();
    w.index.reconsider = Some(INTERVAL);
    w.node("aws", node_of("aws", "us-east-1", "g4dn.xlarge"), 0);
    w.node(
        "azure",
        node_of("azure", "eastus", "Standard_NC4as_T4_v3"),
        0,
    );
    w
}

fn price_of(w: &World, node: &str) -> Option<f64> {
    w.index.fleet().node(node).map(|n| n.price_per_hour)
}

#[test]
fn a_price_that_rises_moves_a_service() {
    let mut w = world();
    assert_eq!(w.index.set_prices(prices(0.3, 3.0)), 2);
    w.workload(with_policy(service(1, "i"), json!({ "goal": "cost" })));
    w.run_all();
    assert_eq!(w.on(0), Some(("aws".to_owned(), 1)));
    assert_eq!(w.index.set_prices(prices(3.0, 0.3)), 2);
    w.wait(INTERVAL);
    w.wait(LATER);
    assert_eq!(w.on(0), Some(("azure".to_owned(), 2)));
}

#[test]
fn a_label_counts_before_a_feed_and_the_table_after() {
    let mut w = world();
    let mut labels = node_of("aws", "us-east-1", "g4dn.xlarge");
    labels["hyperion.io/price-per-hour"] = json!("9.0");
    w.node("ours", labels, 0);
    w.node("other", node_of("aws", "us-west-2", "g4dn.xlarge"), 0);
    w.node("edge", json!({}), 0);
    assert_eq!(price_of(&w, "aws"), Some(0.526));
    assert_eq!(w.index.set_prices(prices(0.4, 0.5)), 2);
    assert_eq!(price_of(&w, "aws"), Some(0.4));
    assert_eq!(price_of(&w, "ours"), Some(9.0));
    assert_eq!(price_of(&w, "other"), Some(0.526));
    assert_eq!(price_of(&w, "edge"), Some(0.0));
    // The same again changes nothing.
    assert_eq!(w.index.set_prices(prices(0.4, 0.5)), 0);
    // A node that comes later costs the same.
    w.node("later", node_of("aws", "us-east-1", "g4dn.xlarge"), 0);
    assert_eq!(price_of(&w, "later"), Some(0.4));
}

#[test]
fn what_was_too_dear_is_placed_when_it_is_not() {
    let mut w = world();
    w.index.set_prices(prices(9.0, 9.0));
    w.workload(with_policy(
        service(1, "i"),
        json!({ "maxHourlyCost": 0.1 }),
    ));
    w.run_all();
    assert_eq!(w.on(0), None);
    w.index.set_prices(prices(0.1, 9.0));
    w.settle();
    assert_eq!(w.on(0), Some(("aws".to_owned(), 1)));
}
