//! A control plane in this process, with the embedded API, and agents whose container runtime is
//! made up. The link between them is the real one.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod agent;
pub mod cloud;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::HyperionWorkload;
use hyperion_operator::args::Args;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[allow(unused_imports, reason = "each test program uses a part")]
pub use agent::{Agent, DEADLINE, Replica, Runtime, before, eventually, free_port, get, took_over};

pub struct Control {
    dir: tempfile::TempDir,
    api: SocketAddr,
    link: SocketAddr,
    pub http: SocketAddr,
    replace_after: &'static str,
    flags: Vec<String>,
    running: Option<(
        CancellationToken,
        tokio::task::JoinHandle<anyhow::Result<()>>,
    )>,
    client: Option<kube::Client>,
}

impl Control {
    pub async fn start(replace_after: &'static str) -> Self {
        Self::start_with(replace_after, &[]).await
    }

    /// With further flags.
    pub async fn start_with(replace_after: &'static str, flags: &[String]) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        if std::env::var_os("RUST_LOG").is_some() {
            let _ = hyperion_operator::run::logging(hyperion_operator::args::LogFormat::Text);
        }
        let mut control = Self {
            dir: tempfile::tempdir().unwrap(),
            api: free_port(false),
            link: free_port(true),
            http: free_port(false),
            replace_after,
            flags: flags.to_vec(),
            running: None,
            client: None,
        };
        control.run().await;
        control
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Starts it (again) on the same data folder and addresses.
    pub async fn run(&mut self) {
        let own = [
            "hyperion-control".to_owned(),
            "--embedded".to_owned(),
            format!("--data-dir={}", self.dir.path().join("data").display()),
            format!("--kubeconfig-out={}", self.kubeconfig().display()),
            format!("--api-addr={}", self.api),
            format!("--link-addr={}", self.link),
            format!("--http-addr={}", self.http),
            format!("--replace-after={}", self.replace_after),
        ];
        let args = Args::parse_from(own.into_iter().chain(self.flags.iter().cloned()));
        let stop = CancellationToken::new();
        let run = hyperion_operator::run::run(args, stop.clone());
        let task = tokio::spawn(async move {
            let ended = run.await;
            if let Err(e) = &ended {
                tracing::error!("hyperion-control: {e:#}");
            }
            ended
        });
        self.running = Some((stop, task));
        let http = self.http;
        let running = &self.running;
        eventually("ready", || async move {
            let ended = running.as_ref().is_some_and(|(_, task)| task.is_finished());
            assert!(!ended, "the control plane ended: RUST_LOG=info tells why");
            let (status, text) = get(http, "/readyz").await.map_err(|e| e.to_string())?;
            if status == 200 && text.contains("serving") {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
        let read = kube::config::Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(read, &Default::default())
            .await
            .unwrap();
        self.client = Some(kube::Client::try_from(config).unwrap());
    }

    /// Stops it as SIGTERM does.
    pub async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        task.await.unwrap().unwrap();
    }

    pub fn client(&self) -> kube::Client {
        self.client.clone().unwrap()
    }

    pub fn workloads(&self) -> Api<HyperionWorkload> {
        Api::namespaced(self.client(), "default")
    }

    pub fn placements(&self) -> Api<HyperionPlacement> {
        Api::namespaced(self.client(), "default")
    }

    pub fn nodes(&self) -> Api<HyperionNode> {
        Api::all(self.client())
    }

    /// Applies as a user.
    pub async fn apply(&self, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let params = PatchParams::apply("test").force();
        self.workloads()
            .patch(&name, &params, &Patch::Apply(object))
            .await
            .unwrap();
    }

    pub async fn delete(&self, name: &str) {
        self.workloads()
            .delete(name, &DeleteParams::default())
            .await
            .unwrap();
    }

    pub async fn node_spec(&self, node: &str, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.nodes()
            .patch(node, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Waits for the workload's status.
    pub async fn status(
        &self,
        name: &str,
        what: &str,
        ok: impl Fn(&HyperionWorkload) -> bool,
    ) -> HyperionWorkload {
        let (api, ok) = (self.workloads(), &ok);
        eventually(what, || {
            let api = api.clone();
            async move {
                let w = api.get(name).await.map_err(|e| e.to_string())?;
                if ok(&w) {
                    Ok(w)
                } else {
                    Err(format!("{:?}", w.status))
                }
            }
        })
        .await
    }

    pub async fn running(&self, name: &str) -> HyperionWorkload {
        self.status(name, "running", |w| {
            w.status.as_ref().is_some_and(|s| {
                s.ready == format!("{0}/{0}", w.spec.replicas)
                    && condition(w, "Ready").is_some_and(|c| c.0 == "True")
            })
        })
        .await
    }

    pub async fn gone(&self, name: &str) {
        let api = self.workloads();
        eventually("deleted", || {
            let api = api.clone();
            async move {
                match api.get_opt(name).await {
                    Ok(None) => Ok(()),
                    Ok(Some(w)) => Err(format!("{:?}", w.status)),
                    Err(e) => Err(e.to_string()),
                }
            }
        })
        .await;
    }

    /// Node and generation of a placement.
    pub async fn place(&self, placement: &str) -> Option<(String, i64)> {
        let p = self.placements().get_opt(placement).await.unwrap()?;
        Some((p.spec.node, p.spec.generation))
    }

    /// Enrols an agent and connects it.
    pub async fn agent(&self, labels: &[(&str, &str)], gpus: usize) -> Agent {
        Agent::enrol(&self.client(), self.link, labels, gpus).await
    }
}

/// Status and reason of a condition.
pub fn condition(workload: &HyperionWorkload, type_: &str) -> Option<(String, String, String)> {
    let conditions = &workload.status.as_ref()?.conditions;
    let found = conditions.iter().find(|c| c.type_ == type_)?;
    Some((
        found.status.clone(),
        found.reason.clone(),
        found.message.clone(),
    ))
}
