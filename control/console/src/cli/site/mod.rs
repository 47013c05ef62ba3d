//! `site`: operate a site from one of its devices, through the agent, without the control plane.

mod client;
mod convert;
mod model;
mod schema;
mod show;

use std::path::PathBuf;

use client::SiteClient;
use convert::Applied;
use model::{Replica, SiteStatus};

use super::output::{Out, complain};
use super::{OutputArgs, apply as files};
use crate::error::CliError;
use crate::text::clean;

/// Begins the uid of a workload that was applied at a site.
const SITE_UID: &str = "site-";

/// Where the agent answers.
#[derive(Debug, Clone, clap::Args)]
pub struct Socket {
    /// Socket of the agent on this device
    #[arg(long, value_name = "PATH", default_value = "/run/hyperion/agent.sock")]
    pub socket: PathBuf,
}

/// Commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show the site as this device knows it: mode, devices, replicas and who decided
    Status(StatusArgs),
    /// Run the workloads of YAML files at this site while it is cut off
    Apply(ApplyArgs),
    /// Delete workloads that were applied at this site
    Delete(DeleteArgs),
}

/// Flags.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// Agent.
    #[command(flatten)]
    pub socket: Socket,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Flags.
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// Agent.
    #[command(flatten)]
    pub socket: Socket,
    /// File with one or more YAML documents; - is standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub filename: Vec<PathBuf>,
    /// Check the files, and change nothing; needs no agent
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags.
#[derive(Debug, clap::Args)]
pub struct DeleteArgs {
    /// Agent.
    #[command(flatten)]
    pub socket: Socket,
    /// Workloads, as NAME or NAMESPACE/NAME
    #[arg(value_name = "WORKLOAD", required = true)]
    pub workloads: Vec<String>,
}

/// Runs a command. `namespace` is the value of `-n`.
///
/// # Errors
/// No agent answers, or what it or the checks refuse.
pub async fn run(command: &Command, namespace: Option<&str>, out: &Out) -> Result<(), CliError> {
    match command {
        Command::Status(args) => {
            let client = client(&args.socket);
            match args.output.output {
                Some(format) => out.value(format, &client.status().await?),
                None => out.write(show::status(&client.site().await?, out).as_bytes()),
            }
        }
        Command::Apply(args) => apply(args, namespace, out).await,
        Command::Delete(args) => delete(args, namespace, out).await,
    }
}

fn client(socket: &Socket) -> SiteClient {
    SiteClient {
        socket: socket.socket.clone(),
    }
}

async fn apply(args: &ApplyArgs, namespace: Option<&str>, out: &Out) -> Result<(), CliError> {
    let mut all = Vec::new();
    for document in files::read(&args.filename)? {
        all.push(convert::convert(&document, namespace)?);
    }
    if args.dry_run {
        for workload in &all {
            out.line(&applied_line(workload, "checked (dry run)"))?;
        }
        return Ok(());
    }
    let client = client(&args.socket);
    let before = client.site().await?;
    cut_off(&before)?;
    let mut failures = Vec::new();
    for workload in &all {
        match hand_over(&client, &before, workload).await {
            Ok(done) => out.line(&applied_line(workload, done))?,
            Err(error) => failures.push(CliError {
                message: format!(
                    "{}: HyperionWorkload {}: {}",
                    workload.origin, workload.name, error.message
                ),
                ..error
            }),
        }
    }
    told(failures, all.len(), "workloads were refused")
}

fn applied_line(workload: &Applied, done: &str) -> String {
    let replicas = workload.replicas();
    let plural = if replicas == 1 { "" } else { "s" };
    format!(
        "hyperionworkload/{} {done}: {replicas} replica{plural} in namespace {}",
        workload.name, workload.namespace
    )
}

/// Gives the workload the uid of the namesake that it changes, or a new one.
async fn hand_over(
    client: &SiteClient,
    before: &SiteStatus,
    workload: &Applied,
) -> Result<&'static str, CliError> {
    let namesake = |r: &&Replica| r.namespace == workload.namespace && r.workload == workload.name;
    let known = before.replicas.iter().find(namesake);
    let (uid, done) = match known {
        None => (
            format!("{SITE_UID}{:032x}", rand::random::<u128>()),
            "applied",
        ),
        Some(known) if !known.uid.starts_with(SITE_UID) => {
            return Err(CliError::new(
                "the control plane made the workload of this name: change it there when it is back",
            )
            .hint("give the one at the site another name, or delete that here first"));
        }
        Some(known) if !same_type(known, workload) => {
            return Err(CliError::new(
                "field spec.type: can't be changed: delete the workload and make it again",
            ));
        }
        Some(known) => (known.uid.clone(), "changed"),
    };
    client.apply(workload.records(&uid)).await?;
    Ok(done)
}

fn same_type(known: &Replica, workload: &Applied) -> bool {
    known.workload_type.is_empty() || known.workload_type == workload.workload_type
}

async fn delete(args: &DeleteArgs, namespace: Option<&str>, out: &Out) -> Result<(), CliError> {
    let client = client(&args.socket);
    cut_off(&client.site().await?)?;
    let mut failures = Vec::new();
    for workload in &args.workloads {
        let (space, name) = workload
            .split_once('/')
            .unwrap_or((namespace.unwrap_or("default"), workload));
        if ![space, name].iter().all(|part| is_name(part)) {
            let message = format!("{:?} is not NAME or NAMESPACE/NAME", clean(workload));
            failures.push(CliError::usage(message));
            continue;
        }
        match client.delete(space, name).await {
            Ok(()) => out.line(&format!("hyperionworkload/{name} deleted at the site"))?,
            Err(error) => failures.push(error),
        }
    }
    told(failures, args.workloads.len(), "workloads were refused")
}

/// It becomes part of a URL.
fn is_name(text: &str) -> bool {
    hyperion_wire::convert::node_id("name", text).is_ok()
}

/// The agent says the same; here it is said once, and before anything is changed.
fn cut_off(site: &SiteStatus) -> Result<(), CliError> {
    let said = |why: &str| CliError::new(format!("this site is {}: {why}", site.mode));
    match site.mode.as_str() {
        "connected" | "reconciling" => Err(said("the control plane decides")
            .hint("use kubectl or `hyperion apply` with the fleet's kubeconfig")),
        "suspect" => {
            Err(said("whether it is cut off is not known yet").hint("try again in a few seconds"))
        }
        _ => Ok(()),
    }
}

/// One error as it is, of several each and their number.
fn told(mut failures: Vec<CliError>, total: usize, what: &str) -> Result<(), CliError> {
    match (failures.pop(), failures.len()) {
        (None, _) => Ok(()),
        (Some(only), 0) => Err(only),
        (Some(last), others) => {
            failures.iter().chain([&last]).for_each(complain);
            Err(CliError::new(format!("{} of {total} {what}", others + 1)))
        }
    }
}

#[cfg(test)]
mod tests;
