//! The command line: parse, connect, run one command, say clearly what went wrong.
//!
//! Exit status: 0 done, 1 failed, 2 wrong use.

pub mod apply;
pub mod cost;
pub mod explain;
pub mod image;
pub mod lists;
pub mod logs;
pub mod node;
pub mod output;
pub mod rollout;
pub mod site;
pub mod table;
pub mod token;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::connect::{ConnectArgs, Connection};
use crate::error::CliError;
use crate::top;
use output::{Format, Out};

/// Look at and steer a fleet of nodes and the workloads on it.
///
/// Needs nothing but a kubeconfig: --kubeconfig, KUBECONFIG, or ~/.kube/config.
#[derive(Debug, Parser)]
#[command(name = "hyperion", version, max_term_width = 100)]
pub struct Cli {
    /// What all commands share.
    #[command(flatten)]
    pub global: Global,
    /// Command.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Kubeconfig to use
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace; by default that of the kubeconfig's context
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// No colours, as with NO_COLOR=1
    #[arg(long, global = true, alias = "no-color")]
    pub no_colour: bool,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List nodes with their state, load and price
    #[command(visible_alias = "node-list")]
    Nodes(lists::NodesArgs),
    /// List workloads
    Workloads(lists::ListArgs),
    /// List placements: which replica is on which node
    Placements(lists::ListArgs),
    /// Say why the replicas of a workload are where they are, or have no place
    Explain(explain::Args),
    /// Say what workloads have cost, and what spot and their places have saved
    Cost(cost::Args),
    /// Print the logs of a replica
    Logs(logs::Args),
    /// Make, list and revoke join tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Prepare images of devices
    #[command(subcommand)]
    Image(image::Command),
    /// Cordon, drain, revoke a node
    #[command(subcommand)]
    Node(node::Command),
    /// List, show, pause and resume rollouts of new versions
    #[command(subcommand)]
    Rollout(rollout::Command),
    /// Create or change objects from YAML files
    Apply(apply::Args),
    /// Operate a site from one of its devices, without the control plane
    #[command(subcommand)]
    Site(site::Command),
    /// Print a completion script for a shell
    Completion {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Watch the fleet in the terminal
    Top(top::Args),
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // A closed pipe is no reason to fail: `hyperion --help | head`.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let out = Out::detect(cli.global.no_colour);
    match run(cli, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::from(error.code)
        }
    }
}

fn run(cli: Cli, out: &Out) -> Result<(), CliError> {
    // Only the first call counts, and any provider that is installed already will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::new(format!("cannot start: {e}")))?;
    let Cli { global, command } = cli;
    runtime.block_on(async {
        let how = ConnectArgs {
            kubeconfig: global.kubeconfig,
            namespace: global.namespace,
        };
        let connected = || how.connect();
        match command {
            Command::Completion { shell } => out.write(completion(shell).as_bytes()),
            Command::Top(args) => {
                let connect = args.simulate.is_none().then(|| how.clone());
                top::run(&args, connect, out.colour).await
            }
            Command::Nodes(args) => lists::nodes(&connected().await?, &args, out).await,
            Command::Workloads(args) => lists::workloads(&connected().await?, &args, out).await,
            Command::Placements(args) => lists::placements(&connected().await?, &args, out).await,
            Command::Explain(args) => explain::run(&connected().await?, &args, out).await,
            Command::Cost(args) => cost::run(&connected().await?, &args, out).await,
            Command::Logs(args) => logs::run(&connected().await?, &args, out).await,
            Command::Token(command) => token::run(&connected().await?, &command, out).await,
            Command::Image(command) => image::run(command, connected, out).await,
            Command::Node(command) => node::run(&connected().await?, &command, out).await,
            Command::Rollout(command) => rollout::run(&connected().await?, &command, out).await,
            Command::Site(command) => site::run(&command, how.namespace.as_deref(), out).await,
            Command::Apply(args) => {
                let documents = apply::read(&args.filename)?;
                let explicit = how.namespace.as_deref();
                apply::run(&connected().await?, &args, documents, explicit, out).await
            }
        }
    })
}

fn completion(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hyperion", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// `NAME` or `NAMESPACE/NAME` as the TUI shows it, with the namespace that counts.
#[must_use]
pub fn split_name<'a>(argument: &'a str, connection: &'a Connection) -> (&'a str, &'a str) {
    argument
        .split_once('/')
        .unwrap_or((&connection.namespace, argument))
}

/// Flag `-o`.
#[derive(Debug, Clone, Default, Args)]
pub struct OutputArgs {
    /// Print the objects instead of a table
    #[arg(short, long, value_name = "FORMAT", value_enum)]
    pub output: Option<Format>,
}

#[cfg(test)]
mod scenarios;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_calls_parse() {
        for line in [
            "hyperion nodes",
            "hyperion nodes -o json --kubeconfig /x",
            "hyperion --kubeconfig /x -n lab workloads -o yaml",
            "hyperion placements -A",
            "hyperion explain llm -n prod",
            "hyperion cost -A --daily",
            "hyperion logs llm --replica 2 --container main --tail 50 -f",
            "hyperion token create --site lab --ttl 1h --uses 3 -o json",
            "hyperion token list",
            "hyperion token revoke abc123",
            "hyperion image prepare --image a.img --out /dev/sdb --site lab --uses 20 --ttl 30d",
            "hyperion image prepare --stick /media/stick --site lab --label a=b --label c=",
            "hyperion node drain n1",
            "hyperion node cordon n1",
            "hyperion node uncordon n1",
            "hyperion node revoke n1",
            "hyperion rollout list -o json",
            "hyperion rollout show v2",
            "hyperion rollout pause v2 v3",
            "hyperion rollout resume v2 --retry",
            "hyperion apply -f a.yaml -f -",
            "hyperion site status --socket /run/x.sock -o json",
            "hyperion site apply -f a.yaml -n shop --dry-run",
            "hyperion site delete shop/till other",
            "hyperion completion bash",
            "hyperion top",
            "hyperion top --simulate 10000 --no-colour",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn wrong_use_has_exit_status_2_and_names_the_argument() {
        for (line, named) in [
            ("hyperion token create --site lab --ttl never", "--ttl"),
            ("hyperion token create --site La_b", "--site"),
            ("hyperion token create --site lab --uses 0", "--uses"),
            ("hyperion image prepare --site lab", "--image"),
            ("hyperion image prepare --site lab --image a", "--out"),
            ("hyperion image prepare --image a --out b", "--site"),
            (
                "hyperion image prepare --image a --out b --token a.b",
                "--control",
            ),
            (
                "hyperion image prepare --stick a --image b --out c --site lab",
                "--stick",
            ),
            (
                "hyperion image prepare --stick a --site lab --label a",
                "--label",
            ),
            (
                "hyperion image prepare --stick a --site lab --ca-fingerprint sha256:1",
                "--ca-fingerprint",
            ),
            ("hyperion logs llm --replica -1", "-1"),
            ("hyperion nodes -o xml", "--output"),
            ("hyperion node drain", "<NODE>"),
            ("hyperion rollout resume", "<ROLLOUT>"),
            ("hyperion apply", "--filename"),
            ("hyperion site apply", "--filename"),
            ("hyperion site delete", "<WORKLOAD>"),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn every_shell_gets_a_script() {
        use clap::ValueEnum as _;
        for shell in clap_complete::Shell::value_variants() {
            assert!(completion(*shell).contains("hyperion"), "{shell}");
        }
    }
}
