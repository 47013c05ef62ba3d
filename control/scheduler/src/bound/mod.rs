//! The best that perfect knowledge could do.
