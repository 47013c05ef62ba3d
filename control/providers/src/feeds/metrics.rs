//! What `/metrics` says of feeds. Ages are those of the moment of the question.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::run::Feeds;

/// Registers all under `hyperion_price_`.
pub fn register(feeds: &Feeds, registry: &mut Registry) {
    let registry = registry.sub_registry_with_prefix("hyperion_price");
    registry.register_collector(Box::new(Ages(feeds.clone())));
}

#[derive(Debug)]
struct Ages(Feeds);

type Gauges<const N: usize> = BTreeMap<[(&'static str, String); N], f64>;

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let now = Timestamp::now();
        let mut offers = Gauges::default();
        let mut stale = Gauges::default();
        let mut age = Gauges::default();
        let mut held_back = Gauges::default();
        let mut left = Gauges::default();
        let mut failures = BTreeMap::new();
        let since = |at: Timestamp| now.duration_since(at).as_secs_f64().max(0.0);
        {
            let book = self.0.book();
            let stale_after = book.stale_after().as_secs_f64();
            for (feed, state) in book.feeds() {
                let name = ("feed", feed.to_string());
                for offer in state.offers.values() {
                    let labels = [name.clone(), ("provider", offer.key.provider.to_string())];
                    let seen = since(offer.seen);
                    *offers.entry(labels.clone()).or_default() += 1.0;
                    *stale.entry(labels.clone()).or_default() += f64::from(seen > stale_after);
                    let youngest = age.entry(labels).or_insert(seen);
                    *youngest = youngest.min(seen);
                }
                held_back.insert([name.clone()], state.held_back.len() as f64);
                for (reason, count) in &state.left {
                    let labels = [name.clone(), ("reason", reason.to_string())];
                    left.insert(labels, *count as f64);
                }
                for (reason, count) in &state.failures {
                    let labels = [name.clone(), ("reason", reason.to_string())];
                    failures.insert(labels, *count);
                }
            }
        }
        let e = &mut encoder;
        gauges(e, "offers", "Offers with a price", &offers)?;
        gauges(
            e,
            "stale_offers",
            "Offers whose price should have been confirmed by now",
            &stale,
        )?;
        gauges(
            e,
            "age_seconds",
            "Time since the newest price of a feed was confirmed",
            &age,
        )?;
        gauges(
            e,
            "held_back",
            "Prices that wait to be seen twice, far from what is known",
            &held_back,
        )?;
        gauges(
            e,
            "rows_left_out",
            "Rows of the last fetch that became no offer, by reason",
            &left,
        )?;
        let mut family = e.encode_descriptor(
            "feed_failures",
            "Requests of feeds that failed, by reason",
            None,
            MetricType::Counter,
        )?;
        for (labels, count) in &failures {
            let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn gauges<const N: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &Gauges<N>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
        ConstGauge::new(*value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
