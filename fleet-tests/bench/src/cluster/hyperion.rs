//! The control plane on a cluster's API.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hyperion_lab::control::free_port;
use hyperion_lab::process::Process;
use hyperion_lab::{http, needs, wait};

/// Time to be ready, on a busy machine.
const START: Duration = Duration::from_secs(120);

/// At rest it asks no more than [`FEW`] times in this: for its lease, and a status.
const REST: Duration = Duration::from_secs(3);
/// See [`REST`].
const FEW: f64 = 12.0;

/// `hyperion-control` as a process of ours.
pub(super) struct Hyperion {
    process: Process,
    http_addr: String,
}

impl Hyperion {
    /// Starts it on the API of a kubeconfig, and waits until it leads.
    pub(super) fn start(dir: &Path, kubeconfig: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        let http_addr = free_port()?;
        let args = [
            ("--data-dir", dir.join("data").display().to_string()),
            ("--kubeconfig", kubeconfig.display().to_string()),
            ("--link-addr", "127.0.0.1:0".to_owned()),
            ("--http-addr", http_addr.clone()),
        ];
        let args = args
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]);
        let program = needs::programs().join("hyperion-control");
        let mut process = Process::new("control", &program, args.collect(), dir);
        process.start()?;
        let ready = wait::until("control plane", START, || {
            if let Some(status) = process.ended() {
                return Err(format!("ended: {status}"));
            }
            let said = http::get(&http_addr, "/readyz").map_err(|e| e.to_string())?;
            if said.contains("serving") {
                Ok(())
            } else {
                Err(said)
            }
        });
        ready.with_context(|| process.log_tail(20))?;
        Ok(Self { process, http_addr })
    }

    /// Its process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.id().map(|id| id.pid)
    }

    /// Requests to the API server so far, by its own count.
    pub(super) fn requests(&self) -> Result<f64> {
        let text = http::get(&self.http_addr, "/metrics")?;
        let counts = text
            .lines()
            .filter(|line| line.starts_with("hyperion_operator_api_requests_total"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(counts.sum())
    }

    /// Waits until it has written down what it knows: nodes are known before their objects are
    /// written, and those writes are none of what is measured then.
    pub(super) fn at_rest(&self, deadline: Duration) -> Result<()> {
        wait::until("control plane at rest", deadline, || {
            let count = || self.requests().map_err(|e| e.to_string());
            let before = count()?;
            std::thread::sleep(REST);
            let asked = count()? - before;
            if asked <= FEW {
                Ok(())
            } else {
                Err(format!("{asked} requests in {REST:?}"))
            }
        })
    }

    pub(super) fn log_tail(&self) -> String {
        format!("log of the control plane:\n{}", self.process.log_tail(20))
    }
}
