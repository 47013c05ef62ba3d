//! `node cordon|uncordon|drain|revoke`: what people may want of a node goes into its spec.

use hyperion_api::node::HyperionNode;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::output::Out;
use crate::connect::Connection;
use crate::error::CliError;
use crate::text::clean;

/// Commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Give a node no new replicas; those on it stay
    Cordon(Target),
    /// Give a node new replicas again; ends a drain, too
    Uncordon(Target),
    /// Move the replicas of a node away, and give it no new ones
    Drain(Target),
    /// Refuse the certificate of a node from now on: it has to join anew
    Revoke(Target),
}

/// Which nodes.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Nodes
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<String>,
}

impl Command {
    fn parts(&self) -> (&Target, Value, &'static str) {
        match self {
            Self::Cordon(t) => (t, json!({"unschedulable": true}), "cordoned"),
            Self::Uncordon(t) => (
                t,
                json!({"unschedulable": false, "draining": false}),
                "uncordoned",
            ),
            Self::Drain(t) => (
                t,
                json!({"unschedulable": true, "draining": true}),
                "draining",
            ),
            Self::Revoke(t) => (t, json!({"revoked": true}), "revoked"),
        }
    }
}

/// Runs it.
///
/// # Errors
/// There is no such node, or the API server refuses the change. Nodes named before it are changed.
pub async fn run(connection: &Connection, command: &Command, out: &Out) -> Result<(), CliError> {
    let (target, spec, done) = command.parts();
    let api: Api<HyperionNode> = Api::all(connection.client.clone());
    for node in &target.nodes {
        let patch = Patch::Merge(json!({ "spec": spec }));
        api.patch(node, &PatchParams::default(), &patch)
            .await
            .map_err(|e| {
                if matches!(&e, kube::Error::Api(status) if status.code == 404) {
                    return CliError::new(format!("no node {node:?}"))
                        .hint("`hyperion nodes` lists them");
                }
                CliError::api(&format!("change node {node}"), &e)
            })?;
        out.line(&format!("node {} {done}", clean(node)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uncordon_undoes_cordon_and_drain_but_not_revoke() {
        let target = || Target { nodes: Vec::new() };
        let fields = |c: Command| c.parts().1.as_object().unwrap().clone();
        let undone = fields(Command::Uncordon(target()));
        for command in [Command::Cordon(target()), Command::Drain(target())] {
            for field in fields(command).keys() {
                assert_eq!(undone.get(field), Some(&json!(false)), "{field}");
            }
        }
        assert!(!undone.contains_key("revoked"));
    }
}
