//! One episode played with a scheduler.
