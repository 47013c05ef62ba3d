//! An API server of the stage that can be killed and comes back as it was: the embedded one, in this
//! process, or a real one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hyperion_embedded::{Embedded, EmbeddedConfig};
use tokio::runtime::Runtime;

use crate::Kubectl;
use crate::apiserver::ApiServer;

/// An API server.
pub struct Api {
    kubectl: Kubectl,
    kind: Kind,
}

enum Kind {
    Embedded {
        dir: PathBuf,
        address: SocketAddr,
        running: Option<Box<Embedded>>,
    },
    Real(Box<ApiServer>),
}

impl Api {
    /// Starts one with its data in `dir`; the administrator's kubeconfig goes to `kubeconfig`.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(runtime: &Runtime, dir: &Path, kubeconfig: &Path, real: bool) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let kind = if real {
            let mut server = ApiServer::prepare(dir, kubeconfig, dir)?;
            server.end_with_parent();
            Kind::Real(Box::new(server))
        } else {
            Kind::Embedded {
                dir: dir.to_owned(),
                address: crate::control::free_port()?.parse()?,
                running: None,
            }
        };
        let mut api = Self {
            kubectl: Kubectl::new(kubeconfig, dir),
            kind,
        };
        api.start_again(runtime)?;
        Ok(api)
    }

    /// Starts it as it was, and waits until it answers.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_again(&mut self, runtime: &Runtime) -> Result<()> {
        match &mut self.kind {
            Kind::Real(server) => server.start().map(drop),
            Kind::Embedded {
                dir,
                address,
                running,
            } => {
                let config = EmbeddedConfig {
                    data_dir: dir.clone(),
                    api_addr: *address,
                    kubeconfig_out: Some(self.kubectl.kubeconfig().to_owned()),
                    service_proxies: Default::default(),
                };
                *running = Some(Box::new(
                    runtime.block_on(hyperion_embedded::start(config))?,
                ));
                Ok(())
            }
        }
    }

    /// It answers nobody any more: a real one by SIGKILL, the embedded one closes its store first.
    pub fn kill(&mut self, runtime: &Runtime) {
        match &mut self.kind {
            Kind::Real(server) => server.kill(),
            Kind::Embedded { running, .. } => {
                if let Some(embedded) = running.take() {
                    runtime.block_on(embedded.shutdown());
                }
            }
        }
    }

    /// `kubectl` for its administrator.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }
}
