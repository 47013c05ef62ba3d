//! A whole fleet: containerd, control plane, agents.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hyperion_images::Image;
use serde_json::Value;

use crate::agent::{Agent, AgentSpec};
use crate::containerd::{Containerd, Network};
use crate::control::{Control, OnApi};
use crate::device::Device;
use crate::kubectl::Kubectl;
use crate::process::{ProcessId, tail};
use crate::state::{self, State};
use crate::{needs, wait};

/// How a fleet is to be started.
#[derive(Debug, Clone, Default)]
pub struct FleetOptions {
    /// For people: names the folder and the log.
    pub name: String,
    /// More flags of the control plane.
    pub control_args: Vec<String>,
    /// Do not wait until no other fleet runs here. Tests and measurements do wait: their times
    /// mean something only where they have the machine for themselves.
    pub beside_others: bool,
    /// Agents are devices with a network of their own; the control plane listens where they can
    /// reach it.
    pub devices: bool,
    /// The API that the control plane works on, where that runs already.
    pub on: Option<OnApi>,
}

impl FleetOptions {
    /// Usual flags.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Does not wait until no other fleet runs here.
    #[must_use]
    pub fn beside_others(mut self) -> Self {
        self.beside_others = true;
        self
    }

    /// Gives each agent a network of its own, see [`crate::device`].
    #[must_use]
    pub fn devices(mut self) -> Self {
        self.devices = true;
        self
    }

    /// The control plane works on an API that runs already.
    #[must_use]
    pub fn on(mut self, api: OnApi) -> Self {
        self.on = Some(api);
        self
    }

    /// Adds a flag of the control plane.
    #[must_use]
    pub fn control(mut self, flag: &str, value: &str) -> Self {
        self.control_args
            .extend([flag.to_owned(), value.to_owned()]);
        self
    }
}

/// Everything that runs. Dropping it stops and removes all of it.
#[derive(Debug)]
pub struct Fleet {
    /// Folder of the fleet.
    pub dir: PathBuf,
    /// Containers' network.
    pub network: Network,
    /// containerd.
    pub containerd: Containerd,
    /// Control plane.
    pub control: Control,
    /// Agents, in the order of their start.
    pub agents: Vec<Agent>,
    name: String,
    devices: bool,
    state: State,
    /// Held until everything else is gone.
    _turn: Option<File>,
}

impl Fleet {
    /// Starts containerd (with the demo and pause images) and the control plane.
    ///
    /// # Errors
    /// One of them does not start: the error has the end of its log. What had started is stopped.
    pub fn start(options: &FleetOptions) -> Result<Self> {
        let mut fleet = Self::prepare(options)?;
        fleet.start_containerd()?;
        fleet.start_control()?;
        Ok(fleet)
    }

    /// Makes the folder and the network; nothing is started yet.
    ///
    /// # Errors
    /// The folder or the network can't be made.
    pub fn prepare(options: &FleetOptions) -> Result<Self> {
        let turn = if options.beside_others {
            None
        } else {
            Some(wait_turn()?)
        };
        state::sweep();
        let dir = make_dir(&options.name)?;
        let mut state = State {
            dir: dir.clone(),
            owner: ProcessId::of(std::process::id()),
            ..State::default()
        };
        state.write()?;
        let network = Network::make()?;
        state.bridge = Some(network.bridge.clone());
        state.write()?;
        let link_host = if options.devices {
            network.gateway()
        } else {
            "127.0.0.1".to_owned()
        };
        let args = &options.control_args;
        let control = match &options.on {
            Some(on) => Control::prepare_on(&dir, &link_host, on, args)?,
            None => Control::prepare(&dir, &link_host, &network.gateway(), args)?,
        };
        control.clear_cluster()?;
        Ok(Self {
            containerd: Containerd::prepare(&dir, &network)?,
            control,
            agents: Vec::new(),
            devices: options.devices,
            name: options.name.clone(),
            network,
            dir,
            state,
            _turn: turn,
        })
    }

    /// Starts containerd and imports the images.
    ///
    /// # Errors
    /// It does not start, or refuses an image.
    pub fn start_containerd(&mut self) -> Result<()> {
        self.restart_containerd()?;
        for image in hyperion_images::standard(&needs::programs()) {
            self.containerd.import(&packed(&image)?)?;
        }
        Ok(())
    }

