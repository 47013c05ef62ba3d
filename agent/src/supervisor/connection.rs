//! Watches containerd: tells when it comes and goes, and which processes end.

use std::path::Path;
use std::time::Duration;

use hyperion_link::route;
use rand::RngExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::notice::Notice;
use crate::runtime::{Cri, Exits, RuntimeError};

/// Longest wait between two tries.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Runs until nobody listens.
pub(super) async fn watch(
    cri: Cri,
    node_id: String,
    first_wait: Duration,
    notices: mpsc::Sender<Notice>,
) {
    let mut wait = first_wait;
    loop {
        let error = match session(&cri, &node_id, &notices, &mut wait, first_wait).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let notice = Notice::Down {
            reason: error.to_string(),
        };
        if notices.send(notice).await.is_err() {
            return;
        }
        // Many agents of one machine share one containerd: they do not all come at once.
        let jitter = rand::rng().random_range(0.8..1.2);
        tokio::select! {
            () = tokio::time::sleep(wait.mul_f64(jitter)) => wait = (wait * 2).min(MAX_WAIT),
            // At a boot the agent may be the quicker of the two.
            () = appears(cri.socket()) => wait = first_wait,
        }
    }
}

/// Ends when somebody listens at `socket` whom this account reaches, where nobody was at the start; never where
/// somebody was.
async fn appears(socket: &Path) {
    route::becomes(|| async { UnixStream::connect(socket).await.is_ok() }).await;
}

/// Ends with an error when containerd does, and without one when nobody listens.
async fn session(
    cri: &Cri,
    node_id: &str,
    notices: &mpsc::Sender<Notice>,
    wait: &mut Duration,
    first_wait: Duration,
) -> Result<(), RuntimeError> {
    let mut exits = Exits::new(cri);
    let first = async {
        let version = cri.version().await?;
        // Refused while containerd still reads its state after a start.
        cri.sandboxes(node_id).await?;
        Ok::<_, RuntimeError>(version)
    };
    let mut first = std::pin::pin!(first);
    let (name, version) = loop {
        tokio::select! {
            // Listening begins before the first look. What ends until then, that look shows.
            biased;
            exit = exits.next() => { exit?; }
            version = &mut first => break version?,
        }
    };
    *wait = first_wait;
    let mut notice = Notice::Up { name, version };
    loop {
        if notices.send(notice).await.is_err() {
            return Ok(());
        }
        let exit = exits.next().await?;
        notice = Notice::Exit { id: exit.id };
    }
}
