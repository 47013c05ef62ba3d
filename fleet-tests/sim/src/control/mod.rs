//! The control plane: the operator's real decision core, with a thin API and gateway around it.

pub(crate) mod api;
pub(crate) mod gateway;
pub(crate) mod leader;

pub(crate) use api::Api;
pub(crate) use leader::{Heard, Leader};
