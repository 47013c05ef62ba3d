//! Schedulers to compare with.
