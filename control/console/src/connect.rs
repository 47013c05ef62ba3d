//! From a kubeconfig to a client.

use std::path::PathBuf;
use std::time::Duration;

use hyperion_api::fleet::PROXY_PREFIX;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::error::CliError;
use crate::fleet::live::LiveAnswer;

/// What the commands share.
#[derive(Clone)]
pub struct Connection {
    /// Client.
    pub client: Client,
    /// Namespace of the kubeconfig's context, or `-n`.
    pub namespace: String,
    /// Where the API server is, for people.
    pub server: String,
}

/// How to connect.
#[derive(Debug, Clone, Default)]
pub struct ConnectArgs {
    /// Kubeconfig; by default as `kubectl` would find one.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace.
    pub namespace: Option<String>,
}

impl ConnectArgs {
    /// Connects.
    ///
    /// # Errors
    /// As [`connect`].
    pub async fn connect(&self) -> Result<Connection, CliError> {
        connect(self.kubeconfig.as_ref(), self.namespace.as_deref()).await
    }
}

/// Connects as the kubeconfig says; with `None`, as `kubectl` would find one. Nothing is sent yet.
///
/// # Errors
/// The kubeconfig is missing or wrong.
pub async fn connect(
    kubeconfig: Option<&PathBuf>,
    namespace: Option<&str>,
) -> Result<Connection, CliError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let bad = |e: kube::config::KubeconfigError| {
                let cause = crate::error::root_cause(&e);
                CliError::new(format!("kubeconfig {}: {cause}", path.display()))
            };
            let read = Kubeconfig::read_from(path).map_err(bad)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(bad)?
        }
        None => Config::infer().await.map_err(|e| {
            CliError::new(format!("no usable kubeconfig: {}", crate::error::root_cause(&e)))
                .hint("pass --kubeconfig FILE or set KUBECONFIG; hyperion-control --embedded writes one with --kubeconfig-out")
        })?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    let namespace = namespace.map_or_else(|| config.default_namespace.clone(), str::to_owned);
    let server = config.cluster_url.to_string();
    let client = Client::try_from(config)
        .map_err(|e| CliError::new(format!("kubeconfig: {}", crate::error::root_cause(&e))))?;
    Ok(Connection {
        client,
        namespace,
        server,
    })
}

impl Connection {
    /// Live state of the nodes that changed after `since`.
    ///
    /// # Errors
    /// As the API server or the fleet API says.
    pub async fn live(&self, since: u64) -> Result<LiveAnswer, kube::Error> {
        let request = http::Request::get(format!("{PROXY_PREFIX}/nodes?since={since}"))
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        self.client.request(request).await
    }
}
