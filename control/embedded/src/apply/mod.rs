//! Server-side apply: who owns which field, and merging what several managers want.

mod fieldset;
mod managed;
mod merge;
mod typed;

pub(crate) use managed::{Manager, bare, track_update};
pub(crate) use merge::{Applied, Conflict, apply};
pub(crate) use typed::untyped;
