//! The whole program: start, lead or stand by, stop.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyperion_api::NAMESPACE;
use hyperion_embedded::{Embedded, EmbeddedConfig};
use hyperion_gateway::GatewayConfig;
use hyperion_providers::feeds::{self, FeedConfig, Feeds, run::Source};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::{Args, LogFormat};
use crate::clusters::plugins::Plugins;
use crate::decider::source::Asked;
use crate::directory::{Directory, Role};
use crate::endpoint::Pod;
use crate::experience::Recorder;
use crate::lead::{self, Elsewhere, Leader};
use crate::lease::Contender;
use crate::metrics::Metrics;
use crate::{client, http, install, measured};

/// Time for the whole shutdown.
const SHUTDOWN: Duration = Duration::from_secs(10);
/// How long a process that could not lead waits before it tries again.
const LEAD_RETRY: Duration = Duration::from_secs(1);
/// How long a control plane that has led tries to lead again before it ends.
const LEAD_PATIENCE: Duration = Duration::from_mins(1);

/// Runs until `stop`.
///
/// # Errors
/// What keeps it from starting: a port that is taken, a kubeconfig that leads nowhere.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    let Args {
        embedded,
        kubeconfig,
        install,
        publish_ip,
        data_dir,
        api_addr,
        link_addr,
        link_advertise,
        kubeconfig_out,
        http_addr,
        fleet,
        certificate_ttl,
        replace_after,
        policy,
        shadow,
        explore,
        reconsider,
        price_feed,
        price_refresh,
        price_region,
        price_cache,
        prometheus,
        prometheus_token,
        prometheus_queries,
        cluster_profile_providers,
        log_format: _,
    } = args;
    let plugins = cluster_profile_providers.map(|file| Plugins::read(&file));
    let plugins = Arc::new(plugins.transpose()?.unwrap_or_default());
    let sources = price_feed
        .iter()
        .map(|wanted| Source::standard(wanted, &price_region));
    let sources: Vec<Source> = sources.collect::<Result<_, _>>().context("--price-feed")?;
    if install && publish_ip.is_some() {
        bail!("--publish-ip needs --install=false: the Service that is installed has a selector");
    }
    let pod = publish_ip.map(Pod::from_env).transpose()?;
    let identity = identity(data_dir.as_deref())?;
    let listener = http::bind(http_addr).await?;
    let http_addr = listener.local_addr()?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let recorder = Recorder::start(
        data_dir.as_deref(),
        metrics.experience_kept.clone(),
        metrics.experience_lost.clone(),
    );
    let prices = prices(
        FeedConfig {
            sources,
            refresh: price_refresh,
            cache_dir: price_cache.or_else(|| Some(data_dir.as_ref()?.join("prices"))),
        },
        &stop,
    )?;
    if let Some(prices) = &prices {
        feeds::metrics::register(prices, &mut registry);
    }
    let measured = prometheus.map(|address| {
        measured::Source::new(
            &address,
            prometheus_token.as_deref(),
            prometheus_queries.as_deref(),
        )
    });
    let measured = measured.transpose()?.map(|source| {
        let counts = measured::Metrics::register(&mut registry);
        let values = source.start(counts.clone(), stop.clone());
        Elsewhere { values, counts }
    });
    let directory = Arc::new(Directory::default());
    let serving = CancellationToken::new();
    let server = tokio::spawn(http::serve(
        listener,
        directory.clone(),
        Arc::new(registry),
        prices.clone(),
        serving.clone(),
    ));
    let api = if embedded {
        let data_dir = data_dir.context("--embedded needs --data-dir")?;
        Some(start_api(data_dir, api_addr, kubeconfig_out, http_addr).await?)
    } else {
        None
    };
    let client = client::connect(api.as_ref(), kubeconfig.as_deref(), &metrics.requests).await?;
    let control = Control {
        client,
        identity,
        pod,
        http_addr,
        directory,
        metrics,
        link_addr,
        link_advertise,
        fleet,
        certificate_ttl,
        replace_after,
        policy: policy.unwrap_or_default(),
        shadow,
        explore,
        reconsider: (!reconsider.is_zero()).then_some(reconsider),
        recorder,
        plugins,
        prices,
        measured,
    };
    // What leads is not cut off: it ends by itself, and frees its ports.
    let ready = tokio::select! {
        ready = control.prepare(install) => ready.map(|()| true),
        () = stop.cancelled() => Ok(false),
    };
    let result = match ready {
        Ok(true) => control.contend(&stop).await,
        Ok(false) => Ok(()),
        Err(e) => Err(e),
    };
    control.directory.step_down(Role::Stopping);
    if let Some(api) = api
        && tokio::time::timeout(SHUTDOWN, api.shutdown())
            .await
            .is_err()
    {
        warn!("the embedded API did not stop in time");
    }
    serving.cancel();
    let _ = server.await;
    result
}

