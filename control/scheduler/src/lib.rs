//! The placement brain's school: a simulator in virtual time, the PPO learner, the schedulers it
//! is compared with, and a bound on what any scheduler could reach.
//!
//! - [`world`]: measured prices, latencies, traces, from a data directory or built in;
//! - [`scenario`]: one episode, drawn from a world by a seed: everything that happens whatever the
//!   scheduler does;
//! - [`sim`]: the episode played with a scheduler; drives the decision code of production;
//! - [`baselines`]: schedulers to compare with;
//! - [`bound`]: the best that perfect knowledge could do;
//! - [`parallel`]: work on several threads with results in order;
//! - [`ppo`]: the learner;
//! - [`learn`]: a policy continued from real outcomes;
//! - [`eval`]: many episodes, figures with confidence intervals, tables and plots.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

pub mod baselines;
pub mod bound;
pub mod eval;
pub mod learn;
pub mod parallel;
pub mod ppo;
pub mod scenario;
pub mod sim;
pub mod world;
