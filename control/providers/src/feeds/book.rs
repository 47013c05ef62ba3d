//! The prices that are known: taken from feeds, held back where they are absurd, aged and at last
//! forgotten. No I/O, and time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use hyperion_placement::model::{CapacityType, Provider};
use jiff::Timestamp;

use super::{Feed, Fetched, Key, Left, Offer, Reason};

/// A price this many times another known one of its type, or this part of it, is held back until it
/// is seen twice. The dearest region costs three times the cheapest, and spot a tenth of on demand.
pub const ABSURD: f64 = 20.0;
/// Two sightings of a price that is held back may differ by this factor: spot prices move.
const ALIKE: f64 = 1.25;
/// An offer that no feed has named for this long is no more: a week covers a feed that is broken
/// over a long weekend.
pub const FORGET: Duration = Duration::from_secs(7 * 24 * 3600);

/// A price that was held back.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldBack {
    /// Of what.
    pub key: Key,
    /// What the feed said.
    pub price_per_hour: f64,
    /// What it was compared with.
    pub known: f64,
}

/// What became of a fetch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Taken {
    /// Offers that are new or have another price.
    pub changed: usize,
    /// Newly held back.
    pub held_back: Vec<HeldBack>,
    /// Offers that are no more.
    pub forgotten: usize,
}

/// What is known of one feed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeedState {
    /// By key.
    pub offers: BTreeMap<Key, Offer>,
    /// Prices that were seen once.
    pub held_back: BTreeMap<Key, f64>,
    /// Requests that failed, since the beginning.
    pub failures: BTreeMap<Reason, u64>,
    /// Rows that the last fetch left out.
    pub left: BTreeMap<Left, u64>,
    /// When a fetch was last complete.
    pub complete: Option<Timestamp>,
}

/// All feeds.
#[derive(Debug, Clone, PartialEq)]
pub struct Book {
    feeds: BTreeMap<Feed, FeedState>,
    stale_after: Duration,
}

impl Book {
    /// An empty one of these feeds. A price that was not confirmed for `stale_after` is stale.
    #[must_use]
    pub fn new(feeds: impl IntoIterator<Item = Feed>, stale_after: Duration) -> Self {
        Self {
            feeds: feeds
                .into_iter()
                .map(|f| (f, FeedState::default()))
                .collect(),
            stale_after,
        }
    }

    /// What is known of each feed.
    pub fn feeds(&self) -> impl Iterator<Item = (Feed, &FeedState)> {
        self.feeds.iter().map(|(feed, state)| (*feed, state))
    }

    /// The offers of one feed.
    #[must_use]
    pub fn offers(&self, feed: Feed) -> Vec<Offer> {
        let state = self.feeds.get(&feed).into_iter();
        state.flat_map(|s| s.offers.values().cloned()).collect()
    }

    /// How old a price may get before it is stale.
    #[must_use]
    pub fn stale_after(&self) -> Duration {
        self.stale_after
    }

    /// Takes offers from before this process, with the ages that they have.
    pub fn restore(&mut self, feed: Feed, offers: Vec<Offer>, now: Timestamp) {
        let state = self.feeds.entry(feed).or_default();
        for offer in offers {
            if age(offer.seen, now) <= FORGET {
                state.offers.insert(offer.key.clone(), offer);
            }
        }
    }

    /// Takes what a feed brought. What it did not name stays, and ages.
    pub fn take(&mut self, feed: Feed, fetched: Fetched, now: Timestamp) -> Taken {
        let mut taken = Taken::default();
        let known = self.known_of_types(&fetched);
        let state = self.feeds.entry(feed).or_default();
        for failure in &fetched.failures {
            *state.failures.entry(failure.reason).or_default() += 1;
        }
        state.left = fetched.left;
        if fetched.failures.is_empty() {
            state.complete = Some(now);
        }
        for (key, offer) in fetched.offers {
            let price = offer.price_per_hour;
            let before = state.offers.get(&key).map(|o| o.price_per_hour);
            let reference = before.or_else(|| others(known.get(&kind(&key)), price));
            let again = state.held_back.remove(&key);
            if let Some(reference) = reference
                && !within(price, reference, ABSURD)
                && again.is_none_or(|seen| !within(price, seen, ALIKE))
            {
                state.held_back.insert(key.clone(), price);
                taken.held_back.push(HeldBack {
                    key,
                    price_per_hour: price,
                    known: reference,
                });
                continue;
            }
            if before != Some(price) {
                taken.changed += 1;
            }
            state.offers.insert(key, offer);
        }
        let count = state.offers.len();
        state
            .offers
            .retain(|_, offer| age(offer.seen, now) <= FORGET);
        taken.forgotten = count - state.offers.len();
        taken
    }