/// Starts the feeds; none where none were asked for.
fn prices(config: FeedConfig, stop: &CancellationToken) -> anyhow::Result<Option<Feeds>> {
    let names: Vec<_> = config.sources.iter().map(Source::feed).collect();
    for (n, name) in names.iter().enumerate() {
        if names.iter().take(n).any(|before| before == name) {
            bail!("--price-feed: {name} is there twice");
        }
    }
    if names.is_empty() {
        return Ok(None);
    }
    let dir = config.cache_dir.clone().unwrap_or_default();
    let feeds =
        feeds::start(config, stop).with_context(|| format!("cache of prices {}", dir.display()))?;
    Ok(Some(feeds))
}

async fn start_api(
    data_dir: PathBuf,
    api_addr: SocketAddr,
    kubeconfig_out: Option<PathBuf>,
    http_addr: SocketAddr,
) -> anyhow::Result<Embedded> {
    let proxied = (NAMESPACE.to_owned(), "hyperion-control:http".to_owned());
    let config = EmbeddedConfig {
        data_dir,
        api_addr,
        kubeconfig_out,
        service_proxies: BTreeMap::from([(proxied, http_addr)]),
    };
    // Its sentences carry their causes already.
    let api = hyperion_embedded::start(config)
        .await
        .map_err(|e| anyhow::anyhow!("embedded API: {e}"))?;
    info!(address = %api.local_addr(), "the embedded API serves");
    Ok(api)
}

/// This process, across restarts: two control planes of one host have data folders of their own.
fn identity(data_dir: Option<&Path>) -> anyhow::Result<String> {
    let host = std::env::var("POD_NAME")
        .ok()
        .filter(|name| !name.is_empty());
    let host = host.unwrap_or_else(|| {
        let uname = rustix::system::uname();
        uname.nodename().to_string_lossy().into_owned()
    });
    let random = || format!("{:08x}", rand::random::<u32>());
    let Some(dir) = data_dir else {
        return Ok(format!("{host}-{}", random()));
    };
    std::fs::create_dir_all(dir).with_context(|| format!("--data-dir {}", dir.display()))?;
    let file = dir.join("control-id");
    let id = match std::fs::read_to_string(&file) {
        Ok(id) if id.trim().len() == 8 => id.trim().to_owned(),
        _ => {
            let id = random();
            std::fs::write(&file, &id).with_context(|| file.display().to_string())?;
            id
        }
    };
    Ok(format!("{host}-{id}"))
}

struct Control {
    client: kube::Client,
    identity: String,
    /// Where Services are told who leads.
    pod: Option<Pod>,
    http_addr: SocketAddr,
    directory: Arc<Directory>,
    metrics: Metrics,
    link_addr: SocketAddr,
    link_advertise: Option<String>,
    fleet: String,
    certificate_ttl: Duration,
    replace_after: Duration,
    policy: Asked,
    shadow: bool,
    explore: f64,
    reconsider: Option<Duration>,
    recorder: Recorder,
    plugins: Arc<Plugins>,
    prices: Option<Feeds>,
    measured: Option<Elsewhere>,
}

impl Control {
    async fn prepare(&self, install: bool) -> anyhow::Result<()> {
        if install {
            install::install(&self.client, self.http_addr.port()).await
        } else {
            install::installed(&self.client).await
        }
    }

