//! Prices of free GPU capacity, learned beside the loop: decisions don't wait for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_placement::packing::{Lesson, Prices};
use tokio::sync::{mpsc, watch as latest};
use tracing::{debug, warn};

use super::Work;

/// How often prices are learned anew. Between two of them a small part of the capacity changes hands.
const REFRESHED: Duration = Duration::from_secs(60);

/// What learns, and what it has learned last. It ends with the sender.
pub(super) fn start() -> (mpsc::Sender<Lesson>, latest::Receiver<Arc<Prices>>) {
    let (lessons, mut waiting) = mpsc::channel::<Lesson>(1);
    let (learned, prices) = latest::channel(Arc::default());
    tokio::spawn(async move {
        while let Some(lesson) = waiting.recv().await {
            match tokio::task::spawn_blocking(move || lesson.prices()).await {
                Ok(prices) => {
                    let _ = learned.send(Arc::new(prices));
                }
                Err(e) => warn!(error = %e, "prices of GPU capacity stay as they are"),
            }
        }
    });
    (lessons, prices)
}

impl Work {
    /// Has prices learned where it is time.
    pub(super) fn pack(&mut self, now: Instant) {
        if self.pack_at > now {
            return;
        }
        self.pack_at = now + REFRESHED;
        match self.index.packing_lesson() {
            // One that is not over yet is as good.
            Some(lesson) => drop(self.lessons.try_send(lesson)),
            None if self.index.fleet().packing().known() => self.index.set_packing(Arc::default()),
            None => {}
        }
    }

    pub(super) fn packing_learned(&mut self, prices: Arc<Prices>) {
        debug!(known = prices.known(), "prices of GPU capacity");
        self.index.set_packing(prices);
    }
}
