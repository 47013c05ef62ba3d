//! Many episodes, figures with confidence intervals, tables and plots.

pub mod plot;
pub mod stats;
