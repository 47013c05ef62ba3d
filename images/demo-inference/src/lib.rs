//! The demo workload: an image classifier served over HTTP, and a small training job. Both do real
//! work with candle, on weights and data that follow from a seed, so that nothing is downloaded and
//! every replica gives the same answer.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod model;
mod seeded;
pub mod serve;
pub mod train;
