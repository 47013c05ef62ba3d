//! Many episodes, figures with confidence intervals, tables and plots.

pub mod episodes;
pub mod figures;
pub mod plot;
pub mod report;
pub mod stats;
