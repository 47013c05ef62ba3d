//! What a pod sandbox runs: it holds the namespaces, takes in orphaned processes as process 1 of
//! the pod, and ends on SIGTERM.

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = signal(SignalKind::child())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = child.recv() => while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {},
        }
    }
}
