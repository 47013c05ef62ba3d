//! Where an image is written: a new file, which has its name once it is whole, or a disk.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom, major, minor};
use tempfile::NamedTempFile;

use super::in_use::{self, Disk, State};
use super::progress::size;
use crate::error::CliError;

/// A place that an image may be written to.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    kind: Kind,
    /// What is there may be lost.
    force: bool,
}

#[derive(Debug)]
enum Kind {
    File,
    Disk(Disk),
}

/// A file or a disk that is being written.
pub struct Output {
    /// To read and to write.
    pub file: File,
    /// It reads as zeros where nothing was written.
    pub fresh: bool,
    unnamed: Option<NamedTempFile>,
}

impl Target {
    /// Looks at a place without changing it. `image` is what will be read, `system` the root of `/sys`
    /// and `/proc`.
    ///
    /// # Errors
    /// Nothing may be written there; the message says why, and the hint what to do.
    pub fn look(path: &Path, image: &File, force: bool, system: &Path) -> Result<Self, CliError> {
        let failed = |e: io::Error| CliError::new(format!("--out {}: {e}", path.display()));
        let refused = |why: &str| CliError::new(format!("--out {}: {why}", path.display()));
        let image = image.metadata().map_err(failed)?;
        let there = match fs::metadata(path) {
            Ok(there) => there,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let folder = folder(path);
                if fs::canonicalize(folder).map_err(failed)? == Path::new("/dev") {
                    // A file of that name would take memory and be gone at the next start.
                    return Err(refused("no such device").hint("`lsblk` lists disks"));
                }
                return Ok(Self {
                    path: path.to_owned(),
                    kind: Kind::File,
                    force,
                });
            }
            Err(e) => return Err(failed(e)),
        };
        let path = fs::canonicalize(path).map_err(failed)?;
        if there.is_file() {
            if (there.dev(), there.ino()) == (image.dev(), image.ino()) {
                return Err(refused(
                    "the image itself; it stays as it is for other devices",
                ));
            }
            if !force {
                return Err(refused("there already").hint("--force writes it anew"));
            }
            let kind = Kind::File;
            return Ok(Self { path, kind, force });
        }
        if !there.file_type().is_block_device() {
            return Err(refused("neither a file nor a disk"));
        }
        let number = there.rdev();
        let disk = in_use::look(system, major(number), minor(number)).map_err(failed)?;
        let (why, hint) = match &disk.state {
            State::System => ("the running system is on it".to_owned(), None),
            State::Used(how) if !force => (how.clone(), Some("unmount it, or use --force")),
            State::Fixed if !force => (
                "a disk of this machine, not a card or a stick".to_owned(),
                Some("--force overwrites it all the same"),
            ),
            State::Free | State::Fixed | State::Used(_) => {
                let room = File::open(&path)
                    .and_then(|file| Ok(rustix::fs::seek(&file, SeekFrom::End(0))?))
                    .map_err(failed)?;
                enough(room, image.len()).map_err(|why| refused(&why))?;
                let kind = Kind::Disk(disk);
                return Ok(Self { path, kind, force });
            }
        };
        let error = refused(&why);
        Err(match hint {
            Some(hint) => error.hint(hint),
            None => error,
        })
    }

    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let path = self.path.display();
        match &self.kind {
            Kind::Disk(disk) if !disk.model.is_empty() => format!("{path} ({})", disk.model),
            Kind::Disk(_) | Kind::File => path.to_string(),
        }
    }

    /// Begins to write `len` bytes.
    ///
    /// # Errors
    /// The file can't be made, or the disk can't be had.
    pub fn open(&self, len: u64) -> Result<Output, CliError> {
        let failed = |e: io::Error| self.failed(&e);
        match self.kind {
            Kind::File => {
                // For its owner alone: it holds a token.
                let unnamed = tempfile::Builder::new()
                    .prefix(".hyperion-image-")
                    .tempfile_in(folder(&self.path))
                    .map_err(failed)?;
                unnamed.as_file().set_len(len).map_err(failed)?;
                let file = unnamed.as_file().try_clone().map_err(failed)?;
                Ok(Output {
                    file,
                    fresh: true,
                    unnamed: Some(unnamed),
                })
            }
            Kind::Disk(_) => {
                // The kernel lets go of it to one who asks for it alone, and then nobody mounts it.
                let alone = if self.force {
                    OFlags::empty()
                } else {
                    OFlags::EXCL
                };
                let flags = i32::try_from(alone.bits()).unwrap_or_default();
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(flags)
                    .open(&self.path)
                    .map_err(failed)?;
                Ok(Output {
                    file,
                    fresh: false,
                    unnamed: None,
                })
            }
        }
    }

    /// Gives what was written its name.
    ///
    /// # Errors
    /// Another file has it by now, or the folder can't be written.
    pub fn keep(&self, output: Output) -> Result<(), CliError> {
        let Some(unnamed) = output.unnamed else {
            return Ok(());
        };
        let kept = if self.force {
            unnamed.persist(&self.path)
        } else {
            unnamed.persist_noclobber(&self.path)
        };
        kept.map_err(|e| e.error)
            .and_then(|_| File::open(folder(&self.path))?.sync_all())
            .map_err(|e| self.failed(&e))
    }

    /// What to say of a place that was written in part.
    #[must_use]
    pub fn after_failure(&self) -> &'static str {
        match self.kind {
            Kind::File => "no file was left behind",
            Kind::Disk(_) => {
                "the disk was left without a partition table: no device starts from it"
            }
        }
    }

    fn failed(&self, error: &io::Error) -> CliError {
        CliError::new(format!("{}: {error}", self.path.display()))
    }
}

fn enough(room: u64, needed: u64) -> Result<(), String> {
    if room >= needed {
        return Ok(());
    }
    let (room, needed) = (size(room), size(needed));
    Err(format!("too small: it has {room}, and the image {needed}"))
}

/// Folder of a file.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_refused_and_one_that_is_just_large_enough_is_not() {
        assert!(enough(512, 512).is_ok());
        let said = enough(511 << 20, 512 << 20).unwrap_err();
        assert_eq!(said, "too small: it has 511.0 MiB, and the image 512.0 MiB");
    }
}