    /// Prices of the types in `fetched`, by type, sorted: those that are known, those that come
    /// and those of the table.
    fn known_of_types(&self, fetched: &Fetched) -> BTreeMap<Kind, Vec<f64>> {
        let mut known: BTreeMap<Kind, Vec<f64>> = BTreeMap::new();
        for (key, offer) in &fetched.offers {
            known
                .entry(kind(key))
                .or_default()
                .push(offer.price_per_hour);
        }
        let held = self.feeds.values().flat_map(|state| state.offers.values());
        for offer in held {
            if let Some(prices) = known.get_mut(&kind(&offer.key)) {
                prices.push(offer.price_per_hour);
            }
        }
        for row in crate::prices::PRICES {
            if let Some(prices) = known.get_mut(&(row.0, row.2.to_owned())) {
                prices.extend([Some(row.3), row.4].into_iter().flatten());
            }
        }
        for prices in known.values_mut() {
            prices.sort_by(f64::total_cmp);
        }
        known
    }

    /// What readers see from now on. Of two feeds with a price for the same thing one that is not
    /// stale counts, and of such the file.
    #[must_use]
    pub fn prices(&self, now: Timestamp) -> Prices {
        let mut prices: BTreeMap<Key, (Feed, Offer)> = BTreeMap::new();
        for (feed, state) in &self.feeds {
            for (key, offer) in &state.offers {
                let stale = |o: &Offer| age(o.seen, now) > self.stale_after;
                match prices.get(key) {
                    Some((_, held)) if !stale(held) || stale(offer) => {}
                    _ => {
                        prices.insert(key.clone(), (*feed, offer.clone()));
                    }
                }
            }
        }
        Prices {
            prices,
            stale_after: self.stale_after,
        }
    }
}

/// An instance type of a provider.
type Kind = (Provider, String);

fn kind(key: &Key) -> Kind {
    (key.provider, key.instance_type.clone())
}

/// The middle one of the other prices of a type; `price` is among them.
fn others(sorted: Option<&Vec<f64>>, price: f64) -> Option<f64> {
    let sorted = sorted?;
    match sorted.as_slice() {
        [] | [_] => None,
        [a, b] => Some(if price.total_cmp(a).is_eq() { *b } else { *a }),
        many => many.get(many.len() / 2).copied(),
    }
}

fn within(a: f64, b: f64, factor: f64) -> bool {
    a <= b * factor && b <= a * factor
}

/// Time since; zero for the future, since clocks are set back.
fn age(seen: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(seen)).unwrap_or_default()
}

/// Prices at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prices {
    prices: BTreeMap<Key, (Feed, Offer)>,
    stale_after: Duration,
}

/// A price, and how much it is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Known<'a> {
    /// The offer.
    pub offer: &'a Offer,
    /// Who says so.
    pub feed: Feed,
    /// Since when it has not been confirmed.
    pub age: Duration,
    /// It should have been confirmed by now: the feed fails, or no longer has it.
    pub stale: bool,
}

impl Prices {
    /// All of them, by provider, type, region, zone and capacity type.
    pub fn offers(&self, now: Timestamp) -> impl Iterator<Item = Known<'_>> {
        self.prices.values().map(move |held| self.known(held, now))
    }

    /// True where everything costs the same, whoever says so and since when.
    #[must_use]
    pub fn cost_the_same(&self, other: &Self) -> bool {
        fn costs(prices: &Prices) -> impl Iterator<Item = (&Key, f64)> {
            let offers = prices.prices.iter();
            offers.map(|(key, (_, offer))| (key, offer.price_per_hour))
        }
        costs(self).eq(costs(other))
    }

    /// Number of offers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prices.len()
    }

    /// True without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.prices.is_empty()
    }

    /// The offer for a machine: that of its zone, or that of the whole region. Where the zone is
    /// not known and prices are by zone, the dearest: a decision must not count on less.
    #[must_use]
    pub fn of(
        &self,
        provider: Provider,
        region: &str,
        zone: &str,
        instance_type: &str,
        capacity_type: CapacityType,
    ) -> Option<&Offer> {
        let instance_type = crate::shapes::shape(provider, instance_type)?.instance_type;
        let mut key = Key {
            provider,
            instance_type: instance_type.to_owned(),
            region: region.to_owned(),
            zone: zone.to_owned(),
            capacity_type,
        };
        if let Some((_, offer)) = self.prices.get(&key) {
            return Some(offer);
        }
        if !key.zone.is_empty() {
            key.zone.clear();
            return self.prices.get(&key).map(|(_, offer)| offer);
        }
        let same = |k: &Key| {
            k.provider == key.provider
                && k.instance_type == key.instance_type
                && k.region == key.region
        };
        let first = Key {
            capacity_type: CapacityType::OnDemand,
            ..key.clone()
        };
        let zones = self.prices.range(&first..).take_while(|(k, _)| same(k));
        zones
            .filter(|(k, _)| k.capacity_type == capacity_type)
            .map(|(_, (_, offer))| offer)
            .max_by(|a, b| a.price_per_hour.total_cmp(&b.price_per_hour))
    }

    fn known<'a>(&self, (feed, offer): &'a (Feed, Offer), now: Timestamp) -> Known<'a> {
        let age = age(offer.seen, now);
        Known {
            offer,
            feed: *feed,
            age,
            stale: age > self.stale_after,
        }
    }
}

#[cfg(test)]
mod tests;
