//! The schedule: each feed in a task of its own, so that one that is slow or broken holds up none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyperion_placement::model::Provider;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::aws::Aws;
use super::azure::{self, Azure};
use super::book::{Book, Prices, Taken};
use super::cache::Cache;
use super::file::File;
use super::gcp::{self, Gcp};
use super::http::{Http, Limits};
use super::{Failure, Feed, Fetched, Reason};

/// How often a file is read: people who change one wait for it.
const FILE_REFRESH: Duration = Duration::from_secs(5);
/// The first pause after a failure; it doubles, up to the usual one.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
/// Time for all requests of a feed: twelve regions of AWS take three minutes.
const WHOLE: Duration = Duration::from_secs(20 * 60);
/// Prices are not stale before this, however often they are refreshed.
const LEAST_STALE: Duration = Duration::from_secs(3600);

/// A feed as people ask for it: `aws`, `gcp`, `azure` or `file:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// AWS, with the standard chain of credentials.
    Aws,
    /// GCP, with the key in `GOOGLE_API_KEY` or application default credentials.
    Gcp,
    /// Azure.
    Azure,
    /// A file.
    File(PathBuf),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "aws" => Ok(Self::Aws),
            "gcp" => Ok(Self::Gcp),
            "azure" => Ok(Self::Azure),
            _ => match text.strip_prefix("file:") {
                Some(path) if !path.is_empty() => Ok(Self::File(path.into())),
                _ => Err(format!("{text:?} is none of aws, gcp, azure, file:PATH")),
            },
        }
    }
}

/// Who is asked.
#[derive(Debug, Clone)]
pub enum Source {
    /// AWS.
    Aws(Aws),
    /// GCP.
    Gcp(Gcp),
    /// Azure.
    Azure(Azure),
    /// A file.
    File(File),
}

impl Source {
    /// What was asked for, at the usual addresses. `regions` are those to ask for; where none of a
    /// provider is among them, those that latencies are known of.
    ///
    /// # Errors
    /// The machine trusts no certificates.
    pub fn standard(wanted: &Wanted, regions: &[(Provider, String)]) -> std::io::Result<Self> {
        let of = |provider| regions_of(provider, regions);
        let http = || Http::new(Limits::default());
        Ok(match wanted {
            Wanted::Aws => Self::Aws(Aws::new(http()?, of(Provider::Aws))),
            Wanted::Gcp => {
                let access = match std::env::var("GOOGLE_API_KEY") {
                    Ok(key) if !key.is_empty() => gcp::Access::Key(key),
                    _ => gcp::Access::Default(Arc::default()),
                };
                Self::Gcp(Gcp::new(http()?, gcp::ENDPOINT, access, of(Provider::Gcp)))
            }
            Wanted::Azure => Self::Azure(Azure::new(http()?, azure::ENDPOINT, of(Provider::Azure))),
            Wanted::File(path) => Self::File(File::new(path.clone())),
        })
    }

    /// Its name.
    #[must_use]
    pub const fn feed(&self) -> Feed {
        match self {
            Self::Aws(_) => Feed::Aws,
            Self::Gcp(_) => Feed::Gcp,
            Self::Azure(_) => Feed::Azure,
            Self::File(_) => Feed::File,
        }
    }

    /// Asks. Failures are in what comes back.
    pub async fn fetch(&self, now: Timestamp) -> Fetched {
        let whole = async {
            match self {
                Self::Aws(aws) => aws.fetch(now).await,
                Self::Gcp(gcp) => gcp.fetch(now).await,
                Self::Azure(azure) => azure.fetch(now).await,
                Self::File(file) => {
                    let file = file.clone();
                    let read = tokio::task::spawn_blocking(move || file.fetch(now));
                    read.await
                        .unwrap_or_else(|e| failed(Reason::Fault, "price file", e))
                }
            }
        };
        tokio::time::timeout(WHOLE, whole)
            .await
            .unwrap_or_else(|_| {
                let text = format!("not done within {} s", WHOLE.as_secs());
                failed(Reason::Timeout, &self.feed().to_string(), text)
            })
    }
}

fn failed(reason: Reason, what: &str, text: impl std::fmt::Display) -> Fetched {
    Fetched {
        failures: vec![Failure::new(reason, what, text)],
        ..Fetched::default()
    }
}

