//! top
/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show this many simulated nodes instead of a fleet; needs no control plane
    #[arg(long, value_name = "NODES")]
    pub simulate: Option<usize>,
}
/// Runs.
pub async fn run(
    _: &Args,
    _: Option<crate::connect::Connection>,
    _: bool,
) -> Result<(), crate::error::CliError> {
    Ok(())
}
