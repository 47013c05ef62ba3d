//! Builders for tests.

use std::fs;
use std::path::Path;

use hyperion_proto::agent_v1::{Container, PodSpec, RestartPolicy, StartReplica};
use hyperion_proto::convert;
use hyperion_proto::domain::{ReplicaKey, Start};

use crate::supervisor::Desired;

pub fn key(workload: &str, index: u32) -> ReplicaKey {
    ReplicaKey {
        namespace: "default".to_owned(),
        workload: workload.to_owned(),
        uid: format!("uid-{workload}"),
        index,
    }
}

pub fn order(workload: &str, index: u32, generation: u64) -> StartReplica {
    StartReplica {
        key: Some((&key(workload, index)).into()),
        generation,
        pod: Some(PodSpec {
            containers: vec![Container {
                name: "main".to_owned(),
                image: "demo:1".to_owned(),
                ..Container::default()
            }],
            restart_policy: RestartPolicy::OnFailure.into(),
            ..PodSpec::default()
        }),
        command_id: 0,
        ..Default::default()
    }
}

pub fn start(workload: &str, index: u32, generation: u64) -> Start {
    convert::start(&order(workload, index, generation)).unwrap()
}

pub fn desired(workload: &str, index: u32, generation: u64) -> Desired {
    Desired {
        start: start(workload, index, generation),
        finished: None,
    }
}

/// Copies a folder with all that is in it.
pub fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
