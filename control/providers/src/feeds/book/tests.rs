use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn at(hours: u64) -> Timestamp {
    let start: Timestamp = "2026-05-20T00:00:00Z".parse().expect("a time");
    start + Duration::from_secs(3600 * hours)
}

fn key(kind: &str, zone: &str, capacity_type: CapacityType) -> Key {
    Key {
        provider: Provider::Aws,
        instance_type: kind.to_owned(),
        region: "us-east-1".to_owned(),
        zone: zone.to_owned(),
        capacity_type,
    }
}

fn g5(zone: &str) -> Key {
    key("g5.xlarge", zone, CapacityType::Spot)
}

fn fetched(offers: &[(&Key, f64)], now: Timestamp) -> Fetched {
    let mut fetched = Fetched::default();
    for (key, price) in offers {
        fetched.add(Offer::new((*key).clone(), *price, now), String::new);
    }
    assert_eq!(fetched.offers.len(), offers.len());
    fetched
}

fn book() -> Book {
    Book::new([Feed::File, Feed::Aws], 3 * HOUR)
}

fn price(book: &Book, key: &Key, now: Timestamp) -> Option<f64> {
    let Key {
        provider,
        instance_type,
        region,
        zone,
        capacity_type,
    } = key;
    let prices = book.prices(now);
    let offer = prices.of(*provider, region, zone, instance_type, *capacity_type)?;
    Some(offer.price_per_hour)
}

fn failed(reason: Reason) -> Fetched {
    Fetched {
        failures: vec![crate::feeds::Failure::new(reason, "test", "test")],
        ..Fetched::default()
    }
}

#[test]
fn what_a_fetch_does_not_name_stays_and_ages() {
    let mut book = book();
    let (a, b) = (g5("us-east-1a"), g5("us-east-1b"));
    let taken = book.take(Feed::Aws, fetched(&[(&a, 0.5), (&b, 0.6)], at(0)), at(0));
    assert_eq!(taken.changed, 2);
    book.take(Feed::Aws, fetched(&[(&a, 0.55)], at(4)), at(4));
    book.take(Feed::Aws, failed(Reason::Html), at(5));
    let prices = book.prices(at(5));
    let seen: Vec<_> = prices
        .offers(at(5))
        .map(|k| (k.offer.price_per_hour, k.age, k.stale))
        .collect();
    assert_eq!(seen, [(0.55, HOUR, false), (0.6, 5 * HOUR, true)]);
    let (_, state) = book.feeds().find(|(f, _)| *f == Feed::Aws).expect("AWS");
    assert_eq!(state.failures, BTreeMap::from([(Reason::Html, 1)]));
    assert_eq!(state.complete, Some(at(4)));
}

#[test]
fn after_a_week_an_offer_is_no_more() {
    let mut book = book();
    let (a, b) = (g5("us-east-1a"), g5("us-east-1b"));
    book.take(Feed::Aws, fetched(&[(&a, 0.5), (&b, 0.6)], at(0)), at(0));
    book.take(Feed::Aws, failed(Reason::Network), at(7 * 24));
    assert_eq!(book.prices(at(7 * 24)).len(), 2);
    let taken = book.take(
        Feed::Aws,
        fetched(&[(&a, 0.5)], at(7 * 24 + 1)),
        at(7 * 24 + 1),
    );
    assert_eq!(taken.forgotten, 1);
    assert_eq!(price(&book, &b, at(7 * 24 + 1)), None);
}

#[test]
fn an_absurd_jump_is_held_back_until_it_is_seen_twice() {
    let mut book = book();
    let a = g5("us-east-1a");
    book.take(Feed::Aws, fetched(&[(&a, 0.5)], at(0)), at(0));
    let taken = book.take(Feed::Aws, fetched(&[(&a, 11.0)], at(1)), at(1));
    let expected = HeldBack {
        key: a.clone(),
        price_per_hour: 11.0,
        known: 0.5,
    };
    assert_eq!(taken.held_back, [expected]);
    assert_eq!(price(&book, &a, at(1)), Some(0.5));
    // Another one is not the same one.
    let taken = book.take(Feed::Aws, fetched(&[(&a, 50.0)], at(2)), at(2));
    assert_eq!(taken.held_back.len(), 1);
    let taken = book.take(Feed::Aws, fetched(&[(&a, 51.0)], at(3)), at(3));
    assert_eq!((taken.held_back.len(), taken.changed), (0, 1));
    assert_eq!(price(&book, &a, at(3)), Some(51.0));
    // And back: as absurd as there.
    let taken = book.take(Feed::Aws, fetched(&[(&a, 0.5)], at(4)), at(4));
    assert_eq!(taken.held_back.len(), 1);
    book.take(Feed::Aws, fetched(&[(&a, 0.5)], at(5)), at(5));
    assert_eq!(price(&book, &a, at(5)), Some(0.5));
}

#[test]
fn one_mistake_is_forgotten_when_the_price_is_as_before() {
    let mut book = book();
    let a = g5("us-east-1a");
    for (hour, value, held) in [(0, 0.5, 0), (1, 0.005, 1), (2, 0.5, 0), (3, 0.005, 1)] {
        let taken = book.take(Feed::Aws, fetched(&[(&a, value)], at(hour)), at(hour));
        assert_eq!(taken.held_back.len(), held, "{hour}");
    }
    assert_eq!(price(&book, &a, at(3)), Some(0.5));
}