    /// Starts containerd (again).
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.state.containerd = Some(self.containerd.start()?);
        self.state.write()
    }

    /// Starts the control plane (again) and waits until it is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_control(&mut self) -> Result<()> {
        self.start_cluster()?;
        let id = self.control.start_only()?;
        self.note(id)?;
        self.control.wait_ready()
    }

    /// Starts the API server and waits until it is ready, where the fleet has one of its own and it
    /// does not run.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_cluster(&mut self) -> Result<()> {
        if let Some(id) = self.control.start_cluster_only()? {
            self.note(id)?;
        }
        self.control.wait_cluster()
    }

    /// Starts an agent with a new token and waits until its node is ready; gives its index.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn add(&mut self, spec: &AgentSpec) -> Result<usize> {
        let at = self.add_only(spec)?;
        self.wait_agent(at)?;
        Ok(at)
    }

    /// Starts an agent with a new token; gives its index.
    ///
    /// # Errors
    /// It can't be run.
    pub fn add_only(&mut self, spec: &AgentSpec) -> Result<usize> {
        let at = self.prepare_agent(spec)?;
        self.start_agent(at)?;
        Ok(at)
    }

    /// An agent with a new token, not started; gives its index.
    ///
    /// # Errors
    /// There is no token, or no device for it.
    pub fn prepare_agent(&mut self, spec: &AgentSpec) -> Result<usize> {
        let token = self.control.token(&spec.site, 1)?;
        let socket = self.containerd.socket();
        let device = if self.devices {
            Some(self.make_device()?)
        } else {
            None
        };
        let link = &self.control.link;
        let agent = Agent::prepare(&self.dir, link, &socket, Some(&token), spec, device);
        self.agents.push(agent);
        Ok(self.agents.len() - 1)
    }

    fn make_device(&mut self) -> Result<Device> {
        let device = Device::make(&self.network, self.agents.len())?;
        self.state.netns.push(device.netns.clone());
        self.state.write()?;
        Ok(device)
    }

    /// Starts an agent again, as it was.
    ///
    /// # Errors
    /// It can't be run.
    pub fn start_agent(&mut self, at: usize) -> Result<()> {
        let id = self.agent(at)?.start()?;
        self.note(id)
    }

    /// Waits until an agent's node is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn wait_agent(&mut self, at: usize) -> Result<()> {
        let agent = self.agents.get_mut(at).context("no such agent")?;
        agent.wait_ready(&self.control)
    }

    /// An agent by its index.
    ///
    /// # Errors
    /// There is none.
    pub fn agent(&mut self, at: usize) -> Result<&mut Agent> {
        self.agents.get_mut(at).context("no such agent")
    }

    /// Node id of an agent.
    #[must_use]
    pub fn node(&self, at: usize) -> String {
        self.agents
            .get(at)
            .map_or_else(String::new, |a| a.node.clone())
    }

    /// The agent that runs a node.
    #[must_use]
    pub fn agent_of(&self, node: &str) -> Option<usize> {
        self.agents.iter().position(|a| a.node == node)
    }

    /// `kubectl` for the fleet.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.control.kubectl()
    }

    /// Power loss of a node's machine: its agent and its containers end at once.
    ///
    /// # Errors
    /// containerd can't be asked.
    pub fn cut_power(&mut self, at: usize) -> Result<usize> {
        let agent = self.agent(at)?;
        agent.kill();
        let node = agent.node.clone();
        self.containerd.cut_power(&node)
    }

    /// Waits until a placement is as wanted; gives the placement.
    ///
    /// # Errors
    /// Not in time: the error has its last status.
    pub fn wait_placement(
        &self,
        name: &str,
        deadline: Duration,
        wanted: impl Fn(&Placement) -> bool,
    ) -> Result<Placement> {
        wait_placement(self.kubectl(), name, deadline, wanted)
    }

    /// Waits until a placement runs and is ready.
    ///
    /// # Errors
    /// Not in time: the error has its last status.
    pub fn wait_running(&self, name: &str, deadline: Duration) -> Result<Placement> {
        self.wait_placement(name, deadline, |p| p.phase == "Running" && p.ready)
    }

    /// Leaves everything running after this process, until [`state::clean_up`] by another.
    ///
    /// # Errors
    /// The state can't be written.
    pub fn keep(mut self) -> Result<PathBuf> {
        self.state.keep = true;
        self.state.write()?;
        self.containerd.release();
        self.control.process().release();
        if let Some(cluster) = self.control.cluster() {
            cluster.release();
        }
        for agent in &mut self.agents {
            agent.process().release();
        }
        Ok(self.dir.clone())
    }

    /// The last lines of every log, for a failure's report.
    #[must_use]
    pub fn logs(&self, lines: usize) -> String {
        let Ok(entries) = std::fs::read_dir(self.dir.join("logs")) else {
            return String::new();
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
        files.sort();
        let mut text = String::new();
        for file in files {
            let log = std::fs::read(&file).unwrap_or_default();
            let log = tail(&String::from_utf8_lossy(&log), lines);
            text.push_str(&format!("--- {}\n{log}\n", file.display()));
        }
        text
    }

    fn note(&mut self, id: ProcessId) -> Result<()> {
        self.state.processes.retain(ProcessId::alive);
        self.state.processes.push(id);
        self.state.write()
    }

    #[expect(clippy::print_stderr, reason = "a failed test's logs go to its output")]
    fn report_failure(&self) {
        let saved = std::env::temp_dir()
            .join("hyperion-lab-logs")
            .join(&self.name);
        eprintln!("{}", self.logs(30));
        let copied = std::fs::create_dir_all(&saved).is_ok()
            && std::fs::read_dir(self.dir.join("logs")).is_ok_and(|entries| {
                entries
                    .flatten()
                    .all(|e| std::fs::copy(e.path(), saved.join(e.file_name())).is_ok())
            });
        if copied {
            eprintln!("whole logs of {} are in {}", self.name, saved.display());
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if self.state.keep {
            return;
        }
        if std::thread::panicking() {
            self.report_failure();
        }
        for agent in &mut self.agents {
            agent.kill();
        }
        // The control plane is asked, so that a test run also covers its orderly end.
        let _status = self.control.terminate();
        state::clean_up(&self.state);
    }
}

/// The fields of a placement that tests look at.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placement {
    /// Name.
    pub name: String,
    /// Node.
    pub node: String,
    /// Provider.
    pub provider: String,
    /// Region.
    pub region: String,
    /// Generation.
    pub generation: i64,
    /// Phase.
    pub phase: String,
    /// Readiness.
    pub ready: bool,
    /// Reason of the phase.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Restarts.
    pub restarts: i64,
    /// Address in the containers' network.
    pub pod_ip: String,
    /// `control-plane`, or the node that decided while the site was cut off.
    pub decided_by: String,
    /// Who ranked the candidates.
    pub scorer: String,
    /// Why rules did although there is a policy; empty where they did not.
    pub fallback: String,
    /// Node that rules would have chosen; empty where a policy was not asked.
    pub rules_choice: String,
}

