//! How a site acts without the control plane: who is there, what is known of each replica, who may
//! decide, and what to do when the cloud is back. Pure: no I/O, no clock and no random source of
//! its own; time is an argument and randomness comes from a seed. So a whole fleet runs on virtual
//! time in a test, with the same code as on a device.
//!
//! - [`profile`]: times and bounds, `default` and `fast`.
//! - [`membership`]: who is alive (SWIM, by foca).
//! - [`site`]: what is known of nodes and replicas; records with a total order, so that all nodes
//!   that have heard the same know the same.
//! - [`sync`]: how records spread: at once to a few, and by comparison for those that missed it.
//! - [`mode`]: connected, suspect, autonomous, reconciling.
//! - [`decide`]: which replicas need a new place, who decides, and where they go.
//! - [`Autonomy`]: all of it behind one door, for the agent and the simulator.
//!
//! Time is a [`Duration`](std::time::Duration) since the agent's start; it never goes back.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

mod autonomy;
pub mod decide;
pub mod membership;
pub mod mode;
pub mod output;
pub mod profile;
mod ring;
pub mod site;
pub mod sync;

pub use autonomy::{Autonomy, Counts, Me, Member, MemberState, SITE_UID, Start, Status};
pub use decide::{Decide, Decided};
pub use mode::Mode;
pub use output::Output;
pub use profile::Profile;
