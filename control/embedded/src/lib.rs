//! A Kubernetes API for one machine, from one redb file.
//!
//! It serves what an unmodified `kubectl` and the clients of an operator use: discovery, OpenAPI,
//! create/get/list/watch/update/patch/delete with server-side apply, tables, finalizers and owner
//! references, for a few core kinds and for custom resources, whose definitions are installed
//! through the API as on any cluster.
//!
//! The way of a request: [`server`] (TLS, token, limits) → [`route`] (path) → [`handlers`] (one
//! module per verb) → [`admission`] (shape, defaults, validation) and [`apply`] (who owns which
//! field) → [`store`]. One thread writes the store, in groups, one fsync each; reads and watches
//! are served from memory. [`gc`] is one task that cleans up after deletions.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

mod admission;
mod api;
mod apply;
mod builtin;
mod core_rules;
mod crd;
mod discovery;
mod files;
mod gc;
mod handlers;
mod kubeconfig;
mod names;
mod negotiate;
mod object;
mod openapi;
mod patch;
mod path;
mod proto;
mod proxy;
mod query;
mod resource;
mod route;
mod schema;
mod selector;
mod server;
mod status;
mod store;
mod table;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::api::Api;
pub use crate::store::DiskError;
use crate::store::{Change, Expect, Store, WriteError, Writer};
pub use crate::tls::IdentityError;

/// Namespaces that are there from the start.
const NAMESPACES: [&str; 3] = ["default", "kube-system", "hyperion-system"];
/// Open requests get this long at shutdown.
const DRAIN: Duration = Duration::from_secs(3);

/// How to run the API.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// Folder of the store, made when missing.
    pub data_dir: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub api_addr: SocketAddr,
    /// Where to write a kubeconfig (mode 0600), if anywhere.
    pub kubeconfig_out: Option<PathBuf>,
    /// (namespace, `service:port`) → address that `/proxy/` goes to.
    pub service_proxies: BTreeMap<(String, String), SocketAddr>,
}

/// Why the API can't start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The data folder.
    #[error("data folder {path}: {source}")]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] DiskError),
    /// CA, certificate or token.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The port is taken, or the address is not ours.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The kubeconfig can't be written.
    #[error("write kubeconfig {path}: {source}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The first objects can't be written.
    #[error("make namespace {name}: {cause}")]
    Namespace {
        /// The namespace.
        name: String,
        /// Why.
        cause: String,
    },
}

/// A running API.
pub struct Embedded {
    address: SocketAddr,
    kubeconfig: String,
    api: Arc<Api>,
    tasks: Vec<JoinHandle<()>>,
    connections: TaskTracker,
    writer: Writer,
}

/// Starts the API.
///
/// # Errors
/// The data folder, the store, the address or the kubeconfig can't be used.
pub async fn start(config: EmbeddedConfig) -> Result<Embedded, EmbeddedError> {
    let EmbeddedConfig {
        data_dir,
        api_addr,
        kubeconfig_out,
        service_proxies,
    } = config;
    std::fs::create_dir_all(&data_dir).map_err(|source| EmbeddedError::DataDir {
        path: data_dir.clone(),
        source,
    })?;
    // Before the store is opened: a second start must say that the address is taken.
    let listen = |source| EmbeddedError::Listen {
        address: api_addr,
        source,
    };
    let listener = TcpListener::bind(api_addr).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let identity = tls::Identity::load_or_make(&data_dir)?;
    let tls = identity.server_config(address)?;
    let (store, writer, notes) = Store::open(data_dir.join("api.redb"))?;
    make_namespaces(&store).await?;

    let kubeconfig = kubeconfig::yaml(address, identity.ca_pem(), identity.token());
    if let Some(path) = kubeconfig_out {
        files::write_private(&path, kubeconfig.as_bytes())
            .map_err(|source| EmbeddedError::Kubeconfig { path, source })?;
    }
    let api = Arc::new(Api::new(store, service_proxies));
    let shared = Arc::new(server::Shared {
        api: Arc::clone(&api),
        token: identity.token().to_owned(),
    });
    let connections = TaskTracker::new();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let tasks = vec![
        tokio::spawn(gc::run(Arc::clone(&api), notes)),
        tokio::spawn(server::run(listener, acceptor, shared, connections.clone())),
    ];
    tracing::info!(%address, "embedded API listens");
    Ok(Embedded {
        address,
        kubeconfig,
        api,
        tasks,
        connections,
        writer,
    })
}

async fn make_namespaces(store: &Store) -> Result<(), EmbeddedError> {
    for name in NAMESPACES {
        let namespace = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": name,
                "uid": object::new_uid(),
                "creationTimestamp": object::now(),
                "labels": { "kubernetes.io/metadata.name": name },
            },
            "spec": { "finalizers": ["kubernetes"] },
            "status": { "phase": "Active" },
        });
        let key = store::Key::new(&"namespaces".into(), "", name);
        match store
            .write(key, Expect::Absent, Change::Put(namespace))
            .await
        {
            Ok(_) | Err(WriteError::Exists) => {}
            Err(e) => {
                return Err(EmbeddedError::Namespace {
                    name: name.to_owned(),
                    cause: format!("{e:?}"),
                });
            }
        }
    }
    Ok(())
}

impl Embedded {
    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig with CA and token in it.
    #[must_use]
    pub fn kubeconfig_yaml(&self) -> String {
        self.kubeconfig.clone()
    }

    /// Ends watches, lets open requests finish for three seconds, and closes the store.
    pub async fn shutdown(self) {
        self.api.stopping.cancel();
        self.connections.close();
        if tokio::time::timeout(DRAIN, self.connections.wait())
            .await
            .is_err()
        {
            tracing::warn!("embedded API: some connections did not end in time");
        }
        for task in self.tasks {
            let _ = task.await;
        }
        drop(self.api);
        // The writer ends when the last connection lets go of the store.
        let writer = self.writer;
        let joined = tokio::task::spawn_blocking(move || writer.join());
        let _ = tokio::time::timeout(DRAIN, joined).await;
    }
}
