//! The update that was ordered, and how far it is: a restart in the middle of one is the rule.

use hyperion_proto::agent_v1::{UpdateOrder, UpdateProgress};
use prost::Message;
use redb::Durability;

use super::Store;
use super::disk::Write;

/// What is kept of an update.
#[derive(Clone, PartialEq, Message)]
pub struct KeptUpdate {
    /// What is to be done; none where nothing is.
    #[prost(message, optional, tag = "1")]
    pub order: Option<UpdateOrder>,
    /// Of the last order; none before the first.
    #[prost(message, optional, tag = "2")]
    pub progress: Option<UpdateProgress>,
    /// Ordered by a person at the device, not by the control plane.
    #[prost(bool, tag = "3")]
    pub local: bool,
    /// The node had no link when it restarted into the update, so it needs none to be Ready.
    #[prost(bool, tag = "4")]
    pub offline: bool,
}

impl Store {
    /// The update.
    #[must_use]
    pub fn update(&self) -> &KeptUpdate {
        &self.state.update
    }

    /// Keeps the update; on disk when it returns, or see [`Store::failure`].
    pub fn set_update(&mut self, update: KeptUpdate) {
        if update == self.state.update {
            return;
        }
        self.state.update = update;
        Self::write(
            &mut self.db,
            &mut self.failure,
            Durability::Immediate,
            &[Write::Update(&self.state.update)],
        );
        self.after_write();
    }
}
