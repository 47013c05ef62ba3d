//! From an image to where it goes, and back to see that it arrived.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use sha2::{Digest as _, Sha256};

use super::overlay::Overlay;
use super::progress::Progress;

/// Bytes that are moved at a time.
const CHUNK: usize = 1 << 20;
/// Zeros of this length become a hole in a file.
const HOLE: usize = 64 << 10;
/// A disk has this many bytes to write at most, so that the rate that is shown is its own.
const AHEAD: u64 = 32 << 20;

/// What was written, or read.
pub struct Pass {
    /// SHA-256.
    pub digest: [u8; 32],
    /// Bytes that were not passed over as zeros.
    pub data: u64,
    /// How long it took.
    pub took: Duration,
}

/// Writes the image. On one that is not `fresh` zeros are written too, and the beginning, with the
/// partition table, comes last: a copy that ends early is not taken for a whole one.
///
/// # Errors
/// Either can't be read or written, or `stop` was set.
pub fn write(image: &Overlay, to: &File, fresh: bool, stop: &AtomicBool) -> io::Result<Pass> {
    let mut progress = Progress::new("writing", image.bytes());
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut first = Vec::new();
    let mut next = image.next_data(0);
    let (mut data, mut ahead) = (0, 0);
    for at in (0..image.bytes()).step_by(CHUNK) {
        check(stop)?;
        progress.at(at);
        let chunk = part(&mut buffer, image.bytes() - at);
        let end = at + chunk.len() as u64;
        if next.is_some_and(|next| next < at) {
            next = image.next_data(at);
        }
        let hole = next.is_none_or(|next| next >= end);
        if hole {
            chunk.fill(0);
        } else {
            image.read_at(chunk, at)?;
            data += chunk.len() as u64;
        }
        hash.update(&*chunk);
        if fresh {
            write_sparse(to, chunk, at)?;
            continue;
        }
        if at == 0 {
            first = chunk.to_vec();
            chunk.fill(0);
        }
        if !hole || zero(to, at, chunk.len() as u64).is_err() {
            to.write_all_at(chunk, at)?;
        }
        ahead += chunk.len() as u64;
        if ahead >= AHEAD || at == 0 {
            to.sync_data()?;
            ahead = 0;
        }
    }
    to.sync_all()?;
    to.write_all_at(&first, 0)?;
    to.sync_all()?;
    Ok(Pass {
        digest: hash.finalize().into(),
        data,
        took: progress.end(),
    })
}

/// Reads the first `len` bytes from where they are stored, not from memory.
///
/// # Errors
/// They can't be read, or `stop` was set.
pub fn read(from: &File, len: u64, stop: &AtomicBool) -> io::Result<Pass> {
    fadvise(from, 0, None, Advice::DontNeed)?;
    let mut progress = Progress::new("verifying", len);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        check(stop)?;
        progress.at(at);
        let chunk = part(&mut buffer, len - at);
        from.read_exact_at(chunk, at)?;
        hash.update(&*chunk);
    }
    Ok(Pass {
        digest: hash.finalize().into(),
        data: len,
        took: progress.end(),
    })
}

fn check(stop: &AtomicBool) -> io::Result<()> {
    if stop.load(Ordering::Relaxed) {
        return Err(io::Error::other("stopped"));
    }
    Ok(())
}

fn part(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    &mut buffer[..len]
}

fn write_sparse(to: &File, chunk: &[u8], at: u64) -> io::Result<()> {
    for (at, piece) in (at..).step_by(HOLE).zip(chunk.chunks(HOLE)) {
        if piece.iter().any(|byte| *byte != 0) {
            to.write_all_at(piece, at)?;
        }
    }
    Ok(())
}

/// Has the disk, or the kernel, write zeros.
fn zero(to: &File, at: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(to, flags, at, len)?)
}
