//! What the cloud says is about to happen to this machine: a spot machine that is taken back, one at
//! a higher risk of that, maintenance that ends containers.
//!
//! - here: which cloud, and the whole of what its feeds say;
//! - [`detect`]: tells the cloud from what the firmware says, without asking the network;
//! - [`ask`]: one request to a metadata service that may hang, lie or not be there;
//! - [`aws`], [`gcp`], [`azure`]: what each answers;
//! - [`feed`]: asks again and again, and bears failures.
//!
//! Everything is level-based: what counts is the set that the cloud names now, each time as a whole.
//! Nothing here acts on it; the control plane does.

mod ask;
mod aws;
mod azure;
mod detect;
mod feed;
mod gcp;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use hyperion_proto::agent_v1::Interruption;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

pub use self::ask::Base;
pub use self::detect::detect;

/// A cloud whose metadata service is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon Web Services.
    Aws,
    /// Google Cloud.
    Gcp,
    /// Microsoft Azure.
    Azure,
}

impl Cloud {
    /// In words of the flag.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        }
    }
}

/// Whose notices are followed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CloudMetadata {
    /// The one that the firmware names, or nobody's.
    #[default]
    Auto,
    /// Nobody's.
    None,
    /// This one's.
    Of(Cloud),
}

/// All that is known; none before the first answer, and where nobody is asked.
pub type Notices = watch::Receiver<Option<Vec<Interruption>>>;

/// Notices of nobody.
#[must_use]
pub fn nobody() -> Notices {
    watch::channel(None).1
}

/// Follows the notices of the machine that `root` is of until `stop`. `base` is where the metadata
/// service is, where that is not the usual place.
#[must_use]
pub fn start(
    whose: CloudMetadata,
    base: Option<Base>,
    root: &Path,
    stop: &CancellationToken,
) -> Notices {
    let cloud = match whose {
        CloudMetadata::None => None,
        CloudMetadata::Of(cloud) => Some(cloud),
        CloudMetadata::Auto => detect(root),
    };
    let Some(cloud) = cloud else {
        return nobody();
    };
    let base = base.unwrap_or_default();
    info!(cloud = cloud.as_str(), at = %base, "notices of interruption are followed");
    let (all, notices) = watch::channel(None);
    let all = Whole {
        cloud,
        all,
        parts: Arc::default(),
    };
    for source in feed::sources(cloud, &base) {
        tokio::spawn(feed::follow(source, all.clone(), stop.clone()));
    }
    notices
}

/// What all feeds of a cloud say together.
#[derive(Clone)]
struct Whole {
    cloud: Cloud,
    all: watch::Sender<Option<Vec<Interruption>>>,
    parts: Arc<Mutex<BTreeMap<&'static str, Vec<Interruption>>>>,
}

impl Whole {
    /// One feed's word, the whole of it.
    fn set(&self, feed: &'static str, said: Vec<Interruption>) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.insert(feed, said);
        let now: Vec<Interruption> = parts.values().flatten().cloned().collect();
        self.all.send_if_modified(|held| {
            let changed = held.as_ref() != Some(&now);
            *held = Some(now);
            changed
        });
    }
}
