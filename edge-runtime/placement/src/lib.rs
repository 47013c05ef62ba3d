//! The placement core, shared by cloud and edge: snapshot -> filter -> encode -> score -> choose
//! -> check -> explain. Pure: no clock, no randomness, no I/O.

pub mod model;
