//! Sites of several nodes on virtual time: real cores, a network that loses, delays and cuts by
//! seed, containers that start at once, and a control plane that can be out of reach.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod chaos;
mod exclusive;
mod harness;
mod local;
mod overload;
mod partition;
mod returning;
mod takeover;
