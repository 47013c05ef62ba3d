//! Wiring: from flags to a running agent.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hyperion_autonomy::Profile;
use hyperion_link::{ControlTarget, EnrolRequest, Identity, InCluster, LinkConfig};
use hyperion_proto::agent_v1::ReplicaRecord;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, HttpAddr, PeerAddr, ProfileName, Size};
use crate::identity::{self, IdentityFile, Kept, SecretError};
use crate::local::{self, LocalRequest, LocalSocket};
use crate::node::{NodeConfig, NodeFacts};
use crate::notice;
use crate::peers::{self, PeerEvent, PeerImages, PeersConfig, PeersError, PeersHandle};
use crate::runtime::Cri;
use crate::session::{self, Enrolment, PolicyShelf, SessionConfig, SiteConfig};
use crate::status::{Mode, Status};
use crate::store::Store;
use crate::supervisor::{self, Found, SupervisorConfig};
use crate::telemetry::{self, Sampler, Sensors};
use crate::update::Worker;
use crate::{http, reset, systemd};

/// Reports and events of the supervisor that may wait for the session.
const SUPERVISOR_EVENTS: usize = 256;
/// Requests of people at the site that may wait.
const LOCAL_REQUESTS: usize = 16;
/// File in the data directory that its agent holds.
pub(crate) const LOCK: &str = "agent.lock";
/// How long the parts may take to end.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Anything that would be the same after a restart: flags that do not fit, a data directory that
/// can't be written or is in use, a port that is taken, a token that was refused.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let Config {
        control,
        token: _,
        token_file: _,
        ca_fingerprint,
        cluster,
        cluster_token_file,
        data_dir,
        key_secret,
        containerd_socket,
        site,
        labels: _,
        telemetry_interval,
        http_addr,
        peer_addr: _,
        peers: _,
        no_mdns: _,
        profile,
        offline_buffer: Size(offline_buffer),
        throttle_celsius,
        local_socket: _,
        system_reserved,
        cloud_metadata,
        cloud_metadata_url,
        root,
        log_format: _,
    } = config.clone();
    let _lock = lock_data_dir(&data_dir)?;
    if reset::begun(&data_dir) {
        reset::finish(&data_dir, &containerd_socket).await?;
    }
    // After the reset: the secret of before goes before its mark is there, and may be read here no more.
    let (identity_file, kept) = IdentityFile::open(&data_dir, key_secret.as_deref())?;
    let (known, closed) = match kept {
        Kept::Nobody => (None, None),
        Kept::Node(identity) => (Some(identity), None),
        Kept::Closed(identity, why) => (Some(identity), Some(closed_key(&why))),
    };
    if let Some(known) = &known {
        fits(known, cluster.as_deref(), &data_dir)?;
    }
    let measures = cluster.is_some();
    let mut store = Store::open(&data_dir, known.is_some())?;
    store.set_ring_limit(offline_buffer);
    if known.is_none() {
        store.reset();
    }
    let status = Arc::new(Status::default());
    serve_http(http_addr, &status, &stop).await?;
    tokio::spawn(systemd::watchdog());

    let mut sensors = Sensors::new(&root);
    let look = sensors.first_look().await;
    let labels = config.label_map();
    let capabilities = telemetry::capabilities(&root, &data_dir, system_reserved, &labels, &look);
    let target = ControlTarget {
        addr: control,
        ca_fingerprint: pinned(ca_fingerprint, known.as_ref(), &data_dir)?,
    };
    let mut describe = EnrolRequest {
        token: String::new(),
        site,
        capabilities: capabilities.clone(),
        hostname: telemetry::hostname(&root),
        agent_version: crate::version().to_owned(),
        cluster: cluster.map(|cluster| InCluster {
            cluster,
            token_file: cluster_token_file,
        }),
    };
    let identity = match known {
        Some(identity) => identity,
        None => {
            if !measures {
                // Only now: a token file is often gone after the first start.
                let token = config.read_token().map_err(|e| anyhow!(e))?;
                describe.token = token.context(
                    "this node is not enrolled: --token or --token-file is needed (from `hyperion token create`)",
                )?;
            }
            match first_contact(&target, &describe, &identity_file, &stop).await? {
                Some(identity) => identity,
                None => return Ok(()),
            }
        }
    };
    describe.token = String::new();
    status.set_node(&identity.node_id);
    status.set_mode(Mode::Suspect, "not connected yet");
    info!(node = %identity.node_id, site = %identity.site, boot = store.boot(), measures, "agent starts");

    let cri = (!measures).then(|| Cri::new(&containerd_socket));
    let found = found(cri.as_ref(), &store, &identity.node_id).await;
    let shelf = PolicyShelf::default();
    let peers = match &cri {
        // Peers are to see its key.
        Some(cri) if closed.is_none() => {
            start_peers(&config, &identity, &store, cri, &shelf, &stop)?
        }
        _ => None,
    };
    let local = if measures {
        None
    } else {
        serve_local(config.local_socket.as_ref(), &stop)?
    };
    let (events, supervisor_events) = mpsc::channel(SUPERVISOR_EVENTS);
    let supervisor_stop = CancellationToken::new();
    let started = (!measures).then(|| {
        supervisor::start(
            SupervisorConfig {
                socket: containerd_socket,
                node_id: identity.node_id.clone(),
                log_dir: data_dir.join("logs"),
            },
            events,
            supervisor_stop.clone(),
        )
    });
    let (workloads, supervisor) = started.unzip();
    let holding = workloads.clone().zip(cri.clone());
    let holders = peers
        .as_ref()
        .zip(holding)
        .map(|((handle, _), (workloads, cri))| {
            let handle = handle.clone();
            let folder = data_dir.join("images");
            let give: Box<dyn FnOnce(session::Holders) + Send> = Box::new(move |holders| {
                workloads.set_image_source(Arc::new(PeerImages::new(handle, cri, folder, holders)));
            });
            give
        });
    systemd::ready();
    let node = format!("node {}", identity.node_id);
    if let Some(why) = &closed {
        systemd::status(&format!("{node}: {why}"));
        tokio::spawn(until_key_opens(data_dir.clone(), key_secret, stop.clone()));
    } else {
        systemd::status(&node);
    }
    let mut link = LinkConfig::new(target);
    link.describe = describe;
    link.kept_out = closed;
    if profile == ProfileName::Fast {
        // A third of the usual: as much sooner as the rest of the site's times.
        link.silence /= 3;
    }
    let session = session::run(
        SessionConfig {
            link,
            node: NodeConfig {
                ca_der: identity.chain_der.get(1).cloned().unwrap_or_default(),
                seed: rand::random(),
                profile: match profile {
                    ProfileName::Default => Profile::standard(),
                    ProfileName::Fast => Profile::fast(),
                },
                throttle_celsius: (throttle_celsius > 0).then_some(f32::from(throttle_celsius)),
                running: found.running,
                exits: found.exits,
                ..NodeConfig::new(NodeFacts {
                    node_id: identity.node_id.clone(),
                    boot_id: boot_id(),
                    capabilities,
                    telemetry_interval_ms: u32::try_from(telemetry_interval.as_millis())
                        .unwrap_or(u32::MAX),
                })
            },
            identity,
            identity_file,
            store,
            workloads,
            sampler: Sampler::new(&root, &data_dir),
            sensors,
            telemetry_interval,
            status,
            updates: Worker::new(&root, &data_dir),
            notices: notice::start(cloud_metadata, cloud_metadata_url, &root, &stop),
            site: SiteConfig {
                peers,
                shelf,
                holders,
                local,
                images: cri,
            },
        },
        supervisor_events,
        stop.clone(),
    );
    drain(session, &stop).await;
    supervisor_stop.cancel();
    if let Some(supervisor) = supervisor
        && tokio::time::timeout(DRAIN, supervisor).await.is_err()
    {
        warn!("the supervisor did not end in {DRAIN:?}");
    }
    Ok(())
}

