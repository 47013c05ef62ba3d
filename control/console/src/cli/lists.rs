//! `nodes`, `workloads`, `placements`.

use std::fmt::Debug;
use std::time::Duration;

use hyperion_api::node::HyperionNode;
use hyperion_api::placement::HyperionPlacement;
use hyperion_api::workload::HyperionWorkload;
use jiff::Timestamp;
use kube::api::{Api, ListParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::OutputArgs;
use super::output::{Format, Out};
use super::table;
use crate::connect::Connection;
use crate::error::CliError;
use crate::fleet::column::{Context, Row};
use crate::fleet::{Change, Fleet, Node, Placement, Store, Workload};

/// Objects asked for at a time.
const PAGE: u32 = 500;
/// Live values are an extra: a list must not wait for them.
const LIVE_PATIENCE: Duration = Duration::from_secs(2);

/// Flags of `nodes`.
#[derive(Debug, clap::Args)]
pub struct NodesArgs {
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags of lists of namespaced objects.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// All namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Everything that `api` holds.
///
/// # Errors
/// As the API server says; `what` completes "cannot …".
pub async fn list_all<K>(api: &Api<K>, params: ListParams, what: &str) -> Result<Vec<K>, CliError>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api
            .list(&params)
            .await
            .map_err(|e| CliError::api(what, &e))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

/// A list of API objects as `kubectl` prints it.
///
/// # Errors
/// As [`Out::value`].
pub fn print_objects<K: Serialize>(
    objects: &[K],
    format: Format,
    out: &Out,
) -> Result<(), CliError> {
    out.value(
        format,
        &json!({"apiVersion": "v1", "kind": "List", "items": objects}),
    )
}

/// Now, milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// `hyperion nodes`.
///
/// # Errors
/// The nodes cannot be listed.
pub async fn nodes(connection: &Connection, args: &NodesArgs, out: &Out) -> Result<(), CliError> {
    let client = &connection.client;
    let api: Api<HyperionNode> = Api::all(client.clone());
    let objects = list_all(&api, ListParams::default(), "list nodes").await?;
    if let Some(format) = args.output.output {
        return print_objects(&objects, format, out);
    }
    let now_ms = now_ms();
    let mut fleet = Fleet::default();
    fleet.apply(
        Change::Nodes(objects.iter().map(Node::from).collect()),
        now_ms,
    );
    // Both are extras of the table: without them it shows dashes and zeros.
    let placements: Api<HyperionPlacement> = Api::all(client.clone());
    if let Ok(found) = list_all(&placements, ListParams::default(), "list placements").await {
        let rows = found.iter().map(Placement::from).collect();
        fleet.apply(Change::Placements(rows), now_ms);
    }
    if let Ok(Ok(live)) = tokio::time::timeout(LIVE_PATIENCE, connection.live(0)).await {
        fleet.apply(Change::Live(live.nodes), now_ms);
    }
    print_rows(&fleet.nodes, &[], now_ms, "nodes", out)
}

/// `hyperion workloads`.
///
/// # Errors
/// The workloads cannot be listed.
pub async fn workloads(
    connection: &Connection,
    args: &ListArgs,
    out: &Out,
) -> Result<(), CliError> {
    let api: Api<HyperionWorkload> = scoped(connection, args);
    let objects = list_all(&api, ListParams::default(), "list workloads").await?;
    if let Some(format) = args.output.output {
        return print_objects(&objects, format, out);
    }
    let now_ms = now_ms();
    let mut fleet = Fleet::default();
    let rows = objects.iter().map(Workload::from).collect();
    fleet.apply(Change::Workloads(rows), now_ms);
    let hidden: &[usize] = if args.all_namespaces { &[] } else { &[1] };
    print_rows(&fleet.workloads, hidden, now_ms, "workloads", out)
}

/// `hyperion placements`.
///
/// # Errors
/// The placements cannot be listed.
pub async fn placements(
    connection: &Connection,
    args: &ListArgs,
    out: &Out,
) -> Result<(), CliError> {
    let api: Api<HyperionPlacement> = scoped(connection, args);
    let objects = list_all(&api, ListParams::default(), "list placements").await?;
    if let Some(format) = args.output.output {
        return print_objects(&objects, format, out);
    }
    let now_ms = now_ms();
    let mut fleet = Fleet::default();
    let rows = objects.iter().map(Placement::from).collect();
    fleet.apply(Change::Placements(rows), now_ms);
    print_rows(&fleet.placements, &[], now_ms, "placements", out)
}

/// The API of one namespace, or of all.
pub fn scoped<K>(connection: &Connection, args: &ListArgs) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    if args.all_namespaces {
        Api::all(connection.client.clone())
    } else {
        Api::namespaced(connection.client.clone(), &connection.namespace)
    }
}

/// Rows as a table, in their first order.
///
/// # Errors
/// As [`Out::write`].
pub fn print_rows<T: Row>(
    store: &Store<T>,
    hidden: &[usize],
    now_ms: i64,
    what: &str,
    out: &Out,
) -> Result<(), CliError> {
    if store.is_empty() && out.width.is_some() {
        return out.line(&format!("no {what}"));
    }
    let mut rows: Vec<&T> = store.iter().map(|(_, row)| row).collect();
    let (column, _) = T::FIRST_SORT;
    rows.sort_by(|a, b| a.order(b, column).then_with(|| a.id().cmp(b.id())));
    out.write(table::render(&rows, hidden, Context { now_ms }, out).as_bytes())
}
