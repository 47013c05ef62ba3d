//! Feeds that run: what readers see as prices change, feeds fail and the process begins anew.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyperion_placement::model::{CapacityType, Provider};
use hyperion_providers::feeds::file::File;
use hyperion_providers::feeds::gcp::{Access, Gcp};
use hyperion_providers::feeds::run::Source;
use hyperion_providers::feeds::{FeedConfig, Feeds, Prices, metrics, start};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::clouds::recorded;
use crate::server::{Reply, Server};
use crate::{azure, http};

const PATIENCE: Duration = Duration::from_secs(20);

fn config(sources: Vec<Source>, cache: Option<&Path>) -> FeedConfig {
    FeedConfig {
        sources,
        refresh: Duration::from_millis(50),
        cache_dir: cache.map(Path::to_owned),
    }
}

fn t4(prices: &Prices) -> Option<f64> {
    let (provider, kind) = (Provider::Azure, "Standard_NC4as_T4_v3");
    let offer = prices.of(provider, "eastus", "eastus-1", kind, CapacityType::OnDemand)?;
    Some(offer.price_per_hour)
}

async fn until(feeds: &Feeds, what: &str, is: impl Fn(&Prices) -> bool) -> Arc<Prices> {
    let mut prices = feeds.prices();
    let seen = tokio::time::timeout(PATIENCE, prices.wait_for(|p| is(p))).await;
    let seen = seen.unwrap_or_else(|_| panic!("not in time: {what}"));
    seen.expect("feeds that run").clone()
}

