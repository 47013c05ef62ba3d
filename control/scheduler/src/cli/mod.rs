//! Commands and their flags.

mod curve;
mod eval;
mod export;
mod learn;
mod train;
mod validation;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use hyperion_policy::PolicyFile;
use hyperion_scheduler::world::World;

/// Trains, evaluates and exports placement policies.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a policy by PPO in the simulator.
    Train(train::Args),
    /// Play episodes with every scheduler and report figures.
    Eval(eval::Args),
    /// Write a policy in another precision.
    Export(export::Args),
    /// Continue a policy from real outcomes; it is written only where it is shown to be better.
    Learn(learn::Args),
}

/// Runs a command.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Train(args) => train::run(&args)?,
        Command::Eval(args) => eval::run(&args)?,
        Command::Export(args) => export::run(&args)?,
        Command::Learn(args) => return learn::run(&args),
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the world of a directory, or takes the one that is built in; warnings go to standard
/// error.
fn world(data: Option<&Path>) -> Result<World> {
    let Some(dir) = data else {
        say("no --data: the small built-in world is used");
        return Ok(World::builtin());
    };
    let (world, warnings) = World::load(dir)?;
    for warning in warnings {
        say(&format!("warning: {warning}"));
    }
    Ok(world)
}

/// Says something to people: standard output is for results.
fn say(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a result.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").context("standard output")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

fn policy(path: &Path) -> Result<PolicyFile> {
    PolicyFile::read(&read(path)?).with_context(|| path.display().to_string())
}

/// Writes a file in whole or not at all.
fn write(path: &Path, content: &[u8]) -> Result<()> {
    let part = PathBuf::from(format!("{}.part", path.display()));
    std::fs::write(&part, content).with_context(|| part.display().to_string())?;
    std::fs::rename(&part, path).with_context(|| path.display().to_string())
}

/// Cores of this machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The policy that is part of the program.
fn built_in() -> Result<PolicyFile> {
    PolicyFile::read(hyperion_policy::BUILT_IN).context("the built-in policy")
}

/// Names of a data directory's files and a hash over their content.
fn fingerprint(dir: &Path) -> Result<(Vec<String>, String)> {
    use sha2::{Digest, Sha256};
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let entry = entry.with_context(|| folder.display().to_string())?;
            let path = entry.path();
            let named = || path.display().to_string();
            if entry.file_type().with_context(named)?.is_dir() {
                folders.push(path);
            } else if std::fs::metadata(&path).with_context(named)?.is_file() {
                files.push(path);
            } else {
                // A pipe would be read for ever, and a link to a folder may lead back here.
                bail!("{} is neither a file nor a folder of the data", named());
            }
        }
    }
    files.sort();
    let mut hash = Sha256::new();
    let mut names = Vec::new();
    for path in &files {
        let name = path.strip_prefix(dir).unwrap_or(path).display().to_string();
        hash.update(name.as_bytes());
        hash.update(read(path)?);
        names.push(name);
    }
    let digest = hash.finalize();
    Ok((names, digest.iter().map(|b| format!("{b:02x}")).collect()))
}

#[cfg(test)]
mod tests;
