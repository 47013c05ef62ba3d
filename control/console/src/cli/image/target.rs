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
    /// Held from the look at it on: another disk may have its name by the time it is written.
    Disk(Disk, File),
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
        let opened = open_disk(&path, force);
        let number = match &opened {
            Ok(file) => file.metadata().map_err(failed)?.rdev(),
            // Somebody has it: who, is looked for below.
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => there.rdev(),
            Err(e) => return Err(refused(&e.to_string())),
        };
        let disk = in_use::look(system, major(number), minor(number)).map_err(failed)?;
        may_be_written(&disk, force).map_err(|(why, hint)| match hint {
            Some(hint) => refused(&why).hint(hint),
            None => refused(&why),
        })?;
        let file = opened.map_err(failed)?;
        let room = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
        enough(room, image.len()).map_err(|why| refused(&why))?;
        let kind = Kind::Disk(disk, file);
        Ok(Self { path, kind, force })
    }

    /// Why it can't be told whether the running system is on it; none where it can.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        match &self.kind {
            Kind::Disk(disk, _) if disk.state != State::Free => disk.doubt.as_deref().map(unsure),
            Kind::Disk(..) | Kind::File => None,
        }
    }

    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        let path = self.path.display();
        match &self.kind {
            Kind::Disk(disk, _) if !disk.model.is_empty() => format!("{path} ({})", disk.model),
            Kind::Disk(..) | Kind::File => path.to_string(),
        }
    }

    /// Begins to write `len` bytes.
    ///
    /// # Errors
    /// The file can't be made, or the disk can't be had.
    pub fn open(&self, len: u64) -> Result<Output, CliError> {
        let failed = |e: io::Error| self.failed(&e);
        match &self.kind {
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
            Kind::Disk(_, file) => Ok(Output {
                file: file.try_clone().map_err(failed)?,
                fresh: false,
                unnamed: None,
            }),
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
            Kind::Disk(..) => {
                "the disk was left without a partition table: no device starts from it"
            }
        }
    }

    fn failed(&self, error: &io::Error) -> CliError {
        CliError::new(format!("{}: {error}", self.path.display()))
    }
}

fn open_disk(path: &Path, force: bool) -> io::Result<File> {
    // The kernel lets go of it to one who asks for it alone, and then nobody mounts it.
    let alone = if force { OFlags::empty() } else { OFlags::EXCL };
    let flags = i32::try_from(alone.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(flags);
    options.open(path)
}

/// Whether a disk may be written, or why not and what to do.
fn may_be_written(disk: &Disk, force: bool) -> Result<(), (String, Option<&'static str>)> {
    let doubt = disk.doubt.as_deref().map(unsure);
    let with_doubt = |why: &str| match &doubt {
        Some(doubt) => format!("{why}; {doubt}"),
        None => why.to_owned(),
    };
    let refused = match &disk.state {
        State::System => ("the running system is on it".to_owned(), None),
        State::Unclear(why) => (
            unsure(why),
            Some("if nothing on it is needed, `wipefs` makes that clear"),
        ),
        State::Used(how) if !force => (with_doubt(how), Some("unmount it, or use --force")),
        State::Fixed if !force => (
            with_doubt("a disk of this machine, not a card or a stick"),
            Some("--force overwrites it all the same"),
        ),
        State::Free | State::Fixed | State::Used(_) => return Ok(()),
    };
    Err(refused)
}

fn unsure(why: &str) -> String {
    format!("it can't be told whether the running system is on it: {why}")
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
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn disk(state: State, doubt: Option<&str>) -> Disk {
        Disk {
            name: "sdb".to_owned(),
            model: String::new(),
            state,
            doubt: doubt.map(str::to_owned),
        }
    }

    #[test]
    fn the_disk_that_was_looked_at_is_written_whatever_has_its_name_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sdb");
        let (card, other) = (dir.path().join("card"), dir.path().join("other"));
        for file in [&path, &other] {
            fs::write(file, "nothing yet").unwrap();
        }
        fs::hard_link(&path, &card).unwrap();
        let file = open_disk(&path, true).unwrap();
        let target = Target {
            path: path.clone(),
            kind: Kind::Disk(disk(State::Free, None), file),
            force: true,
        };
        fs::rename(&other, &path).unwrap();
        let output = target.open(5).unwrap();
        output.file.write_all_at(b"image", 0).unwrap();
        target.keep(output).unwrap();
        assert_eq!(fs::read_to_string(&card).unwrap(), "imageng yet");
        assert_eq!(fs::read_to_string(&path).unwrap(), "nothing yet");
    }

    #[test]
    fn force_takes_all_but_the_system_and_a_doubt_is_said() {
        let used = || State::Used("mounted at /a".to_owned());
        for state in [State::System, State::Unclear("/ is on ZFS".to_owned())] {
            let (why, _) = may_be_written(&disk(state, None), true).unwrap_err();
            assert!(why.contains("the running system is on it"), "{why}");
        }
        for state in [used(), State::Fixed] {
            let disk = disk(state, Some("/ is overlay"));
            let (why, hint) = may_be_written(&disk, false).unwrap_err();
            assert!(why.ends_with("is on it: / is overlay"), "{why}");
            assert!(hint.unwrap().contains("--force"));
            assert!(may_be_written(&disk, true).is_ok());
        }
        assert!(may_be_written(&disk(State::Free, Some("/ is overlay")), false).is_ok());
    }

    #[test]
    fn a_disk_that_is_too_small_is_refused_and_one_that_is_just_large_enough_is_not() {
        assert!(enough(512, 512).is_ok());
        let said = enough(511 << 20, 512 << 20).unwrap_err();
        assert_eq!(said, "too small: it has 511.0 MiB, and the image 512.0 MiB");
    }
}
