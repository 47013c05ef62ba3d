//! What systemd is told. Without systemd every call does nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::debug;

fn notify(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        debug!(error = %e, "systemd was not notified");
    }
}

/// The agent does its work: what the store says is started. Whether the control plane can be
/// reached has no part in it.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// A line for `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// The agent ends.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds the watchdog, where there is one. Runs on the agent's only thread: it stops when that
/// is stuck.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut tick = tokio::time::interval((limit / 2).max(Duration::from_millis(100)));
    loop {
        tick.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}
