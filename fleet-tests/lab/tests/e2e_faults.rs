//! What failure looks like (the table of the architecture): every process is killed in turn, and
//! starts of workloads are counted by the workloads themselves.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use hyperion_lab::beacon::Beacon;
use hyperion_lab::process::ProcessId;
use hyperion_lab::scene::{SOON, service};
use hyperion_lab::{AgentSpec, Fleet, FleetOptions, needs, wait};

const A_WHILE: Duration = Duration::from_secs(3);

/// A fleet with a service of two replicas, and the count of starts.
struct Scene {
    fleet: Fleet,
    beacon: Beacon,
    pids: BTreeSet<u32>,
}

impl Scene {
    fn new(name: &str, agents: usize) -> Option<Self> {
        if needs::skip(name) {
            return None;
        }
        let options = FleetOptions::new(name).control("--replace-after", "3s");
        let mut fleet = Fleet::start(&options).unwrap();
        for n in 1..=agents {
            fleet
                .add_only(&AgentSpec::edge(&format!("edge-{n}")))
                .unwrap();
        }
        for at in 0..agents {
            fleet.wait_agent(at).unwrap();
        }
        let beacon = Beacon::listen(&fleet.network.gateway()).unwrap();
        fleet.apply(&service("web", 2, Some(&beacon))).unwrap();
        fleet.wait_all_running("web", 2).unwrap();
        let pids = fleet.wait_containers(None, 2).unwrap();
        assert_eq!(beacon.starts("web").len(), 2);
        Some(Self {
            fleet,
            beacon,
            pids,
        })
    }

    /// The system still works, and did not start anything that already ran: one more replica
    /// makes one more start.
    fn works_without_restarts(&self) {
        let scale = ["scale", "hyperionworkload/web", "--replicas=3"];
        self.fleet.kubectl().run(&scale).unwrap();
        self.fleet.wait_all_running("web", 3).unwrap();
        let now = self.fleet.wait_containers(None, 3).unwrap();
        assert!(
            now.is_superset(&self.pids),
            "were {:?}, are {now:?}",
            self.pids
        );
        assert_eq!(self.beacon.starts("web").len(), 3);
        self.fleet.no_panics().unwrap();
    }
}

#[test]
fn a_killed_agent_leaves_containers_running_and_the_next_adopts_them() {
    let Some(mut scene) = Scene::new("killed_agent", 1) else {
        return;
    };
    scene.fleet.agent(0).unwrap().kill();
    scene.fleet.containers_stay(&scene.pids, A_WHILE).unwrap();
    scene.fleet.start_agent(0).unwrap();
    scene.fleet.wait_agent(0).unwrap();
    scene.works_without_restarts();
}

#[test]
fn a_stopped_agent_leaves_in_order_and_leaves_containers_running() {
    let Some(mut scene) = Scene::new("stopped_agent", 1) else {
        return;
    };
    let status = scene.fleet.agent(0).unwrap().terminate();
    assert!(status.is_some_and(|s| s.success()), "{status:?}");
    scene.fleet.containers_stay(&scene.pids, A_WHILE).unwrap();
    scene.fleet.start_agent(0).unwrap();
    scene.fleet.wait_agent(0).unwrap();
    scene.works_without_restarts();
}

#[test]
fn a_killed_control_plane_costs_nothing() {
    let Some(mut scene) = Scene::new("killed_control", 2) else {
        return;
    };
    scene.fleet.control.kill();
    scene.fleet.containers_stay(&scene.pids, A_WHILE).unwrap();
    scene.fleet.start_control().unwrap();
    for at in 0..2 {
        scene.fleet.wait_agent(at).unwrap();
    }
    // Longer than replaceAfter: nothing may be moved because of the control plane's own absence.
    scene
        .fleet
        .containers_stay(&scene.pids, A_WHILE * 2)
        .unwrap();
    scene.works_without_restarts();
}

#[test]
fn a_stopped_control_plane_leaves_in_order() {
    let Some(mut scene) = Scene::new("stopped_control", 1) else {
        return;
    };
    let status = scene.fleet.control.terminate();
    assert!(status.is_some_and(|s| s.success()), "{status:?}");
    scene.fleet.containers_stay(&scene.pids, A_WHILE).unwrap();
    scene.fleet.start_control().unwrap();
    scene.fleet.wait_agent(0).unwrap();
    scene.works_without_restarts();
}

