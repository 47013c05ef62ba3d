//! Factory reset: the node's containers, its store and its identity go, and what is left is a device that
//! has never been in a fleet.
//!
//! It begins with a file, [`MARKER`], in the data directory, and ends when that file is gone. Whoever finds
//! it there carries on: the agent when it starts, after a power cut at any moment; `hyperion-enrol`, which
//! makes it where somebody asks for a reset from outside, for the settings that are its own.
//!
//! What root's part of updates keeps is what the device runs, not whose it is, and stays; an update that was
//! under way is not gone on with, as nobody is left who asked for it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use futures::future::join_all;
use tracing::info;

use crate::identity;
use crate::run::{LOCK, lock_data_dir};
use crate::runtime::{Cri, RuntimeError};

/// File in the data directory: a reset has begun and is not over.
pub const MARKER: &str = "reset";
/// Time between SIGTERM and SIGKILL for containers. What they keep goes anyway.
const GRACE: Duration = Duration::from_secs(5);
/// Files of `hyperion-enrol`: the settings, the note that the device has been named, and the sealed secret that
/// keys are encrypted with.
const ENROLMENT: [&str; 3] = ["agent.env", "named", "secret.sealed"];

/// Flags of `reset`.
#[derive(Debug, Clone, Args)]
pub struct Reset {
    /// Do it
    #[arg(long, required_unless_present = "unfinished")]
    pub yes: bool,
    /// Only carry on with one that was interrupted; nothing where there is none
    #[arg(long, conflicts_with = "yes")]
    pub unfinished: bool,
    /// Data directory of the agent
    #[arg(long, value_name = "DIR", default_value = "/var/lib/hyperion")]
    pub data_dir: PathBuf,
    /// What the first boot has set up
    #[arg(long, value_name = "DIR", default_value = "/var/lib/hyperion-enrol")]
    pub enrol_dir: PathBuf,
    /// The secret that keys are encrypted with, opened for this boot
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/run/hyperion-enrol/secret"
    )]
    pub key_secret: PathBuf,
    /// Socket of containerd
    #[arg(
        long,
        value_name = "SOCKET",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub containerd_socket: PathBuf,
}

/// Runs `reset`, and says on `out` what is left to do.
///
/// # Errors
/// Names the directory, or what could not be removed; the reset is then carried on at the next start.
pub async fn command(flags: Reset, out: &mut impl Write) -> anyhow::Result<()> {
    let Reset {
        yes: _,
        unfinished,
        data_dir,
        enrol_dir,
        key_secret,
        containerd_socket,
    } = flags;
    if unfinished && !begun(&data_dir) {
        return Ok(());
    }
    let name = data_dir.display();
    ensure!(data_dir.is_dir(), "--data-dir {name}: no such folder");
    let lock = lock_data_dir(&data_dir).context("stop the agent first")?;
    let node = node_id(&data_dir);
    if !unfinished {
        begin(&data_dir)?;
        for file in ENROLMENT {
            remove(&enrol_dir.join(file))?;
        }
        // After the sealed one, of which hyperion-enrol may have made it this moment: a new identity must not
        // get a secret that is gone at the next boot.
        remove(&key_secret)?;
    }
    finish(&data_dir, &containerd_socket).await?;
    drop(lock);
    let told = match node {
        Some(node) => format!(
            "node {node} is forgotten here. The fleet still has it: `hyperion node revoke {node}`, then `kubectl delete hyperionnode {node}`\n"
        ),
        None => "this device is in no fleet\n".to_owned(),
    };
    // The name comes from a file.
    let told: String = told
        .chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .collect();
    writeln!(
        out,
        "{told}It takes new settings at its next start, or from a stick with a new token"
    )
    .and_then(|()| out.flush())
    .context("standard output")
}

/// Has a reset begun that is not over?
#[must_use]
pub fn begun(data_dir: &Path) -> bool {
    data_dir.join(MARKER).exists()
}

/// From here on there is no way back.
fn begin(data_dir: &Path) -> anyhow::Result<()> {
    let path = data_dir.join(MARKER);
    let make = || -> io::Result<()> {
        File::create(&path)?.sync_all()?;
        // Root may have made these; the agent has an account of its own, and they must not lock it out.
        let owner = fs::metadata(data_dir)?;
        for file in [&path, &data_dir.join(LOCK)] {
            if fs::metadata(file)?.uid() != owner.uid() {
                chown(file, Some(owner.uid()), Some(owner.gid()))?;
            }
        }
        sync(data_dir)
    };
    make().with_context(|| path.display().to_string())
}

/// Carries a reset that has begun to its end. Whoever calls it holds the data directory's lock.
///
/// # Errors
/// Names what can't be removed, or containerd's socket. What was removed is gone; calling it again carries
/// on.
pub async fn finish(data_dir: &Path, containerd_socket: &Path) -> anyhow::Result<()> {
    let cri = Cri::new(containerd_socket);
    finish_with(data_dir, async |node| remove_containers(&cri, node).await).await
}

