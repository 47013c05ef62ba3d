//! The lab itself: its containerd runs containers, and cleaning up leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::time::Duration;

use hyperion_images::{DEMO_IMAGE, PAUSE_IMAGE};
use hyperion_lab::{Fleet, FleetOptions, needs, process, state, wait};

/// These are about the lab itself, and run at the same time: they can't share a cluster.
fn skipped() -> bool {
    needs::skip_without("harness", &["demo-inference", "hyperion-pause"])
        || needs::skip_on_given("harness")
}

#[test]
fn a_private_containerd_runs_the_demo_image_and_leaves_nothing_behind() {
    if skipped() {
        return;
    }
    let mut fleet = Fleet::prepare(&FleetOptions::new("harness")).unwrap();
    fleet.start_containerd().unwrap();
    let images = fleet.containerd.images().unwrap();
    for image in [DEMO_IMAGE, PAUSE_IMAGE] {
        assert!(images.iter().any(|i| i == image), "{images:?}");
    }
    let out = fleet
        .containerd
        .ctr(&[
            "run",
            "--rm",
            DEMO_IMAGE,
            "job",
            "/bin/demo-inference",
            "job",
            "--steps",
            "5",
        ])
        .unwrap();
    assert!(out.contains("step 5/5"), "{out}");

    fleet
        .containerd
        .ctr(&["run", "--detach", DEMO_IMAGE, "serve"])
        .unwrap();
    let pid = wait::until("task", Duration::from_secs(10), || {
        let all = fleet.containerd.running(None).unwrap();
        all.first().copied().ok_or_else(|| format!("{all:?}"))
    })
    .unwrap();
    let task = process::ProcessId::of(pid).unwrap();

    // kill -9 of containerd leaves the container alone.
    fleet.containerd.kill();
    assert!(task.alive());
    fleet.restart_containerd().unwrap();
    assert_eq!(fleet.containerd.running(None).unwrap(), [pid]);

    let (dir, bridge) = (fleet.dir.clone(), fleet.network.bridge.clone());
    drop(fleet);
    assert!(!task.alive());
    assert!(!dir.exists());
    assert!(process::run("ip", &["link", "show", &bridge]).is_err());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*dir.to_string_lossy()), "{mounts}");
    assert!(state::all().iter().all(|s| s.dir != dir));
}

#[test]
fn containers_go_although_containerd_is_gone() {
    if skipped() {
        return;
    }
    let mut fleet = Fleet::prepare(&FleetOptions::new("no-containerd")).unwrap();
    fleet.start_containerd().unwrap();
    let name = "lab-cgroup-probe";
    let group = format!("/k8s.io/{name}");
    fleet
        .containerd
        .ctr(&["run", "--detach", "--cgroup", &group, DEMO_IMAGE, name])
        .unwrap();
    let pid = fleet.containerd.running(None).unwrap()[0];
    let task = process::ProcessId::of(pid).unwrap();
    fleet.containerd.kill();
    drop(fleet);
    assert!(!task.alive());
    let left = std::fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .flatten()
        .map(|e| e.path().join("k8s.io").join(name))
        .find(|p| p.exists());
    assert_eq!(left, None);
}

#[test]
fn a_lab_whose_owner_was_killed_is_cleaned_up_by_the_next() {
    if skipped() {
        return;
    }
    let fleet = Fleet::prepare(&FleetOptions::new("orphan").beside_others()).unwrap();
    let mut lost = state::State::read(&fleet.dir).unwrap();
    let dir = fleet.dir.clone();
    std::mem::forget(fleet);
    lost.owner = Some(process::ProcessId {
        pid: std::process::id(),
        started: 1,
    });
    lost.write().unwrap();
    drop(Fleet::prepare(&FleetOptions::new("next")).unwrap());
    // Another test's fleet may have found it first, and be in the middle of removing it.
    wait::until("its folder is gone", Duration::from_secs(10), || {
        if dir.exists() {
            Err(dir.display().to_string())
        } else {
            Ok(())
        }
    })
    .unwrap();
}
