//! Updates of the device and of the agent: what the control plane, or a person at the device, wants
//! of it, and how far that is.
//!
//! ```text
//!   order -> Updates (what is next) -> Worker -> download, then requests to root's part
//!                ^                                        |
//!                +------ how far it is (status file) -----+
//! ```
//!
//! The agent is not root. It brings the bundle, says when the device is Ready, and asks root's part
//! (`hyperion-update`) for the rest: that one verifies the bundle's signature, installs it beside what
//! runs, chooses the slot of the next start, and takes a slot back that nobody calls good in time. So
//! a new agent that does nothing at all is rolled back too.
//!
//! Everything is level-based: [`Updates::task`] says what is to be done now, from what is known, and the
//! [`Worker`] does it until it says something else. A restart at any moment changes nothing of that.

mod bring;
mod cli;
mod engine;
mod machine;
mod worker;

#[cfg(test)]
mod tests;

pub use bring::{Failure, Patience};
pub use cli::{Update, command};
pub use engine::{Action, EnginePhase, EngineState, Request, RootPart};
pub use machine::{Ready, Task, Updates};
pub use worker::{Told, Worker};

/// Time to be Ready after a restart where an order names none, seconds.
pub const READY_SECONDS: u32 = 600;