/// Where peers reach the node unless told otherwise.
const PEER_ADDR: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 7445);
/// How long a start waits for containerd to say what goes on already.
const LOOK: Duration = Duration::from_secs(2);

/// Opens the peer port.
fn start_peers(
    config: &Config,
    identity: &Identity,
    store: &Store,
    cri: &Cri,
    shelf: &PolicyShelf,
    stop: &CancellationToken,
) -> anyhow::Result<Option<(PeersHandle, mpsc::Receiver<PeerEvent>)>> {
    let listen = match config.peer_addr {
        Some(PeerAddr::Off) => return Ok(None),
        Some(PeerAddr::At(address)) => address,
        None => PEER_ADDR,
    };
    let revoked = store.site().map(|info| info.revoked.clone());
    let wanted = PeersConfig {
        identity: identity.clone(),
        listen,
        static_peers: config.peers.clone(),
        mdns: !config.no_mdns,
        revoked: revoked.unwrap_or_default(),
        control: config.control.clone(),
        images: Some(cri.clone()),
        policies: shelf.files(),
    };
    let started = match peers::start(wanted.clone(), stop.clone()) {
        // Another agent on this machine has it: peers are told which one it is instead.
        Err(PeersError::Bind { address, source }) if config.peer_addr.is_none() => {
            warn!(%address, error = %source, "another port is taken for peers");
            let listen = SocketAddr::new(listen.ip(), 0);
            peers::start(PeersConfig { listen, ..wanted }, stop.clone())
        }
        started => started,
    };
    let (handle, events) = started.map_err(|e| anyhow!("--peer-addr: {e}"))?;
    if let Some(address) = handle.local_addr() {
        info!(%address, "listening for peers");
    }
    Ok(Some((handle, events)))
}

