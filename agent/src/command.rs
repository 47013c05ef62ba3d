//! What the program is asked to do: to be the agent, or one thing beside it.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Subcommand};

use crate::config::Config;
use crate::reset::Reset;
use crate::runtime::{Cri, import_oci_tar, shorten};
use crate::telemetry::sensors::{Sensors, json, table};
use crate::update::Update;

/// What to do.
#[derive(Debug, Clone)]
pub enum Command {
    /// To be the agent, until it is stopped.
    Run(Box<Config>),
    /// Something with this machine's images, and then to end.
    Image(Image),
    /// To say what this machine's sensors show, and then to end.
    Sensors(SensorsTable),
    /// To make this device one that has never been in a fleet, and then to end.
    Reset(Reset),
    /// Something with this device's updates, and then to end.
    Update(Update),
}

// The commands beside the agent itself. A doc comment would become the program's description.
#[derive(Debug, Subcommand)]
enum Beside {
    /// Images on this machine
    Image {
        #[command(subcommand)]
        image: Image,
    },
    /// What this machine's sensors show, and where that is read
    Sensors(SensorsTable),
    /// Forget the fleet: remove this node's containers, its store and its identity
    Reset(Reset),
    /// Updates of this device and of its agent
    Update {
        #[command(subcommand)]
        update: Update,
    },
}

/// Flags of `sensors`.
#[derive(Debug, Clone, Args)]
pub struct SensorsTable {
    /// Root of procfs and sysfs, such as a copy of another machine's
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// As one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Something with this machine's images.
#[derive(Debug, Clone, Subcommand)]
pub enum Image {
    /// Bring images from a file into containerd, for machines without a registry
    Import(Import),
}

/// Flags of `image import`.
#[derive(Debug, Clone, Args)]
pub struct Import {
    /// OCI image layout in a tar file, as `ctr image export` writes it; not compressed
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Socket of containerd
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub containerd_socket: PathBuf,
}

impl Command {
    /// Reads a command line; the first word is the program's name.
    ///
    /// # Errors
    /// Names the flag or word that is wrong. Also help and version, which are to be printed.
    pub fn read(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        // The flags of the agent need not, and can't, be given where something else is asked for.
        let program = Beside::augment_subcommands(Config::command())
            .subcommand_negates_reqs(true)
            .args_conflicts_with_subcommands(true);
        let matches = program.try_get_matches_from(words)?;
        if matches.subcommand_name().is_some() {
            return Ok(match Beside::from_arg_matches(&matches)? {
                Beside::Image { image } => Self::Image(image),
                Beside::Sensors(flags) => Self::Sensors(flags),
                Beside::Reset(flags) => Self::Reset(flags),
                Beside::Update { update } => Self::Update(update),
            });
        }
        Config::from_arg_matches(&matches).map(|config| Self::Run(Box::new(config)))
    }
}

/// Does something with images, and writes the names of those that it brought to `out`, one a line.
///
/// # Errors
/// Names the file and what is wrong with it, or containerd's socket.
pub async fn image(command: Image, out: &mut impl Write) -> anyhow::Result<()> {
    let Image::Import(Import {
        file,
        containerd_socket,
    }) = command;
    let names = import_oci_tar(&Cri::new(containerd_socket), &file).await?;
    for name in names {
        // It comes from the file: a terminal must not obey it.
        writeln!(out, "{}", shorten(&name)).context("standard output")?;
    }
    out.flush().context("standard output")
}

/// Writes what sensors show to `out`.
///
/// # Errors
/// Names the folder that is none, or says that the output can't be written.
pub async fn sensors(flags: SensorsTable, out: &mut impl Write) -> anyhow::Result<()> {
    let root = &flags.root;
    anyhow::ensure!(root.is_dir(), "--root {}: no such folder", root.display());
    let look = Sensors::new(root).first_look().await;
    if flags.json {
        writeln!(out, "{:#}", json(&look))
    } else {
        write!(out, "{}", table(&look))
    }
    .and_then(|()| out.flush())
    .context("standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        let words = line.split(' ').map(OsString::from);
        Command::read(words).map_err(|e| e.to_string())
    }

    #[test]
    fn without_a_command_it_is_the_agent() {
        let command = read("hyperion-agent --control c:7444 --site lab").unwrap();
        let Command::Run(config) = command else {
            panic!("{command:?}");
        };
        assert_eq!(
            (config.control.as_str(), config.site.as_str()),
            ("c:7444", "lab")
        );
        assert!(read("hyperion-agent").unwrap_err().contains("--control"));
    }

    #[test]
    fn an_import_needs_no_flag_of_the_agent() {
        let command = read("hyperion-agent image import a.tar --containerd-socket s").unwrap();
        let Command::Image(Image::Import(import)) = command else {
            panic!("{command:?}");
        };
        assert_eq!(import.file, PathBuf::from("a.tar"));
        assert_eq!(import.containerd_socket, PathBuf::from("s"));
    }

    #[tokio::test]
    async fn sensors_of_another_root_are_told_as_table_and_json() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/debian12-x86_64");
        for (json, expected) in [("", "48.5  celsius"), (" --json", "\"value\": 48.5")] {
            let line = format!("hyperion-agent sensors --root {root}{json}");
            let Ok(Command::Sensors(flags)) = read(&line) else {
                panic!("{line}");
            };
            let mut out = Vec::new();
            sensors(flags, &mut out).await.unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains(expected), "{text}");
        }
        let Ok(Command::Sensors(flags)) = read("hyperion-agent sensors --root /nowhere") else {
            panic!();
        };
        let error = sensors(flags, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }

    #[test]
    fn an_update_needs_no_flag_of_the_agent() {
        let line = "hyperion-agent update install a.swu --kind agent --ready-seconds 90";
        let Ok(Command::Update(Update::Install { install, .. })) = read(line) else {
            panic!("{line}");
        };
        assert_eq!(install.file, PathBuf::from("a.swu"));
        assert_eq!(install.ready_seconds, 90);
        let command = read("hyperion-agent update status --json");
        assert!(matches!(
            command,
            Ok(Command::Update(Update::Status { json: true, .. }))
        ));
    }

    #[test]
    fn a_line_that_asks_for_two_things_or_none_is_refused() {
        for bad in [
            "hyperion-agent image",
            "hyperion-agent image import",
            "hyperion-agent image import a.tar b.tar",
            "hyperion-agent image import a.tar --control c:7444",
            "hyperion-agent --control c:7444 image import a.tar",
            "hyperion-agent image remove a",
            "hyperion-agent reset",
            "hyperion-agent reset --yes --unfinished",
            "hyperion-agent --control c:7444 reset --yes",
            "hyperion-agent update",
            "hyperion-agent update install",
            "hyperion-agent update install a.swu --kind kernel",
            "hyperion-agent update status a.swu",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
