//! Waiting on a condition with a deadline: never on time alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait end with an error, so that the program can clean up and leave.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Has somebody asked the program to leave?
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// How long a program that was asked to leave may take to clean up.
const LEAVE: Duration = Duration::from_secs(60);
/// Exit status of one that did not; as shells tell of SIGTERM.
const ENDED_BY_SIGNAL: i32 = 128 + 15;

/// Has Ctrl-C and SIGTERM end the current wait, and with it the program, in order: what it has started
/// is stopped. One that does not come to a wait, or is asked again, ends at once.
///
/// # Errors
/// The system has no room for another thread or its files.
pub fn leave_on_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let leave = async {
        let terminate = signal(SignalKind::terminate());
        let break_off = signal(SignalKind::interrupt());
        let (Ok(mut terminate), Ok(mut break_off)) = (terminate, break_off) else {
            return;
        };
        let mut asked = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = break_off.recv() => {}
            }
        };
        asked().await;
        interrupt();
        let _ = tokio::time::timeout(LEAVE, asked()).await;
        std::process::exit(ENDED_BY_SIGNAL);
    };
    std::thread::Builder::new().spawn(move || runtime.block_on(leave))?;
    Ok(())
}

/// Looks at a condition until it gives a value; what it says meanwhile is its status.
///
/// # Errors
/// The deadline passed: the error has the last status. Or the program was interrupted.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T, String>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let status = match condition() {
            Ok(value) => return Ok(value),
            Err(status) => status,
        };
        if interrupted() {
            bail!("interrupted while waiting for {what}");
        }
        if start.elapsed() >= deadline {
            bail!("{what}: not within {deadline:?}; last status: {status}");
        }
        std::thread::sleep(POLL);
    }
}

/// Checks that a condition stays true for a while.
///
/// # Errors
/// It became false: the error has what it said.
pub fn holds(
    what: &str,
    span: Duration,
    mut condition: impl FnMut() -> Result<(), String>,
) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(status) = condition() {
            bail!("{what}: no longer after {:?}: {status}", start.elapsed());
        }
        if interrupted() {
            bail!("interrupted while looking whether it stays so: {what}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_deadline_tells_the_last_status() {
        let mut n = 0;
        let error = until("three", Duration::from_millis(120), || {
            n += 1;
            Err::<(), _>(format!("look {n}"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("last status: look"), "{error}");
    }
}
