//! `hyperion top`: the fleet in the terminal.
//!
//! ```text
//! terminal ─┐                        ┌─ layout ─┐
//! watches ──┼─ Event → State::handle → Action    ├─ draw → buffer → terminal
//! live poll ┘          State::settle ┘──────────┘
//! ```
//!
//! [`event::Event`] is all that happens; [`state::State`] changes only in `handle` and, before a
//! frame, in `settle` (indexes and totals); [`draw::draw`] reads it and writes a buffer. The loop
//! in `run` owns the terminal and decides when a frame is due.

pub mod contact;
pub mod draw;
pub mod event;
pub mod headless;
pub mod layout;
mod run;
pub mod simulate;
mod source;
pub mod state;
pub mod table;
mod update;

#[cfg(test)]
mod tests;

pub use run::run;

/// Flags of `top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show a simulated fleet with this many nodes; needs no control plane
    #[arg(long, value_name = "NODES")]
    pub simulate: Option<usize>,
    /// Leave the mouse to the terminal
    #[arg(long)]
    pub no_mouse: bool,
    /// Draw with ASCII only
    #[arg(long)]
    pub ascii: bool,
}