/// Opens the socket for people at the site. Where none was asked for by name, a node goes on
/// without: there may be two on one machine, or no `/run`.
fn serve_local(
    socket: Option<&LocalSocket>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<mpsc::Receiver<LocalRequest>>> {
    let default = Path::new(local::DEFAULT_SOCKET);
    let bound = match socket {
        Some(LocalSocket::Off) => return Ok(None),
        Some(LocalSocket::At(path)) => {
            local::bind(path).map_err(|e| anyhow!("--local-socket: {e}"))?
        }
        None => match local::bind(default) {
            Ok(bound) => bound,
            Err(e) => {
                warn!(error = %e, "`hyperion site` can't be used on this node");
                return Ok(None);
            }
        },
    };
    let (requests, receiver) = mpsc::channel(LOCAL_REQUESTS);
    tokio::spawn(local::serve(bound, requests, stop.clone()));
    Ok(Some(receiver))
}

/// What became of containers while no agent was there. Asked for only where it matters: an exclusive
/// replica is held back until nobody else can run it, unless it never stopped, or has ended.
async fn found(cri: Option<&Cri>, store: &Store, node_id: &str) -> Found {
    let Some(cri) = cri else {
        return Found::default();
    };
    let exclusive = |record: &ReplicaRecord| record.intent.as_ref().is_some_and(|i| i.exclusive);
    if !store.records().iter().any(exclusive) {
        return Found::default();
    }
    match tokio::time::timeout(LOOK, supervisor::find(cri, node_id)).await {
        Ok(Ok(found)) => found,
        Ok(Err(e)) => {
            warn!(error = %e, "what runs already is not known");
            Found::default()
        }
        Err(_) => Found::default(),
    }
}

async fn serve_http(
    address: HttpAddr,
    status: &Arc<Status>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    if let HttpAddr::At(address) = address {
        let listener = http::bind(address).await.map_err(|e| anyhow!(e))?;
        info!(address = %listener.local_addr()?, "serving /metrics and /healthz");
        tokio::spawn(http::serve(listener, status.clone(), stop.clone()));
    }
    Ok(())
}

/// Enrols; none where the agent was told to stop before.
async fn first_contact(
    target: &ControlTarget,
    describe: &EnrolRequest,
    file: &IdentityFile,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Identity>> {
    // To wait for a control plane is what this agent is to do now: not a failed start.
    systemd::ready();
    systemd::status("enrolling");
    let enrolment = Enrolment {
        target: target.clone(),
        request: describe.clone(),
        file: file.clone(),
    };
    Ok(session::enrol(enrolment, stop).await?)
}

/// What is to be done about a key that does not open.
fn closed_key(why: &SecretError) -> String {
    format!(
        "the key of this node can't be opened: {why}. It is tried again at each start of the device; where its TPM was exchanged or cleared, a factory reset with a new token makes it another node"
    )
}

/// How often a key that does not open is tried again.
const TRY_KEY: Duration = Duration::from_secs(30);

/// Ends the agent once the key of its node can be opened: it starts again as itself.
async fn until_key_opens(data_dir: PathBuf, key_secret: Option<PathBuf>, stop: CancellationToken) {
    loop {
        tokio::time::sleep(TRY_KEY).await;
        if let Ok((_, Kept::Node(_))) = IdentityFile::open(&data_dir, key_secret.as_deref()) {
            info!("the key of this node can be opened now: the agent starts again");
            stop.cancel();
            return;
        }
    }
}

/// Runs the session until it ends; after `stop` it has a deadline.
async fn drain(session: impl Future<Output = ()>, stop: &CancellationToken) {
    tokio::pin!(session);
    tokio::select! {
        () = &mut session => {}
        () = stop.cancelled() => {
            info!("stopping; containers keep running");
            if tokio::time::timeout(DRAIN, &mut session).await.is_err() {
                warn!("the session did not end in {DRAIN:?}");
            }
        }
    }
}

fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let cancelled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        systemd::stopping();
        cancelled.cancel();
    });
    Ok(stop)
}

