//! The trained network that scores candidates.
//!
//! - [`network`]: its form, and the arithmetic in full precision.

pub mod network;

pub use network::{Linear, Network};
