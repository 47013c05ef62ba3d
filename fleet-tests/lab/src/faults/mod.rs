//! What faults of clouds and of the control plane cost: the whole system, with one thing broken at a
//! time, looked at from outside.
//!
//! - [`price`]: a price rises a little, then triples;
//! - [`zone`]: all spot machines of a zone are taken back, with the notices of each cloud;
//! - [`dark`]: a region goes dark, or a cluster loses its API server while its nodes run on;
//! - [`crash`]: the operator is killed at every step of a move.

pub mod api;
pub mod cloud;
pub mod crash;
pub mod dark;
pub mod gate;
mod kubelet;
pub mod leaks;
pub mod price;
pub mod seen;
pub mod stage;
pub mod zone;

use std::io::Write;

use serde_json::{Value, json};

use crate::measure::{Measured, build_profile, cores};
use crate::proc::cpu_model;
use crate::scene::{service, set};
use seen::Served;

/// Progress, for people: figures go to standard output.
pub fn say(text: &str) {
    // A closed standard error is nobody's concern.
    let _closed = writeln!(std::io::stderr(), "{text}");
}

/// Flags of a control plane that decides by rules, and does not look again at what runs.
fn by_rules() -> Vec<String> {
    ["--policy", "rules", "--reconsider", "0"]
        .map(str::to_owned)
        .into()
}

/// A service with a goal, of one replica or more.
fn wanted(name: &str, replicas: u32, goal: &str) -> Value {
    let mut object = service(name, replicas, None);
    set(&mut object, "/spec/policy/goal", json!(goal));
    object
}

/// The same, of which at most one copy may run. It listens elsewhere, so that nobody takes its answers
/// for those of another.
fn exclusive(name: &str, goal: &str) -> Value {
    let mut object = wanted(name, 1, goal);
    let container = "/spec/template/spec/containers/0";
    let args = json!(["serve", "--listen", "0.0.0.0:8081", "--name", name]);
    set(&mut object, &format!("{container}/args"), args);
    let port = format!("{container}/readinessProbe/httpGet/port");
    set(&mut object, &port, json!(8081));
    set(&mut object, "/spec/policy/exclusive", json!(true));
    object
}

/// Notes what those got who asked.
#[expect(clippy::cast_precision_loss, reason = "some thousands of requests")]
fn note_served(measured: &mut Measured, prefix: &str, served: &Served) {
    measured.figure(&format!("{prefix}requests"), served.asked as f64);
    measured.figure(&format!("{prefix}failed_requests"), served.failed as f64);
    measured.figure(&format!("{prefix}gap_s"), served.gap.as_secs_f64());
}

/// Counts lines, and says them.
#[expect(clippy::cast_precision_loss, reason = "a few lines")]
fn note_lines(measured: &mut Measured, name: &str, lines: &[String]) {
    for line in lines.iter().take(20) {
        say(&format!("{name}: {line}"));
    }
    measured.figure(name, lines.len() as f64);
}

fn note_conditions(measured: &mut Measured, real: bool) {
    let (api, kubelets) = if real {
        ("real kube-apiserver", "kwok: Pods are ready at once")
    } else {
        (
            "embedded, in the measuring process",
            "played: Pods are ready after 1 s",
        )
    };
    measured.condition("api_servers", api);
    measured.condition("kubelets", kubelets);
    measured.condition("programs", build_profile());
    measured.condition("cores", cores());
    measured.condition("cpu", cpu_model());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    measured.condition("load_average", load.trim());
}
