//! Partitions of an image, from its GUID partition table (UEFI specification 2.10, chapter 5).
//!
//! Read here and not by a crate: those that are kept end the program on tables that are merely odd
//! (entries of another size), and reading is all that is needed.

use std::io;

use flate2::Crc;

use super::overlay::Overlay;
use crate::text::clean;

/// Logical blocks, bytes: of nearly all disks, and of some newer ones.
const BLOCKS: [u64; 2] = [512, 4096];
const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Bytes of a header that are looked at.
const HEADER: usize = 92;
/// Bytes of an entry that are looked at.
const ENTRY: usize = 128;
/// No table is longer, bytes. The usual one has 128 entries of 128.
const MOST_TABLE: u64 = 1 << 20;
/// C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it is written on disks.
const EFI_SYSTEM: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// A partition, within the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// From 1.
    pub number: u32,
    /// Name, cleaned; may be empty.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The partition that a device starts from, which it mounts as `/boot/efi`.
    pub efi_system: bool,
}

/// Why there are no partitions to be had.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Cannot be read.
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
    /// Something else, or nothing.
    #[error("no GUID partition table")]
    Absent,
    /// A table with errors.
    #[error("its partition table is damaged: {0}")]
    Damaged(&'static str),
}

/// Lists the partitions, in the table's order.
///
/// # Errors
/// There is no table, or a damaged one.
pub fn partitions(image: &Overlay) -> Result<Vec<Partition>, Problem> {
    for block in BLOCKS {
        let mut header = vec![0; HEADER];
        if image.bytes() < 2 * block {
            continue;
        }
        image.read_at(&mut header, block)?;
        if header.starts_with(SIGNATURE) {
            return read(image, &header, block);
        }
    }
    Err(Problem::Absent)
}

fn read(image: &Overlay, header: &[u8], block: u64) -> Result<Vec<Partition>, Problem> {
    let damaged = Problem::Damaged;
    let size = u32_at(header, 12) as usize;
    if size < HEADER || size as u64 > block {
        return Err(damaged("the size of its header"));
    }
    let mut whole = vec![0; size];
    image.read_at(&mut whole, block)?;
    whole[16..20].fill(0);
    if crc(&whole) != u32_at(header, 16) {
        return Err(damaged("the checksum of its header"));
    }
    let (count, entry) = (u64::from(u32_at(header, 80)), u64::from(u32_at(header, 84)));
    let bytes = count.saturating_mul(entry);
    if entry < ENTRY as u64 || bytes > MOST_TABLE {
        return Err(damaged("the size of its entries"));
    }
    let start = u64_at(header, 72).checked_mul(block);
    let inside = |start: u64, len: u64| {
        start
            .checked_add(len)
            .is_some_and(|end| end <= image.bytes())
    };
    let start = start
        .filter(|start| inside(*start, bytes))
        .ok_or(damaged("the place of its entries"))?;
    let mut table = vec![0; usize::try_from(bytes).map_err(|_| damaged("its size"))?];
    image.read_at(&mut table, start)?;
    if crc(&table) != u32_at(header, 88) {
        return Err(damaged("the checksum of its entries"));
    }
    let mut found = Vec::new();
    let entry = usize::try_from(entry).map_err(|_| damaged("its size"))?;
    for (number, entry) in (1..).zip(table.chunks_exact(entry)) {
        let kind = &entry[..16];
        if kind.iter().all(|b| *b == 0) {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let place = last
            .checked_sub(first)
            .and_then(|n| n.checked_add(1)?.checked_mul(block))
            .zip(first.checked_mul(block))
            .filter(|(len, start)| inside(*start, *len));
        // The image was cut off.
        let (len, start) =
            place.ok_or(damaged("a partition reaches beyond the end of the image"))?;
        found.push(Partition {
            number,
            name: name(&entry[56..ENTRY]),
            start,
            len,
            efi_system: kind == EFI_SYSTEM,
        });
    }
    Ok(found)
}

/// The name in an entry: UTF-16, up to the first zero.
fn name(bytes: &[u8]) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    clean(&String::from_utf16_lossy(&units)).into_owned()
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .rev()
        .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
