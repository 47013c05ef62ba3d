//! `hyperion-image`: builds a container image from a program, for
//! `ctr -n k8s.io image import FILE`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use hyperion_images::{Image, pack, product, standard};

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
    /// Builds the images that the Helm chart runs.
    Product {
        /// Folder with the programs hyperion-control and hyperion-agent.
        #[arg(long)]
        programs: PathBuf,
        /// Where the images will be: host, or host/path.
        #[arg(long, default_value = "localhost")]
        host: String,
        /// Tag of the images; the chart's appVersion by default.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
        /// Folder for hyperion-control.tar and hyperion-agent.tar.
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

fn make(output: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(output).with_context(|| format!("--output {}", output.display()))
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Standard { programs, output } => {
            make(&output)?;
            let [demo, pause] = standard(&programs);
            pack(&demo, &output.join("demo.tar"))?;
            pack(&pause, &output.join("pause.tar"))?;
        }
        Command::Product {
            programs,
            host,
            tag,
            output,
        } => {
            make(&output)?;
            for image in product(&programs, &host, &tag) {
                let name = image.program.with_extension("tar");
                pack(&image, &output.join(name.file_name().unwrap_or_default()))?;
            }
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
