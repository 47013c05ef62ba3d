//! The socket.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::UnixListener;

/// A bound socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct LocalListener {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl LocalListener {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        // The next agent replaces it where this fails.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds the socket with mode 0600, in the place of one that nobody answers on. Its folder is made
/// where it is missing.
///
/// # Errors
/// Names the socket: in use, a file that is no socket, or a folder that can't be written.
pub fn bind(path: &Path) -> Result<LocalListener, String> {
    let said = |problem: &dyn std::fmt::Display| format!("{}: {problem}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(|e| said(&e))?;
    }
    clear(path).map_err(|problem| said(&problem))?;
    // No moment in which others could connect. Files that another thread makes at the same time
    // are stricter than they would be: harmless.
    let before = umask(Mode::RWXG | Mode::RWXO);
    let bound = UnixListener::bind(path);
    umask(before);
    let listener = LocalListener {
        listener: bound.map_err(|e| said(&e))?,
        path: path.to_owned(),
    };
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|e| said(&e))?;
    Ok(listener)
}

/// Removes what an agent left behind that did not end well.
fn clear(path: &Path) -> Result<(), String> {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };
    if !found.file_type().is_socket() {
        return Err("there is a file that is no socket".to_owned());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err("in use by another agent".to_owned()),
        Err(_) => std::fs::remove_file(path).map_err(|e| e.to_string()),
    }
}