impl Placement {
    /// Reads a `HyperionPlacement`.
    #[must_use]
    pub fn read(object: &Value) -> Self {
        let at = |path: &str| object.pointer(path);
        let text = |path: &str| {
            let value = at(path).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let number = |path: &str| at(path).and_then(Value::as_i64).unwrap_or_default();
        Self {
            name: text("/metadata/name"),
            node: text("/spec/node"),
            provider: text("/spec/provider"),
            region: text("/spec/region"),
            generation: number("/spec/generation"),
            phase: text("/status/phase"),
            ready: at("/status/ready")
                .and_then(Value::as_bool)
                .unwrap_or(false),
            reason: text("/status/reason"),
            message: text("/status/message"),
            restarts: number("/status/restarts"),
            pod_ip: text("/status/podIP"),
            decided_by: text("/spec/decidedBy"),
            scorer: text("/spec/explanation/scorer"),
            fallback: text("/spec/explanation/fallback"),
            rules_choice: text("/spec/explanation/rulesChoice/id"),
        }
    }
}

/// The tar file of an image. Packing takes seconds in a debug build, so the file is kept as long as
/// the program in it does not change.
fn packed(image: &Image) -> Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let program = image.program.display().to_string();
    let facts = std::fs::metadata(&image.program).context(program)?;
    let dir = std::env::temp_dir().join("hyperion-lab-images");
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let name: String = image
        .name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let about = format!(
        "{name}-{}-{}.{}",
        facts.size(),
        facts.mtime(),
        facts.mtime_nsec()
    );
    let file = dir.join(format!("{about}.tar"));
    if !file.exists() {
        for old in std::fs::read_dir(&dir)?.flatten() {
            if old.file_name().to_string_lossy().starts_with(&name) {
                // Another lab may have removed it first.
                let _gone = std::fs::remove_file(old.path());
            }
        }
        let new = dir.join(format!("{about}.{}", std::process::id()));
        hyperion_images::pack(image, &new)?;
        std::fs::rename(&new, &file).with_context(|| file.display().to_string())?;
    }
    Ok(file)
}

/// Waits until no other fleet that waits its turn runs on this machine.
fn wait_turn() -> Result<File> {
    let path = std::env::temp_dir().join("hyperion-lab.lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| path.display().to_string())?;
    file.lock().with_context(|| path.display().to_string())?;
    Ok(file)
}

fn make_dir(name: &str) -> Result<PathBuf> {
    // A socket's path may have 107 bytes: the folder's name is kept short.
    let base = std::env::temp_dir();
    let pid = std::process::id();
    for n in 0..1000 {
        let dir = base.join(format!("{}{pid}-{n}", state::PREFIX));
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                std::fs::write(dir.join("name"), name)?;
                std::fs::create_dir(dir.join("logs"))?;
                return Ok(dir);
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| dir.display().to_string()),
        }
    }
    anyhow::bail!("no free folder in {}", Path::new(&base).display())
}

/// Waits until a placement is as wanted; gives the placement.
///
/// # Errors
/// Not in time: the error has its last status.
pub(crate) fn wait_placement(
    kubectl: &Kubectl,
    name: &str,
    deadline: Duration,
    wanted: impl Fn(&Placement) -> bool,
) -> Result<Placement> {
    wait::until(&format!("placement {name}"), deadline, || {
        let object = kubectl
            .get(&["hyperionplacement", name])
            .map_err(|e| format!("{e:#}"))?;
        let placement = Placement::read(&object);
        if wanted(&placement) {
            Ok(placement)
        } else {
            Err(format!("{placement:?}"))
        }
    })
}