    /// Leads whenever it holds the lease. What keeps it from leading the first time is an error of
    /// the set-up and ends it. Later it tries again, and lets others lead meanwhile: its own port
    /// may be taken until the connections of before have drained, the API may be busy. Where that does
    /// not end, it ends, for whoever runs it to start it anew.
    async fn contend(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut contender = Contender::new(&self.client, self.identity.clone());
        let mut led = false;
        // First and last failure in a row.
        let mut failing: Option<(Instant, Instant)> = None;
        loop {
            self.directory.step_down(Role::Standby);
            if !contender.acquire(stop).await {
                return Ok(());
            }
            let leading = stop.child_token();
            let mut lead = std::pin::pin!(self.lead(leading.clone()));
            let result = tokio::select! {
                () = contender.hold(stop) => {
                    leading.cancel();
                    lead.await
                }
                result = &mut lead => result,
            };
            self.metrics.leader.set(0);
            if result.is_err() || stop.is_cancelled() {
                contender.release().await;
            }
            match result {
                Err(e) if !led => return Err(e),
                Err(e) => {
                    let now = Instant::now();
                    // Where somebody else led meanwhile, it is not the same row.
                    let (since, _) = failing
                        .filter(|(_, last)| now - *last < LEAD_PATIENCE / 4)
                        .unwrap_or((now, now));
                    if now - since > LEAD_PATIENCE {
                        let text = format!("cannot lead again for {} s", (now - since).as_secs());
                        return Err(e.context(text));
                    }
                    failing = Some((since, now));
                    warn!(error = format!("{e:#}"), "cannot lead; trying again");
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(LEAD_RETRY) => {}
                    }
                }
                Ok(()) => (led, failing) = (true, None),
            }
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }

    async fn lead(&self, leading: CancellationToken) -> anyhow::Result<()> {
        let mut counters = Registry::default();
        let config = GatewayConfig {
            link_addr: self.link_addr,
            link_advertise: self.link_advertise.clone(),
            client: self.client.clone(),
            fleet: self.fleet.clone(),
            certificate_ttl: self.certificate_ttl,
        };
        let (gateway, agents) = hyperion_gateway::start(config, &mut counters).await?;
        info!(address = %gateway.local_addr(), ca = gateway.ca_fingerprint(), identity = self.identity, "leading: agents are served");
        self.directory.lead(gateway.clone(), counters);
        self.metrics.leader.set(1);
        if let Some(pod) = self.pod.clone() {
            let (client, link) = (self.client.clone(), gateway.local_addr());
            tokio::spawn(pod.publish(client, self.http_addr, link, leading.clone()));
        }
        let leader = Leader {
            client: self.client.clone(),
            gateway: gateway.clone(),
            directory: self.directory.clone(),
            metrics: self.metrics.clone(),
            replace_after: self.replace_after,
            identity: self.identity.clone(),
            policy: self.policy.clone(),
            shadow: self.shadow,
            explore: self.explore,
            reconsider: self.reconsider,
            recorder: self.recorder.clone(),
            plugins: self.plugins.clone(),
            prices: self.prices.as_ref().map(Feeds::prices),
            measured: self.measured.clone(),
        };
        lead::run(leader, agents, leading).await;
        if tokio::time::timeout(SHUTDOWN, gateway.shutdown())
            .await
            .is_err()
        {
            warn!("the gateway did not stop in time");
        }
        Ok(())
    }
}

/// Sets up logging to standard error. `RUST_LOG` chooses the level.
///
/// # Errors
/// `RUST_LOG` can't be read, or logging is set up already.
pub fn logging(format: LogFormat) -> anyhow::Result<()> {
    use tracing_subscriber::EnvFilter;
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) => EnvFilter::try_new(&text).with_context(|| format!("RUST_LOG {text:?}"))?,
        Err(_) => EnvFilter::new("info,kube_runtime=warn,kube_client=warn,h3=warn,quinn=warn"),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if let Err(e) = set {
        bail!("logging: {e}");
    }
    Ok(())
}

/// Cancelled at SIGTERM or SIGINT.
///
/// # Errors
/// Signals can't be caught.
pub fn signals() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "stopping");
        token.cancel();
    });
    Ok(stop)
}