/// The regions of a provider that were asked for, or those that latencies are known of.
#[must_use]
pub fn regions_of(provider: Provider, asked: &[(Provider, String)]) -> Vec<String> {
    let mut regions: BTreeSet<String> = asked
        .iter()
        .filter(|(p, _)| *p == provider)
        .map(|(_, region)| region.clone())
        .collect();
    if regions.is_empty() {
        let places = crate::rtt::RTT_MS.iter().flat_map(|(a, b, _)| [a, b]);
        let prefix = format!("{provider}:");
        regions = places
            .filter_map(|place| place.strip_prefix(&prefix))
            .map(str::to_owned)
            .collect();
    }
    regions.into_iter().collect()
}

/// When a feed is asked again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    refresh: Duration,
    failures: u32,
}

impl Pace {
    /// As often as this while all is well.
    #[must_use]
    pub const fn new(refresh: Duration) -> Self {
        Self {
            refresh,
            failures: 0,
        }
    }

    /// The pause after a fetch. `roll`, 0 to 1, spreads control planes and feeds over time;
    /// `retry_after` is what the other side asks for at least.
    pub fn pause(&mut self, failed: bool, retry_after: Option<Duration>, roll: f64) -> Duration {
        let roll = roll.clamp(0.0, 1.0);
        if !failed {
            self.failures = 0;
            return self.refresh.mul_f64(0.9 + 0.2 * roll);
        }
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        let pause = doubled.min(self.refresh).mul_f64(0.5 + 0.5 * roll);
        let least = retry_after.unwrap_or_default().mul_f64(1.0 + 0.1 * roll);
        pause.max(least)
    }
}

/// What feeds there are, and how often they are asked.
#[derive(Debug)]
pub struct FeedConfig {
    /// Who is asked, each at most once.
    pub sources: Vec<Source>,
    /// How often.
    pub refresh: Duration,
    /// Folder of the cache; none for no cache.
    pub cache_dir: Option<PathBuf>,
}

/// Running feeds.
#[derive(Debug, Clone)]
pub struct Feeds {
    book: Arc<Mutex<Book>>,
    prices: watch::Receiver<Arc<Prices>>,
}

impl Feeds {
    /// The prices, as they change.
    #[must_use]
    pub fn prices(&self) -> watch::Receiver<Arc<Prices>> {
        self.prices.clone()
    }

    /// What is known of each feed.
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }
}

