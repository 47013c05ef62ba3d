//! containerd: CRI v1 and the event stream over its socket, and the log files that it writes.

mod archive;
mod client;
mod error;
mod events;
mod import;
pub mod labels;
pub mod logs;
pub mod pod;

pub use archive::ImportError;
pub use client::{Cri, ExecResult};
pub use error::RuntimeError;
pub(crate) use error::shorten;
pub use events::{Exit, Exits};
pub use import::import_oci_tar;
