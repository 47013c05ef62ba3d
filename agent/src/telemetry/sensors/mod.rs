//! What a machine's own sensors show: GPU, clocks, temperatures, fans, power.
//!
//! On boards all of it is read from procfs and sysfs; GPUs with NVIDIA's driver are read through
//! NVML, which is loaded at run time. Files are probed, never a list of versions: a file that is not
//! there is a metric that is not there, and so is one that shows nonsense.
//!
//! ```text
//!   Sensors ──asks──> thread "sensors": Board (files) ──> Look
//!      │ └────asks──> thread "nvml": Gpus (driver)    ──> Look
//!      └── abandons a thread that hangs, leaves out what it hung at, goes on with a new one
//! ```

mod board;
mod files;
mod look;
pub mod metric;
pub mod nvml;
mod probe;
mod service;
mod table;
mod watch;

pub use self::board::Board;
pub use self::look::{Fact, GpuNow, LeftOut, Look, Process, Reading, Sensor};
pub use self::probe::UUID_PREFIX;
pub use self::service::Sensors;
pub use self::table::{json, table};

#[cfg(test)]
mod tests;
