//! Keeps the images of what is desired from being cleared away.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::Desired;
use crate::runtime::{Cri, pin_images};

/// Between looks, for images that come to the machine by other ways.
const AGAIN: Duration = Duration::from_secs(60);

/// Pins what is desired whenever that changes or an image has come, and takes pins away that are no
/// longer needed. Before the first desired state nothing is touched.
pub(super) async fn keep(
    cri: Cri,
    mut desired: watch::Receiver<Option<Arc<Vec<Desired>>>>,
    came: Arc<Notify>,
) {
    loop {
        let needed = desired
            .borrow_and_update()
            .as_deref()
            .map(|all| images(all));
        if let Some(needed) = needed
            && let Err(error) = pin_images(&cri, &needed).await
        {
            tracing::debug!(%error, "images not pinned");
        }
        tokio::select! {
            changed = desired.changed() => if changed.is_err() {
                return;
            },
            () = came.notified() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Images of replicas that may have to start again.
fn images(desired: &[Desired]) -> BTreeSet<String> {
    let running = desired.iter().filter(|d| d.finished.is_none());
    running
        .flat_map(|d| &d.start.pod.containers)
        .map(|container| container.image.clone())
        .collect()
}
