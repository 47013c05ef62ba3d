//! `hyperion-image`: builds a container image from a program, for
//! `ctr -n k8s.io image import FILE`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hyperion_images::{Image, pack, standard};

/// Builds container images without Docker, a registry or a network.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Builds the demo image and the pause image.
    Standard {
        /// Folder with the programs demo-inference and hyperion-pause.
        #[arg(long)]
        programs: PathBuf,
        /// Folder for demo.tar and pause.tar.
        #[arg(long)]
        output: PathBuf,
    },
    /// Builds an image from one program.
    Pack {
        /// Full name, host/repository:tag.
        #[arg(long)]
        name: String,
        /// The program; its shared libraries are found with ldd.
        #[arg(long)]
        program: PathBuf,
        /// File to write.
        #[arg(long)]
        output: PathBuf,
        /// Environment of the program, NAME=value (repeatable).
        #[arg(long)]
        env: Vec<String>,
        /// Arguments that always follow the program.
        #[arg(last = true)]
        args: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Standard { programs, output } => {
            std::fs::create_dir_all(&output)
                .with_context(|| format!("--output {}", output.display()))?;
            let [demo, pause] = standard(&programs);
            pack(&demo, &output.join("demo.tar"))?;
            pack(&pause, &output.join("pause.tar"))?;
        }
        Command::Pack {
            name,
            program,
            output,
            env,
            args,
        } => {
            let mut image = Image::new(&name, &program);
            image.env.extend(env);
            image.args = args;
            pack(&image, &output)?;
        }
    }
    Ok(())
}
