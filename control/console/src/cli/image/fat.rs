//! `hyperion.conf` on the FAT partition of an image.

use std::io::{self, Read as _, Write as _};

use fatfs::{FileSystem, FsOptions};

use super::gpt::{self, Partition};
use super::overlay::{Overlay, Window};
use super::settings::FILE;

/// Volumes with this label come first on a device, wherever they are.
const LABEL: &str = "HYPERION";

/// Why an image can't take settings.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Partitions.
    #[error("{0}")]
    Table(#[from] gpt::Problem),
    /// There is nothing that a device would look at.
    #[error("no FAT partition that a device reads {FILE} from; it has {found}")]
    NoVolume {
        /// What there is.
        found: String,
    },
    /// The file system.
    #[error("partition {number}: {problem}")]
    Volume {
        /// Partition.
        number: u32,
        /// What is wrong.
        problem: String,
    },
}

/// Finds the partition that a device reads settings from: a FAT volume with the label `HYPERION`, else
/// the EFI system partition, which is mounted as `/boot/efi`.
///
/// # Errors
/// The image has no such partition; the message names those that it has.
pub fn find(image: &mut Overlay) -> Result<Partition, Problem> {
    let all = gpt::partitions(image)?;
    let mut efi = None;
    for partition in &all {
        let Ok(label) = on(image, partition, |volume| label(&volume)) else {
            continue;
        };
        if label.eq_ignore_ascii_case(LABEL) {
            return Ok(partition.clone());
        }
        if partition.efi_system {
            efi.get_or_insert(partition);
        }
    }
    efi.cloned().ok_or_else(|| Problem::NoVolume {
        found: listed(&all),
    })
}

fn listed(all: &[Partition]) -> String {
    let named: Vec<String> = all
        .iter()
        .take(16)
        .map(|p| format!("{} {:?}", p.number, p.name))
        .collect();
    match named.len() {
        0 => "no partitions".to_owned(),
        n if n < all.len() => format!("{} and {} more", named.join(", "), all.len() - n),
        _ => named.join(", "),
    }
}

/// Puts the settings there; an older file makes way.
///
/// # Errors
/// The volume is damaged or full.
pub fn put(image: &mut Overlay, partition: &Partition, text: &str) -> Result<(), Problem> {
    on(image, partition, |volume| {
        let mut file = volume.root_dir().create_file(FILE)?;
        file.truncate()?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
        drop(file);
        volume.unmount()
    })?;
    // A volume that is full or damaged may take a part of it without a word.
    if get(image, partition)? == text.as_bytes() {
        return Ok(());
    }
    Err(Problem::Volume {
        number: partition.number,
        problem: format!("{FILE} is not what was written: the volume is damaged"),
    })
}

/// Reads the settings that are there.
///
/// # Errors
/// There are none, or the volume is damaged.
pub fn get(image: &mut Overlay, partition: &Partition) -> Result<Vec<u8>, Problem> {
    on(image, partition, |volume| {
        let mut text = Vec::new();
        let file = volume.root_dir().open_file(FILE)?;
        // No more than any file that was put there.
        file.take(1 << 20).read_to_end(&mut text)?;
        Ok(text)
    })
}

/// Does something with the volume on a partition.
fn on<T>(
    image: &mut Overlay,
    partition: &Partition,
    work: impl FnOnce(FileSystem<Window<'_>>) -> io::Result<T>,
) -> Result<T, Problem> {
    let failed = |problem: String| Problem::Volume {
        number: partition.number,
        problem,
    };
    let mut boot = [0; 512];
    image
        .read_at(&mut boot, partition.start)
        .map_err(|e| failed(e.to_string()))?;
    is_fat(&boot, partition.len).map_err(|e| failed(e.to_owned()))?;
    let window = image.window(partition.start, partition.len);
    let options = FsOptions::new().update_accessed_date(false);
    FileSystem::new(window, options)
        .and_then(work)
        .map_err(|e| failed(e.to_string()))
}

/// The label in the root folder counts, where there is one.
fn label(volume: &FileSystem<Window<'_>>) -> io::Result<String> {
    let in_root = volume.read_volume_label_from_root_dir()?;
    Ok(in_root.unwrap_or_else(|| volume.volume_label()))
}

/// Is this the first block of a FAT volume whose sizes go together? fatfs calculates with them before it
/// doubts them.
fn is_fat(boot: &[u8; 512], len: u64) -> Result<(), &'static str> {
    let byte = |at: usize| u64::from(boot[at]);
    let short = |at: usize| byte(at) | byte(at + 1) << 8;
    let long = |at: usize| short(at) | short(at + 2) << 16;
    let either = |short: u64, long: u64| if short == 0 { long } else { short };
    let (sector, cluster) = (short(11), byte(13));
    if short(510) != 0xaa55
        || ![512, 1024, 2048, 4096].contains(&sector)
        || !cluster.is_power_of_two()
    {
        return Err("not a FAT volume");
    }
    let (reserved, copies, table) = (short(14), byte(16), either(short(22), long(36)));
    let sectors = either(short(19), long(32));
    let root = (short(17) * 32).div_ceil(sector);
    let before_data = reserved + copies * table + root;
    let clusters = sectors.saturating_sub(before_data) / cluster;
    // 12 bits an entry at least, with two entries before the first.
    let entries = table * sector * 8 / 12;
    let fits = sectors * sector <= len
        && (1..=2).contains(&copies)
        && before_data < sectors
        && clusters + 2 <= entries
        && table * sector * 8 <= u64::from(u32::MAX);
    if fits {
        Ok(())
    } else {
        Err("the sizes in the first block of its FAT volume do not go together")
    }
}
