//! First contact: a join token against an identity.

use std::time::Duration;

use hyperion_link::{ControlTarget, EnrolError, EnrolRequest, Identity, route};
use rand::RngExt;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::identity::{IdentityFile, IdentityFileError};

const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What enrolment needs.
pub struct Enrolment {
    /// Where to, and whom to trust.
    pub target: ControlTarget,
    /// Token and description.
    pub request: EnrolRequest,
    /// Where the identity is kept.
    pub file: IdentityFile,
}

/// Why enrolment was given up.
#[derive(Debug, thiserror::Error)]
pub enum EnrolFailed {
    /// The control plane's last word.
    #[error(transparent)]
    Refused(#[from] EnrolError),
    /// The identity could not be kept.
    #[error(transparent)]
    File(#[from] IdentityFileError),
}

/// Enrols, trying again while the control plane is out of reach; none where `stop` came first.
///
/// # Errors
/// The token was refused for good, or the identity can't be written.
pub async fn enrol(
    enrolment: Enrolment,
    stop: &CancellationToken,
) -> Result<Option<Identity>, EnrolFailed> {
    let mut wait = BACKOFF_MIN;
    loop {
        let attempt = hyperion_link::enrol(&enrolment.target, enrolment.request.clone());
        let result = tokio::select! {
            result = attempt => result,
            () = stop.cancelled() => return Ok(None),
        };
        match result {
            Ok(identity) => {
                enrolment.file.save(&identity)?;
                info!(node = %identity.node_id, site = %identity.site, "enrolled");
                return Ok(Some(identity));
            }
            Err(e) if e.is_final() => return Err(e.into()),
            Err(e) => {
                let retry_in = wait.mul_f64(rand::rng().random_range(0.5..1.0));
                warn!(error = %e, ?retry_in, "not enrolled yet");
                tokio::select! {
                    () = tokio::time::sleep(retry_in) => wait = (wait * 2).min(BACKOFF_MAX),
                    () = route::appears(&enrolment.target.addr) => wait = BACKOFF_MIN,
                    () = stop.cancelled() => return Ok(None),
                }
            }
        }
    }
}
