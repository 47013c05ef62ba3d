//! What says of a device that it is a part of a ZFS pool, and of which. Each part begins with two labels of
//! 256 KiB: in each 112 KiB of names and values (XDR), and from its half on a ring of blocks with a magic number.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

const LABEL: usize = 256 << 10;
const NAMES: std::ops::Range<usize> = 16 << 10..128 << 10;
const RING: std::ops::Range<usize> = 128 << 10..LABEL;
/// Smallest block of the ring.
const BLOCK: usize = 1 << 10;
const MAGIC: u64 = 0x00ba_b10c;
/// `name`, a string, one of it: the pool's is the first.
const NAME: &[u8] = b"\0\0\0\x04name\0\0\0\x09\0\0\0\x01";

/// Pool that a device is a part of: empty where its name can't be read, none where it is no part of any.
///
/// # Errors
/// The device can't be read.
pub fn part(device: &Path) -> io::Result<Option<String>> {
    let file = File::open(device)?;
    let mut label = vec![0; LABEL];
    let mut found = None;
    for at in 0..2 {
        match file.read_exact_at(&mut label, at * LABEL as u64) {
            Ok(()) => {}
            // Too small for any.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e),
        }
        if !is_label(&label) {
            continue;
        }
        match name(&label[NAMES]) {
            Some(name) => return Ok(Some(name)),
            None => found = Some(String::new()),
        }
    }
    Ok(found)
}

fn is_label(label: &[u8]) -> bool {
    let mut blocks = label[RING].chunks_exact(BLOCK);
    // Of the machine that wrote it.
    blocks.any(|block| {
        block.starts_with(&MAGIC.to_le_bytes()) || block.starts_with(&MAGIC.to_be_bytes())
    })
}

fn name(names: &[u8]) -> Option<String> {
    let at = names.windows(NAME.len()).position(|bytes| bytes == NAME)?;
    let rest = &names[at + NAME.len()..];
    let length: [u8; 4] = rest.get(..4)?.try_into().ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    let name = rest.get(4..length.checked_add(4)?)?;
    let name = std::str::from_utf8(name).ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// The beginning of a part of this pool; of none that is named where it is empty.
#[cfg(test)]
pub fn sample(pool: &str) -> Vec<u8> {
    let mut label = vec![0; LABEL];
    if !pool.is_empty() {
        let length = u32::try_from(pool.len()).unwrap().to_be_bytes();
        let named = [NAME, &length, pool.as_bytes()].concat();
        // After `version`.
        let at = NAMES.start + 48;
        label[at..at + named.len()].copy_from_slice(&named);
    }
    let at = RING.start + 5 * BLOCK;
    label[at..at + 8].copy_from_slice(&MAGIC.to_le_bytes());
    label
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_read_from_whichever_label_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("sdc1");
        let part = |bytes: &[u8]| {
            std::fs::write(&device, bytes).unwrap();
            part(&device).unwrap()
        };
        let pool = Some("tank".to_owned());
        assert_eq!(part(&sample("tank")), pool);
        assert_eq!(part(&[vec![0; LABEL], sample("tank")].concat()), pool);
        assert_eq!(part(&[sample(""), sample("tank")].concat()), pool);
        assert_eq!(part(&sample("")), Some(String::new()));
        for none in [
            Vec::new(),
            vec![0; LABEL * 2],
            sample("tank")[..LABEL - 1].to_vec(),
        ] {
            assert_eq!(part(&none), None);
        }
        // By a machine of the other byte order, and with a length that leads out of it.
        let mut label = sample("tank");
        label[RING].fill(0);
        label[RING.start..RING.start + 8].copy_from_slice(&MAGIC.to_be_bytes());
        assert_eq!(part(&label), pool);
        let at = NAMES.start + 48 + NAME.len();
        label[at..at + 4].fill(0xff);
        assert_eq!(part(&label), Some(String::new()));
        assert!(super::part(&dir.path().join("gone")).is_err());
    }
}