/// Makes the data directory, for its owner's eyes only, and holds it; two agents on one store would
/// undo each other.
pub(crate) fn lock_data_dir(dir: &Path) -> anyhow::Result<File> {
    let name = dir.display();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("--data-dir {name}"))?;
    let path = dir.join(LOCK);
    let written = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = match written {
        // A flash disk that wears out turns read-only; the store goes on in memory then.
        Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => File::open(&path),
        written => written,
    }
    .with_context(|| format!("--data-dir {name}: {} can't be written", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("--data-dir {name}: in use by another agent")
        }
        Err(TryLockError::Error(e)) => {
            Err(e).with_context(|| format!("--data-dir {name}: {}", path.display()))
        }
    }
}

/// An identity is of a node of the fleet, or of a cluster's: one does not become the other, and a disk
/// that was copied is no proof.
fn fits(identity: &Identity, cluster: Option<&str>, data_dir: &Path) -> anyhow::Result<()> {
    let held = identity.node_id.split_once('.').map(|(of, _)| of);
    if held == cluster {
        return Ok(());
    }
    let file = data_dir.join(identity::FILE);
    let (node, file) = (&identity.node_id, file.display());
    match cluster {
        Some(cluster) => bail!(
            "--cluster {cluster}: {file} is the identity of node {node}, which is none of that cluster; remove it"
        ),
        None => bail!(
            "{file} is the identity of node {node} of a cluster, which this agent is only to measure: --cluster is needed"
        ),
    }
}

/// Which CA to trust: the one that enrolled this node, or the one that is to.
fn pinned(
    flag: Option<String>,
    identity: Option<&Identity>,
    data_dir: &Path,
) -> anyhow::Result<String> {
    let known = identity.and_then(Identity::ca_fingerprint);
    match (flag, known) {
        (Some(flag), Some(known)) if flag != known => bail!(
            "--ca-fingerprint {flag} is not that of the CA that enrolled this node, {known} in {}; to move the node to another fleet, remove that file",
            data_dir.join(identity::FILE).display()
        ),
        (_, Some(known)) => Ok(known),
        (Some(flag), None) => Ok(flag),
        (None, None) => bail!(
            "this node is not enrolled: --ca-fingerprint is needed (printed by `hyperion token create`)"
        ),
    }
}

fn boot_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_identity_of_another_kind_of_node_is_refused_by_name() {
        let identity = |node: &str| Identity {
            node_id: node.to_owned(),
            site: String::new(),
            key_der: Vec::new(),
            chain_der: Vec::new(),
        };
        let dir = Path::new("/var/lib/hyperion");
        let says =
            |node: &str, cluster| fits(&identity(node), cluster, dir).map_err(|e| e.to_string());
        assert_eq!(says("lab-1", None), Ok(()));
        assert_eq!(says("east.ip-10-0-0-1.ec2.internal", Some("east")), Ok(()));
        for (node, cluster, words) in [
            ("lab-1", Some("east"), "--cluster east"),
            ("west.n1", Some("east"), "none of that cluster"),
            ("east.n1", None, "--cluster is needed"),
        ] {
            let error = says(node, cluster).unwrap_err();
            assert!(error.contains(words) && error.contains(node), "{error}");
            assert!(error.contains("identity.json"), "{error}");
        }
    }

    #[test]
    fn the_data_directory_is_made_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("hyperion/agent");
        let _lock = lock_data_dir(&data).unwrap();
        let mode = data.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }
}
