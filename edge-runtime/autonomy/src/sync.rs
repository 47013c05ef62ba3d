//! How records spread.
