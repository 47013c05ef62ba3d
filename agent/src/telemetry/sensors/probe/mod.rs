//! Looks for sensors, one module for each kind. What is looked for is files, by what the kernel calls
//! them; where boards and releases differ, each place is tried.

mod clocks;
mod fan;
mod gpu;
mod identity;
mod power;
mod thermal;

pub use self::gpu::{UUID_PREFIX, processes};
use super::board::Found;
use super::files::Files;

/// All sensors of a machine, in the order of tables.
pub fn find(files: &Files) -> Found {
    let mut found = Found::default();
    gpu::find(files, &mut found);
    clocks::find(files, &mut found);
    thermal::find(files, &mut found);
    fan::find(files, &mut found);
    power::find(files, &mut found);
    identity::find(files, &mut found);
    found.keep_existing(files);
    found
}
