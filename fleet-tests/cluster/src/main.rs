//! Builds the real API server for tests, and the programs that run and launch its nodes, for
//! `make test-cluster`, and says where the API server is.
//!
//! ```text
//! hyperion-test-apiserver [--no-build]
//! ```
//!
//! Exit status 3, after a line that begins with `SKIPPED`, where it can't be built here, or is not
//! built yet and `--no-build` is given.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};
use hyperion_cluster::build::{self, Outcome, Program};
use hyperion_cluster::{Choice, chosen};

const SKIPPED: u8 = 3;

fn main() -> ExitCode {
    if let Choice::Given(path) = chosen() {
        tell(&format!(
            "the tests run on the cluster of {}",
            path.display()
        ));
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(Outcome::Built(program)) => {
            // A closed standard output is nobody's concern here.
            drop(writeln!(std::io::stdout(), "{}", program.display()));
            ExitCode::SUCCESS
        }
        Ok(Outcome::Impossible(reason)) => {
            tell(&format!("SKIPPED: tests on a real API server: {reason}"));
            ExitCode::from(SKIPPED)
        }
        Err(e) => {
            tell(&format!("hyperion-test-apiserver: {e:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Outcome> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let build = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => true,
        ["--no-build"] => false,
        _ => bail!("usage: hyperion-test-apiserver [--no-build]"),
    };
    let server = get(Program::ApiServer, build)?;
    if let Outcome::Built(_) = server {
        for program in [Program::Kwok, Program::Karpenter] {
            if let Outcome::Impossible(reason) = get(program, build)? {
                tell(&format!("tests that need it are left out: {reason}"));
            }
        }
    }
    Ok(server)
}

fn get(program: Program, build: bool) -> Result<Outcome> {
    let name = program.name();
    if let Some(program) = program.kept()? {
        return Ok(Outcome::Built(program));
    }
    if !build {
        let reason = format!("{name} is not built: `make test-cluster` builds it, once");
        return Ok(Outcome::Impossible(reason));
    }
    tell(&format!(
        "building {name}; the first time takes many minutes"
    ));
    build::build(program)
}

fn tell(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