async fn finish_with(
    data_dir: &Path,
    remove_containers: impl AsyncFnOnce(Option<&str>) -> Result<(), RuntimeError>,
) -> anyhow::Result<()> {
    info!(dir = %data_dir.display(), "factory reset: containers, store and identity are removed");
    // Without an identity the node has never started any.
    if data_dir.join(identity::FILE).exists() {
        let node = node_id(data_dir);
        remove_containers(node.as_deref())
            .await
            .context("factory reset: containers can't be removed")?;
    }
    let entries = fs::read_dir(data_dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.with_context(|| data_dir.display().to_string())?;
    // While there is an identity, its containers are looked for.
    let last = [MARKER, LOCK, identity::FILE];
    for entry in entries {
        if !last.iter().any(|name| entry.file_name() == *name) {
            remove(&entry.path())?;
        }
    }
    let synced = || sync(data_dir).with_context(|| data_dir.display().to_string());
    synced()?;
    remove(&data_dir.join(identity::FILE))?;
    synced()?;
    remove(&data_dir.join(MARKER))?;
    synced()
}

/// Stops and removes the node's containers; those of any node where it is not known which this one is.
async fn remove_containers(cri: &Cri, node: Option<&str>) -> Result<(), RuntimeError> {
    if let Some(node) = node {
        let containers = cri.containers(node).await?;
        // One that does not end in time is killed with its sandbox.
        let _ = join_all(containers.iter().map(|c| cri.stop_container(&c.id, GRACE))).await;
    }
    for sandbox in cri.sandboxes_of(node).await? {
        cri.stop_sandbox(&sandbox.id).await?;
        cri.remove_sandbox(&sandbox.id).await?;
    }
    Ok(())
}

/// The node's id, even from a file that is otherwise damaged.
fn node_id(data_dir: &Path) -> Option<String> {
    let text = fs::read(data_dir.join(identity::FILE)).ok()?;
    let written: serde_json::Value = serde_json::from_slice(&text).ok()?;
    written.get("node_id")?.as_str().map(str::to_owned)
}

/// Removes a file or a folder, if it is there. Links are not followed.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("{} can't be removed", path.display()))
        }
        _ => Ok(()),
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data directory as an agent leaves it.
    fn used() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put(
            identity::FILE,
            r#"{"node_id": "press-7", "key": "damaged"}"#,
        );
        put(LOCK, "");
        put("store.redb", "replicas");
        put("identity.json.new", "torn");
        fs::create_dir_all(dir.path().join("logs/shop/till")).unwrap();
        put("logs/shop/till/0.log", "secret");
        fs::create_dir(dir.path().join("update")).unwrap();
        put("update/u1.part", "half a bundle");
        put("update/request", "do=install");
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn flags(dir: &Path, unfinished: bool) -> Reset {
        Reset {
            yes: !unfinished,
            unfinished,
            data_dir: dir.to_owned(),
            enrol_dir: dir.join("enrol"),
            key_secret: dir.join("enrol/secret"),
            containerd_socket: dir.join("no.sock"),
        }
    }

    #[tokio::test]
    async fn nothing_but_the_lock_is_left() {
        let dir = used();
        begin(dir.path()).unwrap();
        let mut asked = None;
        finish_with(dir.path(), async |node| {
            asked = node.map(str::to_owned);
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(asked.as_deref(), Some("press-7"));
        assert_eq!(names(dir.path()), [LOCK]);
        assert!(Path::new("/etc").exists(), "a link is not followed");
    }

    #[tokio::test]
    async fn a_reset_that_was_cut_off_anywhere_is_carried_on() {
        // What is removed first is gone first; the order among the others is the file system's.
        let order = [
            "store.redb",
            "logs",
            "update",
            "link",
            "identity.json.new",
            identity::FILE,
        ];
        for cut in 0..=order.len() {
            let dir = used();
            begin(dir.path()).unwrap();
            for name in &order[..cut] {
                remove(&dir.path().join(name)).unwrap();
            }
            assert!(begun(dir.path()));
            let mut asked = false;
            finish_with(dir.path(), async |_| {
                asked = true;
                Ok(())
            })
            .await
            .unwrap();
            // Once the identity is gone there are no containers of its own.
            assert_eq!(asked, cut < order.len());
            assert_eq!(names(dir.path()), [LOCK], "{cut}");
        }
    }

    #[tokio::test]
    async fn a_node_whose_containers_can_t_be_removed_is_not_forgotten() {
        let dir = used();
        let mut out = Vec::new();
        for unfinished in [false, true] {
            let error = command(flags(dir.path(), unfinished), &mut out)
                .await
                .unwrap_err();
            let said = format!("{error:#}");
            assert!(said.contains("no.sock"), "{said}");
            assert!(begun(dir.path()) && dir.path().join(identity::FILE).exists());
        }
        assert!(out.is_empty());
    }

    #[tokio::test]
    async fn settings_go_and_the_person_hears_what_is_left_to_do() {
        let dir = used();
        let enrol = dir.path().join("enrol");
        fs::create_dir(&enrol).unwrap();
        for file in ENROLMENT.iter().chain(&["secret"]) {
            fs::write(enrol.join(file), "HYPERION_CONTROL=a:1").unwrap();
        }
        assert_eq!(names(&enrol).len(), 4);
        // Never enrolled: no containers, and containerd is not needed.
        fs::remove_file(dir.path().join(identity::FILE)).unwrap();
        let mut out = Vec::new();
        command(flags(dir.path(), false), &mut out).await.unwrap();
        assert_eq!(names(dir.path()), [LOCK]);
        let said = String::from_utf8(out).unwrap();
        assert!(said.contains("in no fleet"), "{said}");
    }

    #[tokio::test]
    async fn a_running_agent_is_not_reset_and_nothing_unfinished_is_no_error() {
        let dir = used();
        let held = lock_data_dir(dir.path()).unwrap();
        let mut out = Vec::new();
        let error = command(flags(dir.path(), false), &mut out)
            .await
            .unwrap_err();
        assert!(format!("{error:#}").contains("stop the agent first"));
        assert!(!begun(dir.path()));
        command(flags(dir.path(), true), &mut out).await.unwrap();
        drop(held);
        assert!(dir.path().join("store.redb").exists() && out.is_empty());
        let error = command(flags(Path::new("/nowhere"), false), &mut out).await;
        assert!(error.unwrap_err().to_string().contains("/nowhere"));
    }
}
