//! Server-side apply: who owns which field, and merging what several managers want.

mod fieldset;
mod managed;
mod merge;

pub(crate) use managed::{Manager, bare, track_update};
pub(crate) use merge::{Applied, Conflict, apply};