fn metrics_of(feeds: &Feeds) -> String {
    let mut registry = Registry::default();
    metrics::register(feeds, &mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string");
    text
}

async fn until_metrics(feeds: &Feeds, line: &str) -> String {
    let mut prices = feeds.prices();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let text = metrics_of(feeds);
        if text.lines().any(|l| l.starts_with(line)) {
            return text;
        }
        let changed = tokio::time::timeout_at(deadline, prices.changed()).await;
        assert!(changed.is_ok(), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn faults_take_nothing_away_and_are_counted() {
    let broken = Arc::new(AtomicUsize::new(0));
    let state = broken.clone();
    let server = Server::start(move |asked, n| match state.load(Ordering::SeqCst) {
        1 => Reply::Whole(429, "retry-after: 0\r\n", String::new()),
        2 => Reply::Whole(200, "", r#"{"Items":[],"NextPageLink":null}"#.to_owned()),
        3 => Reply::Whole(200, "content-type: text/html\r\n", "<html>".to_owned()),
        _ => recorded(asked, n),
    })
    .await;
    let stop = CancellationToken::new();
    let feeds = start(config(vec![azure(&server.url)], None), &stop).expect("feeds");
    let before = until(&feeds, "prices", |p| !p.is_empty()).await;
    assert_eq!(t4(&before), Some(0.526));
    for (fault, reason) in [(1, "rateLimited"), (2, "empty"), (3, "html")] {
        broken.store(fault, Ordering::SeqCst);
        let line =
            format!(r#"hyperion_price_feed_failures_total{{feed="azure",reason="{reason}"}}"#);
        let text = until_metrics(&feeds, &line).await;
        let offers = r#"hyperion_price_offers{feed="azure",provider="azure"} 6"#;
        assert!(text.contains(offers), "{text}");
        assert!(text.contains("hyperion_price_age_seconds{"), "{text}");
        let left = r#"hyperion_price_stale_offers{feed="azure",provider="azure"} 0"#;
        assert!(text.contains(left), "{text}");
    }
    let after = feeds.prices().borrow().clone();
    assert_eq!(after.len(), before.len());
    stop.cancel();
}

#[tokio::test]
async fn a_price_that_changes_in_the_file_is_seen() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("prices.csv");
    let write = |price: &str| {
        let head = "provider,region,instance_type,capacity_type,price_per_hour";
        let row = format!("azure,eastus,Standard_NC4as_T4_v3,on-demand,{price}");
        std::fs::write(&path, format!("{head}\n{row}\n")).expect("a file");
    };
    write("0.5");
    let stop = CancellationToken::new();
    let sources = vec![Source::File(File::new(path.clone()))];
    let feeds = start(config(sources, None), &stop).expect("feeds");
    until(&feeds, "0.5", |p| t4(p) == Some(0.5)).await;
    write("1.5");
    until(&feeds, "1.5", |p| t4(p) == Some(1.5)).await;
    // Absurd, but the next look at the file confirms it.
    write("90");
    until(&feeds, "90", |p| t4(p) == Some(90.0)).await;
    std::fs::remove_file(&path).expect("a file");
    until_metrics(
        &feeds,
        r#"hyperion_price_feed_failures_total{feed="file",reason="file"}"#,
    )
    .await;
    assert_eq!(t4(&feeds.prices().borrow()), Some(90.0));
    stop.cancel();
}

#[tokio::test]
async fn the_file_counts_before_a_cloud() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("prices.csv");
    let text = "provider,region,instance_type,capacity_type,price_per_hour\n\
        azure,eastus,Standard_NC4as_T4_v3,on-demand,0.3\n";
    std::fs::write(&path, text).expect("a file");
    let server = Server::start(recorded).await;
    let sources = vec![azure(&server.url), Source::File(File::new(path))];
    let stop = CancellationToken::new();
    let feeds = start(config(sources, None), &stop).expect("feeds");
    let prices = until(&feeds, "both", |p| p.len() == 6 && t4(p) == Some(0.3)).await;
    assert_eq!(prices.len(), 6);
    stop.cancel();
}

#[tokio::test]
async fn prices_of_before_are_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let server = Server::start(recorded).await;
    let stop = CancellationToken::new();
    let sources = vec![azure(&server.url)];
    let feeds = start(config(sources, Some(dir.path())), &stop).expect("feeds");
    until(&feeds, "prices", |p| p.len() == 6).await;
    // Written after it is published; the second fetch comes after the first is written.
    let asked = server.count();
    let mut prices = feeds.prices();
    while server.count() < asked + 4 {
        let changed = tokio::time::timeout(PATIENCE, prices.changed()).await;
        changed.expect("in time").expect("feeds that run");
    }
    stop.cancel();

    // Nobody answers any more.
    let stop = CancellationToken::new();
    let gone = || vec![azure("http://127.0.0.1:1")];
    let feeds = start(config(gone(), Some(dir.path())), &stop).expect("feeds");
    assert_eq!(t4(&feeds.prices().borrow()), Some(0.526));
    stop.cancel();

    // A cache that is damaged is moved aside, and everything goes on.
    let file = dir.path().join("prices-azure");
    let text = std::fs::read_to_string(&file).expect("the cache");
    std::fs::write(&file, text.replace("0.526", "0.026")).expect("a file");
    let stop = CancellationToken::new();
    let feeds = start(config(gone(), Some(dir.path())), &stop).expect("feeds");
    assert!(feeds.prices().borrow().is_empty());
    let names: Vec<String> = std::fs::read_dir(dir.path())
        .expect("a folder")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    assert!(
        names.iter().any(|n| n.starts_with("prices-azure.damaged-")),
        "{names:?}"
    );
    stop.cancel();
}

/// Panics when it is asked first, as a library may.
struct Tokens(AtomicUsize);

#[async_trait::async_trait]
impl gcp_auth::TokenProvider for Tokens {
    async fn token(&self, scopes: &[&str]) -> Result<Arc<gcp_auth::Token>, gcp_auth::Error> {
        assert_eq!(
            scopes,
            ["https://www.googleapis.com/auth/cloud-billing.readonly"]
        );
        assert!(
            self.0.fetch_add(1, Ordering::SeqCst) > 0,
            "a fault in a library"
        );
        let token = r#"{"access_token":"token-of-gcp","expires_in":3600}"#;
        Ok(Arc::new(serde_json::from_str(token).expect("a token")))
    }

    async fn project_id(&self) -> Result<Arc<str>, gcp_auth::Error> {
        Err(gcp_auth::Error::Str("there is no project"))
    }
}

#[tokio::test]
async fn a_panic_costs_one_fetch_and_the_next_one_brings_prices() {
    let server = Server::start(recorded).await;
    let access = Access::Given(Arc::new(Tokens(AtomicUsize::new(0))));
    let gcp = Gcp::new(http(), &server.url, access, vec!["us-central1".to_owned()]);
    let stop = CancellationToken::new();
    let feeds = start(config(vec![Source::Gcp(gcp)], None), &stop).expect("feeds");
    until(&feeds, "prices", |p| !p.is_empty()).await;
    let text = metrics_of(&feeds);
    let line = r#"hyperion_price_feed_failures_total{feed="gcp",reason="fault"} 1"#;
    assert!(text.contains(line), "{text}");
    let asked = server.asked.lock().expect("no panic").clone();
    assert!(asked[0].head.contains("authorization: bearer token-of-gcp"));
    assert!(asked.iter().all(|a| !a.line.contains("token-of-gcp")));
    stop.cancel();
}