/// A book is whole between any two calls: a panic elsewhere while it was locked harms nothing.
fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts to ask, until `stop`. What the cache holds is there at once.
///
/// # Errors
/// The folder of the cache can't be made.
pub fn start(config: FeedConfig, stop: &CancellationToken) -> std::io::Result<Feeds> {
    let FeedConfig {
        sources,
        refresh,
        cache_dir,
    } = config;
    let cache = cache_dir.as_deref().map(Cache::open).transpose()?;
    let now = Timestamp::now();
    let stale_after = refresh.saturating_mul(3).max(LEAST_STALE);
    let mut book = Book::new(sources.iter().map(Source::feed), stale_after);
    for feed in sources.iter().map(Source::feed) {
        match cache.as_ref().map(|cache| cache.load(feed)) {
            None => {}
            Some(Ok(offers)) => book.restore(feed, offers, now),
            Some(Err(damaged)) => warn!(%feed, "cache of prices: {damaged}"),
        }
    }
    let (sender, prices) = watch::channel(Arc::new(book.prices(now)));
    let sender = Arc::new(sender);
    let book = Arc::new(Mutex::new(book));
    for source in sources {
        let task = Task {
            book: book.clone(),
            cache: cache.clone(),
            prices: sender.clone(),
            said: BTreeSet::new(),
            source,
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task.run(refresh) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    Ok(Feeds { book, prices })
}

struct Task {
    source: Source,
    book: Arc<Mutex<Book>>,
    cache: Option<Cache>,
    prices: Arc<watch::Sender<Arc<Prices>>>,
    /// What was said in the log of the last fetch, so that it is said once.
    said: BTreeSet<String>,
}

impl Task {
    async fn run(mut self, refresh: Duration) {
        let refresh = match self.source.feed() {
            Feed::File => refresh.min(FILE_REFRESH),
            Feed::Aws | Feed::Gcp | Feed::Azure => refresh,
        };
        let mut pace = Pace::new(refresh);
        loop {
            let (failed, retry_after) = self.refresh().await;
            let pause = pace.pause(failed, retry_after, rand::random());
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks once. True where something failed, and how long to wait at least.
    async fn refresh(&mut self) -> (bool, Option<Duration>) {
        let feed = self.source.feed();
        let now = Timestamp::now();
        let source = self.source.clone();
        // In a task of its own: a panic in a library costs a fetch, not the feed.
        let fetch = tokio::spawn(async move { source.fetch(now).await });
        let fetched = AbortOnDropHandle::new(fetch)
            .await
            .unwrap_or_else(|e| failed(Reason::Fault, &feed.to_string(), e));
        let failed = !fetched.failures.is_empty();
        let retry_after = fetched.failures.iter().filter_map(|f| f.retry_after).max();
        let lines = lines(&fetched);
        // A file needs no other file to remember it.
        let keeps = !fetched.offers.is_empty() && feed != Feed::File;
        let cache = self.cache.clone().filter(|_| keeps);
        let (taken, offers) = {
            let mut book = lock(&self.book);
            let taken = book.take(feed, fetched, now);
            self.prices.send_replace(Arc::new(book.prices(now)));
            let offers = cache.as_ref().map(|_| book.offers(feed));
            (taken, offers)
        };
        self.say(feed, &taken, lines, failed);
        if let Some((cache, offers)) = cache.zip(offers) {
            let stored = tokio::task::spawn_blocking(move || cache.store(feed, &offers)).await;
            let error = match stored {
                Ok(Ok(())) => None,
                Ok(Err(e)) => Some(e.to_string()),
                Err(e) => Some(e.to_string()),
            };
            if let Some(error) = error {
                warn!(%feed, error, "prices can't be kept on disk");
            }
        }
        (failed, retry_after)
    }

    fn say(&mut self, feed: Feed, taken: &Taken, lines: BTreeSet<String>, failed: bool) {
        for line in lines.difference(&self.said) {
            warn!(%feed, "{line}");
        }
        for held in &taken.held_back {
            warn!(
                %feed,
                offer = %held.key,
                price = held.price_per_hour,
                known = held.known,
                "a price is held back until it is seen again: it is far from what is known"
            );
        }
        if taken.changed > 0 || (!failed && !self.said.is_empty() && lines.is_empty()) {
            info!(%feed, changed = taken.changed, forgotten = taken.forgotten, "prices");
        }
        self.said = lines;
    }
}

/// What people should know of a fetch: failures, and rows that should not be there, by an example.
fn lines(fetched: &Fetched) -> BTreeSet<String> {
    let failures = fetched
        .failures
        .iter()
        .map(|f| format!("{}: {f}", f.reason));
    let left: BTreeMap<_, _> = fetched.left.iter().filter(|(l, _)| l.is_fault()).collect();
    let faults = left.keys().filter_map(|left| {
        let example = fetched.examples.get(left)?;
        Some(format!("rows left out ({left}), such as {example}"))
    });
    failures.chain(faults).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES: Duration = Duration::from_secs(1800);

    #[test]
    fn pauses_double_up_to_the_usual_one_and_begin_anew() {
        let mut pace = Pace::new(MINUTES);
        let seconds = |d: Duration| d.as_secs();
        assert_eq!(seconds(pace.pause(false, None, 0.5)), 1800);
        let steps: Vec<u64> = (0..9)
            .map(|_| seconds(pace.pause(true, None, 1.0)))
            .collect();
        assert_eq!(steps, [15, 30, 60, 120, 240, 480, 960, 1800, 1800]);
        for _ in 0..100 {
            assert_eq!(seconds(pace.pause(true, None, 1.0)), 1800);
        }
        assert_eq!(seconds(pace.pause(false, None, 0.0)), 1620);
        assert_eq!(seconds(pace.pause(true, None, 0.0)), 7);
    }

    #[test]
    fn the_other_side_is_left_alone_as_long_as_it_asks() {
        let mut pace = Pace::new(MINUTES);
        let asked = Some(Duration::from_secs(300));
        assert_eq!(pace.pause(true, asked, 0.0), Duration::from_secs(300));
        assert_eq!(pace.pause(true, asked, 1.0), Duration::from_secs(330));
        assert_eq!(pace.pause(true, Some(Duration::ZERO), 1.0).as_secs(), 60);
    }

    #[test]
    fn feeds_are_asked_for_by_name() {
        assert_eq!("aws".parse(), Ok(Wanted::Aws));
        assert_eq!("file:/a:b".parse(), Ok(Wanted::File("/a:b".into())));
        for bad in ["", "AWS", "file:", "file", "edge", "aws,gcp"] {
            assert!(bad.parse::<Wanted>().is_err(), "{bad}");
        }
    }

    #[test]
    fn without_regions_those_with_latencies_are_asked_for() {
        let asked = [(Provider::Aws, "ap-east-1".to_owned())];
        assert_eq!(regions_of(Provider::Aws, &asked), ["ap-east-1"]);
        let azure = regions_of(Provider::Azure, &asked);
        assert_eq!(azure, ["eastus", "northeurope", "westeurope"]);
    }
}
