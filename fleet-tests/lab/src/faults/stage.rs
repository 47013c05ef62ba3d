//! What runs: the API of the management cluster, workload clusters, the control plane, and agents with a
//! containerd where they are wanted; and those who look at it from outside.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyperion_cluster::nodes::Service;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::api::Api;
use super::cloud::Cloud;
use super::gate::{Gate, Trap};
use super::leaks::World;
use super::seen::{Asking, Seen};
use crate::control::{Control, OnApi};
use crate::join::{join, wait_nodes};
use crate::truth::{Truth, answers};
use crate::{AgentSpec, Fleet, FleetOptions, Kubectl, needs, wait, workload_cluster};

/// Long enough for anything, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How to start.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// For people.
    pub name: String,
    /// Services of the clouds, and nodes of each.
    pub clouds: Vec<(Service, usize)>,
    /// Agents.
    pub agents: Vec<AgentSpec>,
    /// More flags of the control plane.
    pub args: Vec<String>,
    /// Real API servers with kwok in the place of the embedded one.
    pub real: bool,
    /// All that the control plane writes goes through gates that this trap counts for.
    pub trap: Option<Trap>,
}

enum Host {
    Alone(Box<Control>),
    Fleet(Box<Fleet>),
}

/// What runs. Dropping it stops all of it.
pub struct Stage {
    host: Host,
    /// Workload clusters.
    pub clouds: Vec<Cloud>,
    _home: Api,
    /// What watches tell.
    pub seen: Seen,
    /// Containers of the agents, where there are some.
    pub truth: Option<Arc<Truth>>,
    /// What everything in this process runs on.
    pub runtime: Runtime,
    _dir: TempDir,
}

/// Why the stage can't be built here, or none if it can.
#[must_use]
pub fn missing(agents: bool, real: bool) -> Option<String> {
    let ours = agents.then(|| needs::missing(&needs::OURS)).flatten();
    let api = || real.then(workload_cluster::missing).flatten();
    let kubectl = needs::find("kubectl").is_some();
    let built = needs::programs().join("hyperion-control").exists();
    ours.or_else(api)
        .or_else(|| (!kubectl).then(|| "kubectl is not installed".to_owned()))
        .or_else(|| (!built).then(|| "hyperion-control is not built".to_owned()))
}

