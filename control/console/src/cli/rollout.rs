//! `rollout list|show|pause|resume`.

use hyperion_api::rollout::HyperionRollout;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::OutputArgs;
use super::lists::{list_all, now_ms, print_objects, print_rows};
use super::output::Out;
use crate::connect::Connection;
use crate::error::CliError;
use crate::fleet::{Change, Fleet, Rollout};
use crate::text::{self, clean};

/// Commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List rollouts and how far they are
    List {
        /// Output.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Say what a rollout does, what it waits for and which nodes failed
    Show {
        /// Rollout
        #[arg(value_name = "ROLLOUT")]
        rollout: String,
        /// Output.
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Begin nothing more; nodes that restart at this moment go on
    Pause {
        /// Rollouts
        #[arg(value_name = "ROLLOUT", required = true)]
        rollouts: Vec<String>,
    },
    /// Go on with a rollout that was paused, or has stopped because too many nodes failed
    Resume {
        /// Rollouts
        #[arg(value_name = "ROLLOUT", required = true)]
        rollouts: Vec<String>,
        /// Let nodes that failed try again
        #[arg(long)]
        retry: bool,
    },
}

/// Runs it.
///
/// # Errors
/// There is no such rollout, or the API server refuses the change. Rollouts named before it are
/// changed.
pub async fn run(connection: &Connection, command: &Command, out: &Out) -> Result<(), CliError> {
    let api: Api<HyperionRollout> = Api::all(connection.client.clone());
    match command {
        Command::List { output } => {
            let objects = list_all(&api, ListParams::default(), "list rollouts").await?;
            if let Some(format) = output.output {
                return print_objects(&objects, format, out);
            }
            let now_ms = now_ms();
            let mut fleet = Fleet::default();
            let rows = objects.iter().map(Rollout::from).collect();
            fleet.apply(Change::Rollouts(rows), now_ms);
            print_rows(&fleet.rollouts, &[], now_ms, "rollouts", out)
        }
        Command::Show { rollout, output } => {
            let object = get(&api, rollout).await?;
            if let Some(format) = output.output {
                return out.value(format, &object);
            }
            let mut row = Rollout::from(&object);
            row.prepare();
            for line in row.lines(out.ascii) {
                out.line(&text::render_line(&line, out.colour))?;
            }
            Ok(())
        }
        Command::Pause { rollouts } => {
            for name in rollouts {
                change(&api, name, json!({ "paused": true })).await?;
                out.line(&format!("rollout {} paused", clean(name)))?;
            }
            Ok(())
        }
        Command::Resume { rollouts, retry } => {
            for name in rollouts {
                let spec = resumed(&get(&api, name).await?, *retry);
                change(&api, name, spec).await?;
                out.line(&format!("rollout {} resumed", clean(name)))?;
            }
            Ok(())
        }
    }
}

/// What has to change for it to go on: the failures so far have been looked at, and are tried again
/// where that is wanted.
fn resumed(rollout: &HyperionRollout, retry: bool) -> Value {
    let failed = rollout.status.as_ref().map_or(0, |s| s.failed);
    let failed = u32::try_from(failed).unwrap_or(0);
    let spec = &rollout.spec;
    if retry {
        // They begin anew, and so does the count; those that are not back can't, and have been seen.
        let failures = rollout.status.iter().flat_map(|s| &s.failures);
        let away = failures.filter(|f| f.reason == "NotBack").count();
        return json!({
            "paused": false, "attempt": spec.attempt.saturating_add(1), "acceptedFailures": away,
        });
    }
    json!({ "paused": false, "acceptedFailures": failed.max(spec.accepted_failures) })
}

fn missing(name: &str) -> CliError {
    CliError::new(format!("no rollout {name:?}")).hint("`hyperion rollout list` lists them")
}

async fn get(api: &Api<HyperionRollout>, name: &str) -> Result<HyperionRollout, CliError> {
    let found = api.get_opt(name).await;
    let found = found.map_err(|e| CliError::api(&format!("get rollout {name}"), &e))?;
    found.ok_or_else(|| missing(name))
}

async fn change(api: &Api<HyperionRollout>, name: &str, spec: Value) -> Result<(), CliError> {
    let patch = Patch::Merge(json!({ "spec": spec }));
    let changed = api.patch(name, &PatchParams::default(), &patch).await;
    changed.map(drop).map_err(|e| {
        if matches!(&e, kube::Error::Api(status) if status.code == 404) {
            return missing(name);
        }
        CliError::api(&format!("change rollout {name}"), &e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(accepted: u32, failed: i32) -> HyperionRollout {
        serde_json::from_value(json!({
            "apiVersion": "hyperion.io/v1alpha1", "kind": "HyperionRollout",
            "metadata": { "name": "r" },
            "spec": { "acceptedFailures": accepted, "attempt": 2, "paused": true, "bundle": {
                "url": "https://a/b", "sha256": "0".repeat(64), "version": "2" } },
            "status": { "failed": failed, "nodes": 10, "done": 5, "waveOf": "2/3",
                "phase": "Paused", "reason": "TooManyFailures", "message": "3 nodes failed",
                "moving": [{ "name": "n2", "stage": "Restarting",
                    "since": "2026-01-01T00:00:00Z" }],
                "failures": [{ "node": "n1", "reason": "RolledBack", "message": "no\u{1b}[31m" }] },
        }))
        .unwrap()
    }

    #[test]
    fn resume_accepts_what_has_failed_or_tries_it_again() {
        let spec = resumed(&rollout(1, 3), false);
        assert_eq!(spec, json!({ "paused": false, "acceptedFailures": 3 }));
        assert_eq!(resumed(&rollout(5, 3), false)["acceptedFailures"], 5);
        let again = resumed(&rollout(1, 3), true);
        assert_eq!(
            (&again["attempt"], &again["acceptedFailures"]),
            (&json!(3), &json!(0))
        );
    }

    #[test]
    fn a_rollout_is_shown_with_its_failures_and_without_control_characters() {
        let mut row = Rollout::from(&rollout(0, 3));
        row.prepare();
        let lines = row.lines(true);
        let text: Vec<String> = lines.iter().map(|l| text::render_line(l, false)).collect();
        let all = text.join("\n");
        for part in [
            "r 2 ",
            "##########..........",
            "5/10 wave 2/3 3 failed TooManyFailures",
            "3 nodes failed",
            "n2 Restarting",
            "n1 RolledBack no",
        ] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert!(!all.contains('\u{1b}'));
    }
}