#[test]
fn the_first_price_is_compared_with_others_of_its_type() {
    let mut book = book();
    // Known of the type are 1.006 and 0.5051 and more, from the table.
    let (a, b) = (g5("us-east-1a"), g5("us-east-1b"));
    let taken = book.take(Feed::Aws, fetched(&[(&a, 40.0), (&b, 0.6)], at(0)), at(0));
    assert_eq!(taken.held_back.len(), 1);
    assert_eq!(taken.held_back[0].key, a);
    assert_eq!(price(&book, &b, at(0)), Some(0.6));
    // Of this type nothing is known: whatever comes first counts.
    let new = key("p5e.48xlarge", "us-east-1a", CapacityType::Spot);
    let taken = book.take(Feed::Aws, fetched(&[(&new, 1_000.0)], at(1)), at(1));
    assert_eq!(taken.held_back, []);
    // Threefold is no mistake.
    let taken = book.take(Feed::Aws, fetched(&[(&b, 1.8)], at(2)), at(2));
    assert_eq!((taken.held_back.len(), taken.changed), (0, 1));
}

#[test]
fn a_file_counts_before_a_cloud_unless_it_is_stale() {
    let mut book = book();
    let a = g5("us-east-1a");
    book.take(Feed::Aws, fetched(&[(&a, 0.5)], at(0)), at(0));
    book.take(Feed::File, fetched(&[(&a, 0.3)], at(0)), at(0));
    assert_eq!(price(&book, &a, at(0)), Some(0.3));
    book.take(Feed::Aws, fetched(&[(&a, 0.5)], at(5)), at(5));
    assert_eq!(price(&book, &a, at(5)), Some(0.5));
    // Both are: the file again.
    assert_eq!(price(&book, &a, at(20)), Some(0.3));
}

#[test]
fn zones_and_regions_answer_for_each_other() {
    let mut book = book();
    let (a, b) = (g5("us-east-1a"), g5("us-east-1b"));
    let list = key("g5.xlarge", "", CapacityType::OnDemand);
    let offers = [(&a, 0.5), (&b, 0.6), (&list, 1.0)];
    book.take(Feed::Aws, fetched(&offers, at(0)), at(0));
    let of =
        |zone: &str, capacity_type| price(&book, &key("g5.xlarge", zone, capacity_type), at(0));
    assert_eq!(of("us-east-1b", CapacityType::Spot), Some(0.6));
    assert_eq!(of("us-east-1c", CapacityType::Spot), None);
    assert_eq!(of("", CapacityType::Spot), Some(0.6), "the dearest");
    assert_eq!(of("us-east-1c", CapacityType::OnDemand), Some(1.0));
    assert_eq!(of("", CapacityType::OnDemand), Some(1.0));
    assert_eq!(of("", CapacityType::Owned), None);
}

#[test]
fn prices_that_can_not_be_are_refused() {
    for bad in [
        0.0,
        -0.5,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        1e-9,
        1e9,
    ] {
        assert_eq!(
            Offer::new(g5("us-east-1a"), bad, at(0)),
            Err(Left::Price),
            "{bad}"
        );
    }
    for zone in ["us-east-1", "eu-west-1a", "us-east-1 a", "us-east-1\n"] {
        assert_eq!(
            Offer::new(g5(zone), 1.0, at(0)),
            Err(Left::UnknownRegion),
            "{zone:?}"
        );
    }
    let owned = key("g5.xlarge", "", CapacityType::Owned);
    assert_eq!(Offer::new(owned, 1.0, at(0)), Err(Left::Malformed));
    let unknown = key("x99.huge", "", CapacityType::Spot);
    assert_eq!(Offer::new(unknown, 1.0, at(0)), Err(Left::UnknownType));
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_old() {
    let mut book = book();
    let a = g5("us-east-1a");
    book.take(Feed::Aws, fetched(&[(&a, 0.5)], at(100)), at(100));
    let prices = book.prices(at(0));
    let known = prices.offers(at(0)).next().expect("an offer");
    assert_eq!((known.age, known.stale), (Duration::ZERO, false));
}

#[test]
fn offers_of_before_keep_their_age() {
    let mut book = book();
    let old = Offer::new(g5("us-east-1a"), 0.5, at(0)).expect("an offer");
    let older = Offer::new(g5("us-east-1b"), 0.5, at(0)).expect("an offer");
    book.restore(Feed::Aws, vec![old.clone()], at(10));
    book.restore(Feed::Aws, vec![older], at(24 * 8));
    let prices = book.prices(at(10));
    let known: Vec<_> = prices.offers(at(10)).collect();
    assert_eq!(known.len(), 1);
    assert_eq!((known[0].age, known[0].stale), (10 * HOUR, true));
}

#[test]
fn prices_that_are_confirmed_cost_the_same_and_others_do_not() {
    let mut book = book();
    let (a, b) = (g5("us-east-1a"), g5("us-east-1b"));
    let mut seen = |offers: &[(&Key, f64)], hours| {
        book.take(Feed::Aws, fetched(offers, at(hours)), at(hours));
        book.prices(at(hours))
    };
    let first = seen(&[(&a, 0.4)], 0);
    let confirmed = seen(&[(&a, 0.4)], 1);
    assert!(first != confirmed && first.cost_the_same(&confirmed));
    let more = seen(&[(&b, 0.4)], 2);
    assert!(!confirmed.cost_the_same(&more) && !more.cost_the_same(&confirmed));
    let dearer = seen(&[(&b, 0.5)], 3);
    assert!(!more.cost_the_same(&dearer));
    assert!(Prices::default().cost_the_same(&Prices::default()));
}
