//! Short words for what the end-to-end tests say again and again.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyperion_images::DEMO_IMAGE;
use serde_json::{Value, json};

use crate::beacon::Beacon;
use crate::fleet::{Fleet, Placement};
use crate::{http, wait};

/// Long enough for anything that should take a second or two, on a busy machine.
pub const SOON: Duration = Duration::from_secs(40);

/// A workload of the demo image, as JSON that `kubectl apply` takes; tests change it as they like.
#[must_use]
pub fn workload(name: &str, kind: &str, args: &[&str], beacon: Option<&Beacon>) -> Value {
    let mut all: Vec<String> = args.iter().map(|&a| a.to_owned()).collect();
    all.extend(["--name".to_owned(), name.to_owned()]);
    if let Some(beacon) = beacon {
        all.extend(["--beacon".to_owned(), beacon.address()]);
    }
    json!({
        "apiVersion": "hyperion.io/v1alpha1",
        "kind": "HyperionWorkload",
        "metadata": { "name": name },
        "spec": {
            "type": kind,
            "replicas": 1,
            "template": { "spec": {
                "terminationGracePeriodSeconds": 5,
                "containers": [{
                    "name": "main",
                    "image": DEMO_IMAGE,
                    "args": all,
                    "resources": {
                        "requests": { "cpu": "10m", "memory": "16Mi" },
                        "limits": { "memory": "128Mi" },
                    },
                }],
            }},
            "policy": { "goal": "default" },
        },
    })
}

/// A service that is ready when its weights are made.
#[must_use]
pub fn service(name: &str, replicas: u32, beacon: Option<&Beacon>) -> Value {
    let mut value = workload(name, "service", &["serve"], beacon);
    set(&mut value, "/spec/replicas", json!(replicas));
    set(
        &mut value,
        "/spec/template/spec/containers/0/readinessProbe",
        json!({ "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 1 }),
    );
    value
}

/// Sets one field, making it if its parent is there.
pub fn set(value: &mut Value, path: &str, to: Value) {
    if let Some(old) = value.pointer_mut(path) {
        *old = to;
    } else if let Some((parent, key)) = path.rsplit_once('/')
        && let Some(Value::Object(parent)) = value.pointer_mut(parent)
    {
        parent.insert(key.to_owned(), to);
    }
}

impl Fleet {
    /// Applies an object.
    ///
    /// # Errors
    /// `kubectl` complains.
    pub fn apply(&self, object: &Value) -> Result<String> {
        self.kubectl().apply(&object.to_string())
    }

    /// Waits until all of a workload's replicas run and are ready; gives their placements.
    ///
    /// # Errors
    /// Not in time: the error has the last status.
    pub fn wait_all_running(&self, workload: &str, replicas: usize) -> Result<Vec<Placement>> {
        wait::until(&format!("{replicas} of {workload}"), SOON, || {
            let all = self.placements(workload).map_err(|e| e.to_string())?;
            let running = all.iter().filter(|p| p.phase == "Running" && p.ready);
            if running.count() == replicas && all.len() == replicas {
                Ok(all)
            } else {
                Err(format!("{all:?}"))
            }
        })
    }

    /// The placements of a workload, in order of their replicas.
    ///
    /// # Errors
    /// The API can't be asked.
    pub fn placements(&self, workload: &str) -> Result<Vec<Placement>> {
        let label = format!("hyperion.io/workload={workload}");
        let list = self.kubectl().get(&["hyperionplacements", "-l", &label])?;
        let items = list.get("items").and_then(Value::as_array);
        Ok(items.into_iter().flatten().map(Placement::read).collect())
    }

    /// Waits until exactly so many containers run on a node, or everywhere; gives their processes.
    ///
    /// # Errors
    /// Not in time: the error has the last count.
    pub fn wait_containers(&self, node: Option<&str>, count: usize) -> Result<BTreeSet<u32>> {
        wait::until(&format!("{count} containers"), SOON, || {
            let pids = self.containerd.running(node).map_err(|e| e.to_string())?;
            if pids.len() == count {
                Ok(pids.into_iter().collect())
            } else {
                Err(format!("{} containers run", pids.len()))
            }
        })
    }

    /// Checks for a while that exactly these containers run, no other and none less.
    ///
    /// # Errors
    /// Another one ran, or one of them no longer.
    pub fn containers_stay(&self, pids: &BTreeSet<u32>, span: Duration) -> Result<()> {
        wait::holds("the same containers", span, || {
            let now = self.containerd.running(None).map_err(|e| e.to_string())?;
            let now: BTreeSet<u32> = now.into_iter().collect();
            if &now == pids {
                Ok(())
            } else {
                Err(format!("were {pids:?}, are {now:?}"))
            }
        })
    }

    /// Waits until a node's `Ready` is as said.
    ///
    /// # Errors
    /// Not in time: the error has the last status.
    pub fn wait_node(&self, node: &str, ready: &str) -> Result<()> {
        wait::until(&format!("node {node} ready={ready}"), SOON, || {
            let object = self
                .kubectl()
                .get(&["hyperionnode", node])
                .map_err(|e| e.to_string())?;
            let now = object.pointer("/status/ready").and_then(Value::as_str);
            if now == Some(ready) {
                Ok(())
            } else {
                Err(object
                    .pointer("/status")
                    .map_or_else(String::new, Value::to_string))
            }
        })
    }

    /// Waits until an agent is in a mode, by its own word on its local socket.
    ///
    /// # Errors
    /// Not in time: the error has its last word.
    pub fn wait_mode(&self, agent: usize, mode: &str) -> Result<()> {
        let agent = self.agents.get(agent).context("no such agent")?;
        let socket = agent.data.join("agent.sock");
        wait::until(&format!("{} is {mode}", agent.name), SOON, || {
            let status = http::get_unix(&socket, "/v1/site").map_err(|e| format!("{e:#}"))?;
            let status: Value = serde_json::from_str(&status).map_err(|e| e.to_string())?;
            match status.get("mode").and_then(Value::as_str) {
                Some(now) if now == mode => Ok(()),
                other => Err(format!("it is {other:?}")),
            }
        })
    }

    /// Name of the agent of a node, for people; the node's own where it has none.
    #[must_use]
    pub fn name_of(&self, node: &str) -> String {
        let agent = self.agent_of(node).and_then(|at| self.agents.get(at));
        agent.map_or_else(|| node.to_owned(), |a| a.name.clone())
    }

    /// Waits until the log of an agent has a text.
    ///
    /// # Errors
    /// Not in time: the error has the end of the log.
    pub fn wait_log(&mut self, agent: usize, text: &str) -> Result<()> {
        let agent = self.agent(agent)?;
        wait::until(
            &format!("{text:?} in the log of {}", agent.name),
            SOON,
            || {
                if agent.log().contains(text) {
                    Ok(())
                } else {
                    Err(agent.process().log_tail(5))
                }
            },
        )
    }

    /// Checks that nothing that ran here has panicked.
    ///
    /// # Errors
    /// Something has: the error has the place.
    pub fn no_panics(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.dir.join("logs"))?.flatten() {
            let log = std::fs::read(entry.path())?;
            let log = String::from_utf8_lossy(&log);
            let panic = log.lines().find(|l| l.contains("panicked at"));
            ensure!(
                panic.is_none(),
                "{}: {}",
                entry.path().display(),
                panic.unwrap_or_default()
            );
        }
        Ok(())
    }
}
