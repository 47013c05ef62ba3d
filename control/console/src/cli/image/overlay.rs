//! An image with changes beside it: reads show both, and the file itself is never written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use rustix::fs::SeekFrom as Find;

/// Bytes of one change.
const BLOCK: u64 = 4096;

/// A file, and blocks that take the place of its own.
pub struct Overlay {
    file: File,
    len: u64,
    changes: BTreeMap<u64, Box<[u8]>>,
}

impl Overlay {
    /// An image as it is, in a file or on a disk.
    ///
    /// # Errors
    /// It can't be asked for its length.
    pub fn new(file: File) -> io::Result<Self> {
        // Metadata of a disk has no length.
        let len = rustix::fs::seek(&file, Find::End(0))?;
        Ok(Self {
            file,
            len,
            changes: BTreeMap::new(),
        })
    }

    /// Bytes of the image.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len
    }

    /// Reads, with changes.
    ///
    /// # Errors
    /// The file can't be read, or ends before `at` and the buffer's length.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, at)?;
        let end = at + buffer.len() as u64;
        for (&block, bytes) in self.changes.range(at / BLOCK..end.div_ceil(BLOCK)) {
            // What the block and the buffer have in common.
            let (from, to) = (at.max(block * BLOCK), end.min((block + 1) * BLOCK));
            let (into, of) = (from - at..to - at, from - block * BLOCK..to - block * BLOCK);
            let Some(bytes) = bytes.get(as_usize(of)) else {
                continue;
            };
            buffer[as_usize(into)].copy_from_slice(bytes);
        }
        Ok(())
    }

    /// Changes what reads show.
    ///
    /// # Errors
    /// As [`Self::read_at`]; nothing is changed behind the end of the image.
    pub fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for block in at / BLOCK..end.div_ceil(BLOCK) {
            let start = block * BLOCK;
            if !self.changes.contains_key(&block) {
                let mut old = vec![0; as_usize(0..BLOCK.min(self.len - start)).end];
                self.read_at(&mut old, start)?;
                self.changes.insert(block, old.into_boxed_slice());
            }
            let (from, to) = (at.max(start), end.min(start + BLOCK));
            if let Some(changed) = self.changes.get_mut(&block) {
                changed[as_usize(from - start..to - start)]
                    .copy_from_slice(&bytes[as_usize(from - at..to - at)]);
            }
        }
        Ok(())
    }

    /// Where the next bytes are that may be other than zero, at or after `at`; none where only zeros
    /// follow. A file system that does not tell says `at`.
    #[must_use]
    pub fn next_data(&self, at: u64) -> Option<u64> {
        let in_file = match rustix::fs::seek(&self.file, Find::Data(at)) {
            Ok(found) => Some(found),
            Err(rustix::io::Errno::NXIO) => None,
            Err(_) => Some(at),
        };
        let changed = self.changes.range(at / BLOCK..).next();
        let changed = changed.map(|(&block, _)| at.max(block * BLOCK));
        in_file.into_iter().chain(changed).min()
    }

    /// A part of the image, as a file of its own.
    pub fn window(&mut self, start: u64, len: u64) -> Window<'_> {
        Window {
            of: self,
            start,
            len,
            at: 0,
            left: MOST_IO,
        }
    }
}

/// What reading and writing a small file on a FAT volume takes, at most, bytes. A damaged volume may
/// send its reader round in circles.
const MOST_IO: u64 = 256 << 20;

/// A part of an image.
pub struct Window<'a> {
    of: &'a mut Overlay,
    start: u64,
    len: u64,
    at: u64,
    left: u64,
}

impl Window<'_> {
    /// How many of these bytes can be had at this place; they are counted.
    fn take(&mut self, bytes: usize) -> io::Result<usize> {
        let bytes = self.len.saturating_sub(self.at).min(bytes as u64);
        // A call that moves nothing costs as well.
        self.left = self.left.checked_sub(bytes.max(16)).ok_or_else(|| {
            io::Error::other("its tables lead round in circles: the volume is damaged")
        })?;
        Ok(as_usize(0..bytes).end)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.take(buffer.len())?;
        self.of
            .read_at(&mut buffer[..bytes], self.start + self.at)?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let bytes = self.take(buffer.len())?;
        self.of.write_at(&buffer[..bytes], self.start + self.at)?;
        self.at += bytes as u64;
        Ok(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.take(0)?;
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Places within a buffer that is in memory.
fn as_usize(range: std::ops::Range<u64>) -> std::ops::Range<usize> {
    let place = |at| usize::try_from(at).expect("a place within a buffer");
    place(range.start)..place(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(bytes: &[u8]) -> Overlay {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Overlay::new(file).unwrap()
    }

    #[test]
    fn reads_show_changes_and_the_file_does_not() {
        let mut image = overlay(&[7; 10_000]);
        image.write_at(&[1; 5000], 4000).unwrap();
        let mut seen = vec![0; 10_000];
        image.read_at(&mut seen, 0).unwrap();
        assert!(seen[..4000].iter().all(|b| *b == 7));
        assert!(seen[4000..9000].iter().all(|b| *b == 1));
        assert!(seen[9000..].iter().all(|b| *b == 7));
        let mut part = [0; 2];
        image.read_at(&mut part, 8999).unwrap();
        assert_eq!(part, [1, 7]);
        image.file.read_exact_at(&mut part, 5000).unwrap();
        assert_eq!(part, [7, 7]);
        // The last block is a short one.
        image.write_at(&[9], 9999).unwrap();
        image.read_at(&mut part, 9998).unwrap();
        assert_eq!(part, [7, 9]);
        assert!(image.write_at(&[9, 9], 9999).is_err());
        assert!(image.read_at(&mut part, 9999).is_err());
    }

    #[test]
    fn holes_are_passed_over_but_for_changes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1], 600_000).unwrap();
        let mut image = Overlay::new(file).unwrap();
        let first = image.next_data(0).unwrap();
        assert!(first <= 600_000);
        assert_eq!(image.next_data(600_001).filter(|at| *at > 700_000), None);
        image.write_at(&[1], 900_000).unwrap();
        let next = image.next_data(700_000).unwrap();
        assert!((700_000..=900_000).contains(&next));
    }

    #[test]
    fn a_window_ends_where_it_ends() {
        let mut image = overlay(&[7; 1000]);
        let mut window = image.window(100, 50);
        window.seek(SeekFrom::End(-10)).unwrap();
        let mut text = Vec::new();
        window.read_to_end(&mut text).unwrap();
        assert_eq!(text.len(), 10);
        assert!(window.seek(SeekFrom::Current(-51)).is_err());
        window.seek(SeekFrom::Start(49)).unwrap();
        assert!(window.write_all(&[1, 1]).is_err());
        window.seek(SeekFrom::Start(1 << 60)).unwrap();
        assert_eq!(window.read(&mut [0; 4]).unwrap(), 0);
    }

    #[test]
    fn a_reader_that_never_ends_is_ended() {
        let mut image = overlay(&[7; 1000]);
        let mut window = Window {
            left: 5000,
            ..image.window(0, 1000)
        };
        let mut rounds = 0;
        let error = loop {
            let read = window
                .seek(SeekFrom::Start(0))
                .and_then(|_| window.read(&mut [0; 1000]));
            match read {
                Ok(_) => rounds += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(rounds, 4);
        assert!(error.to_string().contains("circles"), "{error}");
    }
}
