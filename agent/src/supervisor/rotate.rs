//! Keeps log files small; containerd lets them grow for ever.

use std::path::PathBuf;

use crate::runtime::Cri;

/// Size at which a log is moved away, bytes; kubelet's value. One older file is kept.
const MAX_LOG: u64 = 10 << 20;

/// Moves away the logs that have grown too large. The container goes on writing to the old file
/// until containerd opened a new one, so that no line is lost.
pub(super) async fn rotate(cri: &Cri, logs: Vec<(String, PathBuf)>) {
    for (container, path) in logs {
        if std::fs::metadata(&path).is_ok_and(|file| file.len() > MAX_LOG) {
            let old = path.with_extension("log.old");
            if let Err(error) = std::fs::rename(&path, &old) {
                tracing::warn!(path = %path.display(), %error, "log not moved");
            } else if let Err(error) = cri.reopen_log(&container).await {
                tracing::warn!(container, %error, "log not reopened");
                // Back again, so that the next try finds it.
                let _ = std::fs::rename(&old, &path);
            }
        }
    }
}
