//! `explain`: the decision behind every placement, and why pending replicas have none.

use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::HyperionWorkload;
use kube::api::{Api, ListParams};
use serde_json::json;

use super::lists::list_all;
use super::output::Out;
use super::{OutputArgs, split_name};
use crate::connect::Connection;
use crate::error::CliError;
use crate::fleet::{Placement, Workload, explain};
use crate::text;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Workload, as NAME or NAMESPACE/NAME
    #[arg(value_name = "WORKLOAD")]
    pub workload: String,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Runs it.
///
/// # Errors
/// There is no such workload, or the API server cannot be asked.
pub async fn run(connection: &Connection, args: &Args, out: &Out) -> Result<(), CliError> {
    let (namespace, name) = split_name(&args.workload, connection);
    let object = get_workload(connection, namespace, name).await?;
    let api: Api<HyperionPlacement> = Api::namespaced(connection.client.clone(), namespace);
    let mut placements = list_all(&api, ListParams::default(), "list placements").await?;
    placements.retain(|p| p.spec.workload == name);
    placements.sort_by_key(|p| p.spec.replica);
    if let Some(format) = args.output.output {
        let mut items = vec![json!(object)];
        items.extend(placements.iter().map(|p| json!(p)));
        return out.value(
            format,
            &json!({"apiVersion": "v1", "kind": "List", "items": items}),
        );
    }
    let mut row = Workload::from(&object);
    row.prepare();
    let mut rows: Vec<Placement> = placements.iter().map(Placement::from).collect();
    rows.iter_mut().for_each(Placement::prepare);
    let rows: Vec<&Placement> = rows.iter().collect();
    let mut all = String::new();
    for line in explain::workload_lines(&row, &rows, out.ascii) {
        all.push_str(&text::render_line(&line, out.colour));
        all.push('\n');
    }
    out.write(all.as_bytes())
}

/// The workload, or an error that says where to look.
///
/// # Errors
/// As for [`run`].
pub async fn get_workload(
    connection: &Connection,
    namespace: &str,
    name: &str,
) -> Result<HyperionWorkload, CliError> {
    let api: Api<HyperionWorkload> = Api::namespaced(connection.client.clone(), namespace);
    let found = api
        .get_opt(name)
        .await
        .map_err(|e| CliError::api(&format!("get workload {name}"), &e))?;
    found.ok_or_else(|| {
        CliError::new(format!("no workload {name:?} in namespace {namespace:?}"))
            .hint("`hyperion workloads -A` lists all of them")
    })
}
