//! containerd: CRI v1 and the event stream over its socket, and the log files that it writes.

mod archive;
mod client;
mod error;
mod events;
mod export;
mod import;
pub mod labels;
pub mod logs;
mod names;
mod pins;
pub mod pod;

pub use archive::ImportError;
pub use client::{Cri, ExecResult};
pub use error::RuntimeError;
pub(crate) use error::shorten;
pub use events::{Exit, Exits};
pub use export::Export;
pub use import::{import_image, import_oci_tar};
pub use names::full_name;
pub use pins::pin_images;

/// Where images come from besides their registry.
#[tonic::async_trait]
pub trait ImageSource: std::fmt::Debug + Send + Sync {
    /// Brings the image to this node.
    ///
    /// # Errors
    /// Why it could not be brought; nobody having it is such a reason.
    async fn fetch(&self, image: &str) -> Result<(), String>;
}
