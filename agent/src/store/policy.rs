//! The policy that the control plane rolled out, and the one before it.

use bytes::Bytes;
use hyperion_proto::agent_v1::PolicyOffer;
use redb::Durability;

use super::disk::{CURRENT, PREVIOUS, Write};
use super::state::KeptPolicy;
use super::{State, Store};

impl Store {
    /// The policy that decides; none for the built-in one.
    #[must_use]
    pub fn policy(&self) -> Option<&KeptPolicy> {
        self.state.policy.as_ref()
    }

    /// The one before it.
    #[must_use]
    pub fn previous_policy(&self) -> Option<&KeptPolicy> {
        self.state.previous_policy.as_ref()
    }

    /// Keeps a policy; the one before stays as a fallback.
    pub fn set_policy(&mut self, offer: PolicyOffer, file: Bytes) {
        let State {
            policy,
            previous_policy,
            ..
        } = &mut self.state;
        if let Some(before) = policy.replace(KeptPolicy { offer, file })
            && !before.file.is_empty()
        {
            *previous_policy = Some(before);
        }
        self.write_policies();
    }

    /// Lets go of the policy: the one before decides again.
    pub fn drop_policy(&mut self) {
        self.state.policy = self.state.previous_policy.take();
        self.write_policies();
    }

    fn write_policies(&mut self) {
        let writes = [
            Write::Policy(CURRENT, self.state.policy.as_ref()),
            Write::Policy(PREVIOUS, self.state.previous_policy.as_ref()),
        ];
        Self::write(
            &mut self.db,
            &mut self.failure,
            Durability::Immediate,
            &writes,
        );
        self.after_write();
    }
}
