//! `hyperion-train export`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use hyperion_policy::{PolicyFile, Quantisation};

use super::{read, say, write};

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Policy file to read, safetensors or GGUF.
    #[arg(long)]
    policy: PathBuf,
    /// Precision to write.
    #[arg(long, value_enum, default_value = "q8")]
    precision: To,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum To {
    /// 32 bits, safetensors.
    Full,
    /// 8 bits, GGUF.
    Q8,
    /// 4 bits, GGUF.
    Q4,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let file = PolicyFile::read(&read(&args.policy)?)
        .with_context(|| args.policy.display().to_string())?;
    let (card, network) = (&file.card, &file.network);
    let bytes = match args.precision {
        To::Full => PolicyFile::write_safetensors(card, network)?,
        To::Q8 => PolicyFile::write_gguf(card, network, Quantisation::Q8)?,
        To::Q4 => PolicyFile::write_gguf(card, network, Quantisation::Q4)?,
    };
    write(&args.out, &bytes)?;
    say(&format!("{}: {} bytes", args.out.display(), bytes.len()));
    Ok(())
}