impl Stage {
    /// Starts everything, and waits until the control plane knows all nodes.
    ///
    /// # Errors
    /// Something does not start, or is not known in time.
    pub fn start(plan: &Plan) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let temp = tempfile::tempdir()?;
        let dir = temp.path();
        let admin = dir.join("kubeconfig");
        let home = Api::start(&runtime, &dir.join("home"), &admin, plan.real)?;
        let (mut clouds, mut given) = (Vec::new(), Vec::new());
        for (service, count) in &plan.clouds {
            let of = dir.join(service.name());
            let cloud = Cloud::start(&runtime, &of, *service, *count, plan.real)?;
            given.push(way(&runtime, dir, service.name(), cloud.kubectl(), plan)?);
            clouds.push(cloud);
        }
        let on = OnApi {
            admin: admin.clone(),
            operator: way(&runtime, dir, "home", home.kubectl(), plan)?,
        };
        let host = host(dir, plan, on)?;
        let seen = Seen::default();
        let truth = match &host {
            Host::Fleet(fleet) => Some(Arc::new(Truth::watch(fleet))),
            Host::Alone(_) => None,
        };
        let mut stage = Self {
            host,
            clouds,
            _home: home,
            seen,
            truth,
            runtime,
            _dir: temp,
        };
        stage.seen.follow_decisions(&stage.runtime, &admin)?;
        for (cloud, kubeconfig) in stage.clouds.iter().zip(&given) {
            let name = cloud.name();
            let direct = cloud.kubectl().kubeconfig();
            stage.seen.follow_pods(&stage.runtime, name, direct)?;
            join(stage.kubectl(), name, cloud.service, Some(kubeconfig))?;
        }
        for (service, count) in &plan.clouds {
            let known = wait_nodes(stage.kubectl(), service.name(), *count, PATIENCE);
            known.with_context(|| stage.log())?;
        }
        if let Host::Fleet(fleet) = &mut stage.host {
            for spec in &plan.agents {
                fleet.add_only(spec)?;
            }
            for at in 0..plan.agents.len() {
                fleet.wait_agent(at)?;
            }
        }
        Ok(stage)
    }

    /// The control plane.
    pub fn control(&mut self) -> &mut Control {
        match &mut self.host {
            Host::Alone(control) => control,
            Host::Fleet(fleet) => &mut fleet.control,
        }
    }

    /// Containers and agents.
    ///
    /// # Errors
    /// There are none.
    pub fn fleet(&mut self) -> Result<&mut Fleet> {
        match &mut self.host {
            Host::Fleet(fleet) => Ok(fleet),
            Host::Alone(_) => anyhow::bail!("a stage without agents"),
        }
    }

    /// `kubectl` for the management cluster.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.plane().kubectl()
    }

    fn plane(&self) -> &Control {
        match &self.host {
            Host::Alone(control) => control,
            Host::Fleet(fleet) => &fleet.control,
        }
    }

    /// A cluster by its service.
    ///
    /// # Errors
    /// There is none.
    pub fn cloud(&mut self, service: Service) -> Result<(&mut Cloud, &Runtime)> {
        let cloud = self.clouds.iter_mut().find(|c| c.service == service);
        Ok((cloud.context("no such cluster")?, &self.runtime))
    }

    /// Address of its metrics and health.
    #[must_use]
    pub fn http(&self) -> String {
        self.plane().http.clone()
    }

    /// Names of the HyperionNodes of some clusters.
    ///
    /// # Errors
    /// A cluster does not answer.
    pub fn nodes_of(&self, which: impl Fn(&Cloud) -> bool) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for cloud in self.clouds.iter().filter(|c| which(c)) {
            let nodes = cloud.kubectl().get(&["nodes"])?;
            let items = nodes.get("items").and_then(Value::as_array);
            for node in items.into_iter().flatten() {
                let name = node.pointer("/metadata/name").and_then(Value::as_str);
                names.push(format!("{}.{}", cloud.name(), name.unwrap_or_default()));
            }
        }
        Ok(names)
    }

    /// Starts the control plane anew after it was killed, and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn start_control_again(&mut self) -> Result<()> {
        self.control().kill();
        match &mut self.host {
            Host::Alone(control) => control.start().map(drop),
            Host::Fleet(fleet) => fleet.start_control(),
        }
    }

    /// The end of what the control plane said.
    #[must_use]
    pub fn log(&self) -> String {
        match &self.host {
            Host::Alone(control) => control.log_tail(40),
            Host::Fleet(fleet) => fleet.logs(40),
        }
    }

    /// Begins to ask a service: whoever of it takes requests. Copies in containers are really asked;
    /// of Pods the readiness that the API tells is the answer. Of the workloads in containers only
    /// this one may listen on the port of the demo image's services: what is known of a new container
    /// may come later than its first answer.
    #[must_use]
    pub fn ask(&self, workload: &str) -> Asking {
        let (seen, truth) = (self.seen.clone(), self.truth.clone());
        let workload = workload.to_owned();
        Asking::begin(move || {
            let in_containers = |truth: &Truth| {
                let running = truth.running(&workload);
                running.iter().any(|span| answers(&span.address)) || truth.anyone_answers()
            };
            seen.serves(&workload) || truth.as_deref().is_some_and(in_containers)
        })
    }

    /// Containers that run now, of these workloads.
    #[must_use]
    pub fn containers(&self, workloads: &[&str]) -> Vec<crate::truth::Span> {
        let truth = self.truth.iter();
        truth
            .flat_map(|t| workloads.iter().flat_map(|w| t.running(w)))
            .collect()
    }

    /// All that the API servers and containers tell now.
    ///
    /// # Errors
    /// One does not answer.
    pub fn world(&self, workloads: &[&str]) -> Result<World> {
        let clusters: Vec<_> = self
            .clouds
            .iter()
            .map(|c| (c.name(), c.kubectl()))
            .collect();
        World::read(self.kubectl(), &clusters, &self.containers(workloads))
    }

    /// Node, generation, phase and readiness of a placement.
    ///
    /// # Errors
    /// There is none.
    pub fn placement(&self, name: &str) -> Result<crate::fleet::Placement> {
        let object = self.kubectl().get(&["hyperionplacement", name])?;
        Ok(crate::fleet::Placement::read(&object))
    }

    /// Waits until all replicas run, each where it was decided, and nothing is too much.
    ///
    /// # Errors
    /// Not in time: the error says what is wrong, and has the end of the log.
    pub fn at_rest(&self, workloads: &[&str], deadline: Duration) -> Result<()> {
        let rest = wait::until("rest", deadline, || {
            let list = self.kubectl().get(&["hyperionplacements"]);
            let list = list.map_err(|e| format!("{e:#}"))?;
            let items = list.get("items").and_then(Value::as_array);
            for item in items.into_iter().flatten() {
                let placement = crate::fleet::Placement::read(item);
                if placement.phase != "Running" || !placement.ready {
                    return Err(format!("{placement:?}"));
                }
            }
            let wrong = self.world(workloads).map_err(|e| format!("{e:#}"))?.wrong();
            if wrong.is_empty() {
                Ok(())
            } else {
                Err(wrong.join("\n"))
            }
        });
        rest.with_context(|| self.log())
    }

    /// US dollars for the containers of workloads between two moments, each at the price when it was
    /// placed on its node.
    #[must_use]
    pub fn spent_on_devices(&self, workloads: &[&str], from: Instant, to: Instant) -> f64 {
        let spans = self
            .truth
            .iter()
            .flat_map(|t| workloads.iter().flat_map(|w| t.spans(w)));
        let cost = |span: crate::truth::Span| {
            let usd = self
                .seen
                .hourly_on(&span.workload, &span.replica, &span.node);
            let (begin, end) = (span.from.max(from), span.to.unwrap_or(to).min(to));
            usd.unwrap_or_default() * end.saturating_duration_since(begin).as_secs_f64() / 3600.0
        };
        spans.map(cost).sum()
    }

    /// Deletes everything that users made, waits, and says what is left.
    ///
    /// # Errors
    /// An API server refuses.
    pub fn remove_all(&self, workloads: &[&str]) -> Result<Vec<String>> {
        self.kubectl()
            .run(&["delete", "hyperionworkloads", "--all", "--wait=false"])?;
        self.kubectl()
            .run(&["delete", "hyperionclusters", "--all", "--wait=false"])?;
        let mut left = Vec::new();
        let gone = wait::until("nothing of ours", PATIENCE, || {
            left = self.world(workloads).map_err(|e| format!("{e:#}"))?.left();
            if left.is_empty() {
                Ok(())
            } else {
                Err(left.join(", "))
            }
        });
        // It is counted, and no reason to end.
        drop(gone);
        Ok(left)
    }

    /// Makes an object of the management cluster.
    ///
    /// # Errors
    /// It is refused.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl().apply(&object.to_string()).map(drop)
    }

    /// Drains a node, or lets it take replicas again.
    ///
    /// # Errors
    /// The API refuses.
    pub fn drain(&self, node: &str, drained: bool) -> Result<()> {
        let patch = json!({ "spec": { "draining": drained, "unschedulable": drained }});
        let patch = patch.to_string();
        let args = [
            "patch",
            "hyperionnode",
            node,
            "--type=merge",
            "--patch",
            &patch,
        ];
        self.kubectl().run(&args).map(drop)
    }

    /// Waits for a condition of a workload's placement; gives the placement.
    ///
    /// # Errors
    /// Not in time: the error has the end of the log.
    pub fn wait_placement(
        &self,
        name: &str,
        deadline: Duration,
        wanted: impl Fn(&crate::fleet::Placement) -> bool,
    ) -> Result<crate::fleet::Placement> {
        crate::fleet::wait_placement(self.kubectl(), name, deadline, wanted)
            .with_context(|| self.log())
    }
}

/// The kubeconfig that leads the control plane to an API server: through a gate where there is a trap.
fn way(
    runtime: &Runtime,
    dir: &Path,
    name: &str,
    to: &Kubectl,
    plan: &Plan,
) -> Result<std::path::PathBuf> {
    match &plan.trap {
        None => Ok(to.kubeconfig().to_owned()),
        Some(trap) => {
            let gate = Gate::open(runtime, name, to.kubeconfig(), trap)?;
            gate.write_kubeconfig(&dir.join(format!("gate-{name}")))
        }
    }
}

fn host(dir: &Path, plan: &Plan, on: OnApi) -> Result<Host> {
    if plan.agents.is_empty() {
        std::fs::create_dir_all(dir.join("logs"))?;
        let mut control = Control::prepare_on(dir, "127.0.0.1", &on, &plan.args)?;
        control.start()?;
        return Ok(Host::Alone(Box::new(control)));
    }
    let mut options = FleetOptions::new(&plan.name).on(on);
    options.control_args.clone_from(&plan.args);
    Fleet::start(&options).map(|fleet| Host::Fleet(Box::new(fleet)))
}
