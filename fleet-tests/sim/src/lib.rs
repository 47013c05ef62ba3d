//! A whole fleet on virtual time in one process.