#[test]
fn a_killed_containerd_costs_nothing_when_it_is_back() {
    let Some(mut scene) = Scene::new("killed_containerd", 1) else {
        return;
    };
    scene.fleet.containerd.kill();
    let tasks: Vec<ProcessId> = scene
        .pids
        .iter()
        .filter_map(|p| ProcessId::of(*p))
        .collect();
    assert_eq!(tasks.len(), 2);
    wait::holds("containers without containerd", A_WHILE, || {
        if tasks.iter().all(ProcessId::alive) {
            Ok(())
        } else {
            Err("one ended".to_owned())
        }
    })
    .unwrap();
    scene.fleet.restart_containerd().unwrap();
    scene.works_without_restarts();
}

#[test]
fn a_reboot_without_network_starts_what_the_store_says() {
    let Some(mut scene) = Scene::new("offline_reboot", 1) else {
        return;
    };
    scene.fleet.control.kill();
    let ended = scene.fleet.cut_power(0).unwrap();
    assert_eq!(ended, 2);
    scene.fleet.wait_containers(None, 0).unwrap();

    scene.fleet.start_agent(0).unwrap();
    scene.pids = scene.fleet.wait_containers(None, 2).unwrap();
    wait::until("two more starts", SOON, || {
        match scene.beacon.starts("web").len() {
            4 => Ok(()),
            n => Err(format!("{n} starts")),
        }
    })
    .unwrap();

    // When the control plane is back it finds them running, and leaves them alone.
    scene.fleet.start_control().unwrap();
    scene.fleet.wait_agent(0).unwrap();
    scene.fleet.wait_all_running("web", 2).unwrap();
    scene.fleet.containers_stay(&scene.pids, A_WHILE).unwrap();
    assert_eq!(scene.beacon.starts("web").len(), 4);
    scene.fleet.no_panics().unwrap();
}

#[test]
fn a_lost_node_is_replaced_and_obeys_when_it_returns() {
    if needs::skip("lost_node") {
        return;
    }
    let options = FleetOptions::new("lost_node").control("--replace-after", "3s");
    let mut fleet = Fleet::start(&options).unwrap();
    for n in 1..=2 {
        fleet.add(&AgentSpec::edge(&format!("edge-{n}"))).unwrap();
    }
    let beacon = Beacon::listen(&fleet.network.gateway()).unwrap();
    fleet.apply(&service("web", 1, Some(&beacon))).unwrap();
    let before = fleet.wait_running("web-0", SOON).unwrap();
    let lost = fleet.agent_of(&before.node).unwrap();

    // Only the agent is gone: to the control plane that is the same as a lost machine.
    fleet.agent(lost).unwrap().kill();
    let after = fleet
        .wait_placement("web-0", SOON, |p| {
            p.node != before.node && p.phase == "Running" && p.ready
        })
        .unwrap();
    assert!(after.generation > before.generation, "{before:?} {after:?}");
    fleet.wait_containers(Some(&before.node), 1).unwrap();

    // The old node returns with its copy still running, and stops it: its generation is old.
    fleet.start_agent(lost).unwrap();
    fleet.wait_agent(lost).unwrap();
    fleet.wait_containers(Some(&before.node), 0).unwrap();
    let stays = fleet.wait_containers(Some(&after.node), 1).unwrap();
    fleet.containers_stay(&stays, A_WHILE).unwrap();
    assert_eq!(fleet.wait_running("web-0", SOON).unwrap().node, after.node);
    assert_eq!(beacon.starts("web").len(), 2);
    fleet.no_panics().unwrap();
}

#[test]
fn a_node_away_for_less_than_replace_after_keeps_its_replicas() {
    if needs::skip("short_absence") {
        return;
    }
    let options = FleetOptions::new("short_absence").control("--replace-after", "20s");
    let mut fleet = Fleet::start(&options).unwrap();
    for n in 1..=2 {
        fleet.add(&AgentSpec::edge(&format!("edge-{n}"))).unwrap();
    }
    fleet.apply(&service("web", 1, None)).unwrap();
    let before = fleet.wait_running("web-0", SOON).unwrap();
    let pids = fleet.wait_containers(None, 1).unwrap();
    let at = fleet.agent_of(&before.node).unwrap();
    fleet.agent(at).unwrap().kill();
    fleet.wait_node(&before.node, "False").unwrap();
    fleet.start_agent(at).unwrap();
    fleet.wait_agent(at).unwrap();
    fleet.containers_stay(&pids, A_WHILE).unwrap();
    let now = fleet.wait_running("web-0", SOON).unwrap();
    assert_eq!((now.node, now.generation), (before.node, before.generation));
}
