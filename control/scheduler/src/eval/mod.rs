//! Many episodes, figures with confidence intervals, tables and plots.
