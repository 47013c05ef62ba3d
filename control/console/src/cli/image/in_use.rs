//! Is a disk free to be written? Asked of `/sys` and `/proc`, below a root that tests choose.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::zfs;

/// A disk, as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Name, as in `sdb`.
    pub name: String,
    /// What its maker calls it; may be empty.
    pub model: String,
    /// Who uses it.
    pub state: State,
    /// Why it can't be told whether the running system is on it; none where it can.
    pub doubt: Option<String>,
}

/// Who uses a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nobody, and it can be taken out: a card, a stick, a disk on USB.
    Free,
    /// Nobody, but it is a disk of this machine.
    Fixed,
    /// Somebody: a mount point, swap, or a device that is laid over it.
    Used(String),
    /// The running system: its root is there.
    System,
    /// Perhaps the running system, for this reason.
    Unclear(String),
}

/// Looks at a disk.
///
/// # Errors
/// The kernel does not know it, or it is only a part of a disk.
pub fn look(root: &Path, major: u32, minor: u32) -> io::Result<Disk> {
    let dir = fs::canonicalize(root.join(format!("sys/dev/block/{major}:{minor}")))?;
    let name = file_name(&dir);
    if dir.join("partition").exists() {
        let disk = dir.parent().map(file_name).unwrap_or_default();
        return Err(io::Error::other(format!(
            "a partition; the image is for the whole disk, /dev/{disk}"
        )));
    }
    let family = family(&dir);
    let table = mount_table(root);
    let btrfs = btrfs_of(root, &family);
    let mut mounts: Vec<&Mount> = table
        .iter()
        .filter(|mount| family.iter().chain(&btrfs).any(|m| mount.is_of(m)))
        .collect();
    mounts.sort_by(|a, b| a.at.cmp(&b.at));
    let doubt = doubt(root, &table);
    let outside = || line(&dir.join("removable")) == "1" || is_outside(&dir);
    let state = if mounts.iter().any(|mount| mount.at == "/") {
        State::System
    } else if let Some(state) = on_zfs(root, &family, &table) {
        state
    } else if let Some(mount) = mounts.first() {
        State::Used(format!("mounted at {}", mount.at))
    } else if let Some(swap) = swap(root, &family) {
        State::Used(format!("{swap} is swap"))
    } else if !btrfs.is_empty() {
        match &doubt {
            Some(why) => State::Unclear(why.clone()),
            None => State::Used("part of a btrfs that is in use".to_owned()),
        }
    } else if let Some(over) = family.iter().find(|d| d.laid_over) {
        State::Used(format!("{} is made of it", over.name))
    } else if outside() {
        State::Free
    } else {
        State::Fixed
    };
    let model = ["vendor", "model", "name"].map(|file| line(&dir.join("device").join(file)));
    let model = model.into_iter().filter(|word| !word.is_empty());
    Ok(Disk {
        name,
        model: crate::text::clean(&model.collect::<Vec<_>>().join(" ")).into_owned(),
        state,
        doubt,
    })
}

/// On USB, or a card in a reader: those call themselves fixed where the disk or card can't leave its case
/// or slot without the whole. Memory on the board is on the same bus as cards, and is no card.
fn is_outside(dir: &Path) -> bool {
    dir.components().any(|part| {
        let part = part.as_os_str().to_string_lossy();
        part.starts_with("usb") || part == "mmc_host" && line(&dir.join("device/type")) == "SD"
    })
}

/// A disk, a partition of it, or what is laid over one of them.
struct Member {
    name: String,
    number: String,
    /// Of a volume of the device mapper: its name in `/dev/mapper`; else empty.
    mapped: String,
    laid_over: bool,
}

fn member(dir: &Path, laid_over: bool) -> Member {
    Member {
        name: file_name(dir),
        number: line(&dir.join("dev")),
        mapped: line(&dir.join("dm/name")),
        laid_over,
    }
}

/// The disk, its partitions, and what is laid over them: encryption, volumes, arrays.
fn family(disk: &Path) -> Vec<Member> {
    // More than any machine has: links that lead in a circle end there.
    const MOST: usize = 1024;
    let mut found: Vec<Member> = Vec::new();
    let mut open = vec![(disk.to_owned(), false)];
    while let Some((dir, laid_over)) = open.pop() {
        let name = file_name(&dir);
        if found.iter().any(|m| m.name == name) || found.len() == MOST {
            continue;
        }
        found.push(member(&dir, laid_over));
        let partitions = entries(&dir).filter(|dir| dir.join("partition").exists());
        open.extend(partitions.map(|dir| (dir, laid_over)));
        let holders = entries(&dir.join("holders"));
        open.extend(holders.filter_map(|link| Some((fs::canonicalize(link).ok()?, true))));
    }
    found
}

/// A mounted file system.
struct Mount {
    number: String,
    at: String,
    kind: String,
    /// What it is on: devices without `/dev/` (bcachefs names several), of ZFS a dataset.
    sources: Vec<String>,
}

impl Mount {
    fn is_of(&self, member: &Member) -> bool {
        // btrfs has numbers of its own and tells the device by name.
        let named = |source: &String| {
            let mapped = source.strip_prefix("mapper/");
            *source == member.name
                || !member.mapped.is_empty() && mapped == Some(member.mapped.as_str())
        };
        self.number == member.number || self.sources.iter().any(named)
    }

    /// Of ZFS: its pool.
    fn pool(&self) -> Option<&str> {
        let dataset = self.sources.first().filter(|_| self.kind == "zfs")?;
        dataset.split(['/', '@']).next()
    }
}

fn mount_table(root: &Path) -> Vec<Mount> {
    let text = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            // Fields before and after the optional ones; proc(5).
            let (before, after) = line.split_once(" - ")?;
            let fields: Vec<&str> = before.split(' ').collect();
            let (number, at) = (fields.get(2)?, fields.get(4)?);
            let mut after = after.split(' ');
            let (kind, source) = (after.next()?, unescape(after.next()?));
            let sources: Vec<String> = match kind {
                "zfs" => vec![source],
                _ => source
                    .split(':')
                    .filter_map(|s| Some(s.strip_prefix("/dev/")?.to_owned()))
                    .collect(),
            };
            Some(Mount {
                number: (*number).to_owned(),
                at: unescape(at),
                kind: kind.to_owned(),
                sources,
            })
        })
        .collect()
}

/// Devices of the btrfs file systems in use that the family is part of: only one of them is named where
/// they are mounted.
fn btrfs_of(root: &Path, family: &[Member]) -> Vec<Member> {
    let all = entries(&root.join("sys/fs/btrfs")).map(|dir| btrfs_devices(&dir));
    let ours = all.filter(|devices| {
        let mut names = devices.iter().map(|d| &d.name);
        names.any(|name| family.iter().any(|m| m.name == *name))
    });
    ours.flatten().collect()
}

fn btrfs_devices(dir: &Path) -> Vec<Member> {
    let links = entries(&dir.join("devices"));
    let dirs = links.filter_map(|link| fs::canonicalize(link).ok());
    dirs.map(|dir| member(&dir, false)).collect()
}

/// What ZFS has to say of the disk: the kernel tells nobody what its pools are made of, but each part says
/// whose it is.
fn on_zfs(root: &Path, family: &[Member], table: &[Mount]) -> Option<State> {
    let system = table.iter().filter(|m| m.at == "/").find_map(Mount::pool);
    let mounted: BTreeSet<&str> = table.iter().filter_map(Mount::pool).collect();
    let imported: BTreeSet<String> = entries(&root.join("proc/spl/kstat/zfs"))
        .filter(|dir| dir.join("state").exists())
        .map(|dir| file_name(&dir))
        .collect();
    if mounted.is_empty() && imported.is_empty() {
        return None;
    }
    let mut used = None;
    for member in family {
        let device = Path::new("dev").join(&member.name);
        let part = zfs::part(&root.join(&device));
        let pool = match part {
            Ok(None) => continue,
            Ok(Some(pool)) if !pool.is_empty() => pool,
            Ok(Some(_)) | Err(_) if system.is_none() => continue,
            Ok(Some(_)) => {
                let name = &member.name;
                let why = format!("/ is on ZFS, and so is {name}, of which pool can't be told");
                return Some(State::Unclear(why));
            }
            Err(e) => {
                let why = format!("/ is on ZFS, and /{}: {e}", device.display());
                return Some(State::Unclear(why));
            }
        };
        if system == Some(pool.as_str()) {
            return Some(State::System);
        }
        if mounted.contains(pool.as_str()) || imported.contains(&pool) {
            let pool = crate::text::clean(&pool).into_owned();
            used = Some(State::Used(format!("ZFS pool {pool} is on it and in use")));
        }
    }
    used
}

/// Why it can't be told which disk `/` is on. Most file systems have the number of their device; some name
/// it; ZFS names its pool.
fn doubt(root: &Path, table: &[Mount]) -> Option<String> {
    let Some(system) = table.iter().rfind(|mount| mount.at == "/") else {
        return Some("/proc/self/mountinfo names no /".to_owned());
    };
    let known = match system.kind.as_str() {
        _ if !system.number.starts_with("0:") => true,
        "zfs" => true,
        "btrfs" => entries(&root.join("sys/fs/btrfs"))
            .flat_map(|dir| btrfs_devices(&dir))
            .any(|device| system.is_of(&device)),
        _ => !system.sources.is_empty(),
    };
    (!known).then(|| {
        format!(
            "/ is {}, which names no disk",
            crate::text::clean(&system.kind)
        )
    })
}

/// Spaces in mount points are written `\040`.
fn unescape(text: &str) -> String {
    let text = text.replace("\\040", " ").replace("\\134", "\\");
    crate::text::clean(&text).into_owned()
}

fn swap(root: &Path, family: &[Member]) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/swaps")).ok()?;
    text.lines()
        .filter_map(|line| line.split(' ').next()?.strip_prefix("/dev/"))
        .find(|name| family.iter().any(|m| m.name == *name))
        .map(|name| format!("/dev/{name}"))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok().map(|e| e.path()))
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What a file of one line says; nothing where it is not there.
fn line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine with the system on an encrypted disk and a stick of two partitions.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            machine.disk("pci/ata1/block/sda", "8:0", false);
            machine.partition("pci/ata1/block/sda", "sda2", "8:2");
            machine.disk("virtual/block/dm-0", "253:0", false);
            machine.link("pci/ata1/block/sda/sda2/holders/dm-0", "virtual/block/dm-0");
            machine.disk("pci/usb2/block/sdb", "8:16", true);
            machine.put(
                "sys/devices/pci/usb2/block/sdb/device/model",
                "Ultra \x1b[2J\n",
            );
            machine.partition("pci/usb2/block/sdb", "sdb1", "8:17");
            machine.disk("pci/ata2/block/sdc", "8:32", false);
            machine.mounted("1 0 253:0 / / rw - ext4 /dev/mapper/root rw");
            machine
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            let devices = self.0.path().join("sys/devices");
            let path = devices.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(devices.join(to), path).unwrap();
        }

        fn number(&self, path: &str, number: &str) {
            self.put(&format!("sys/devices/{path}/dev"), &format!("{number}\n"));
            self.link(&format!("../dev/block/{number}"), path);
        }

        fn disk(&self, path: &str, number: &str, removable: bool) {
            self.number(path, number);
            let removable = if removable { "1\n" } else { "0\n" };
            self.put(&format!("sys/devices/{path}/removable"), removable);
        }

        fn partition(&self, disk: &str, name: &str, number: &str) {
            self.number(&format!("{disk}/{name}"), number);
            self.put(&format!("sys/devices/{disk}/{name}/partition"), "1\n");
        }

        fn mounted(&self, lines: &str) {
            self.put("proc/self/mountinfo", lines);
        }

        fn state(&self, minor: u32) -> State {
            look(self.0.path(), 8, minor).unwrap().state
        }
    }

    #[test]
    fn the_disk_below_the_running_root_is_known_through_what_is_laid_over_it() {
        let machine = Machine::new();
        assert_eq!(machine.state(0), State::System);
        // btrfs tells a number of its own, and the volume by its name in /dev/mapper.
        machine.put("sys/devices/virtual/block/dm-0/dm/name", "luks-1\n");
        machine.mounted("1 0 0:35 / / rw - btrfs /dev/mapper/luks-1 rw");
        assert_eq!(machine.state(0), State::System);
        machine.mounted("1 0 0:35 / / rw - btrfs /dev/mapper/luks-2 rw");
        assert_ne!(machine.state(0), State::System);
    }

    /// A btrfs in use that these are parts of.
    fn btrfs(machine: &Machine, devices: &[(&str, &str)]) {
        let dir = machine.0.path().join("sys/fs/btrfs/0a1b/devices");
        fs::create_dir_all(&dir).unwrap();
        for (name, path) in devices {
            let to = machine.0.path().join("sys/devices").join(path);
            symlink(to, dir.join(name)).unwrap();
        }
    }

    #[test]
    fn each_device_of_a_btrfs_is_known_though_only_one_is_named() {
        let machine = Machine::new();
        machine.partition("pci/ata2/block/sdc", "sdc1", "8:33");
        machine.mounted("1 0 0:35 /@ / rw - btrfs /dev/sda2 rw");
        let devices = [
            ("sda2", "pci/ata1/block/sda/sda2"),
            ("sdc1", "pci/ata2/block/sdc/sdc1"),
        ];
        btrfs(&machine, &devices);
        assert_eq!(
            (machine.state(0), machine.state(32)),
            (State::System, State::System)
        );
        assert_eq!(machine.state(16), State::Free);
        // Mounted elsewhere, as the mapper names it, and where others see it.
        machine.put("sys/devices/pci/ata1/block/sda/sda2/dm/name", "luks-1\n");
        machine.mounted(
            "1 0 253:0 / / rw - ext4 /dev/mapper/root rw\n\
             2 1 0:35 / /data rw - btrfs /dev/mapper/luks-1 rw",
        );
        assert_eq!(
            machine.state(32),
            State::Used("mounted at /data".to_owned())
        );
        machine.mounted("1 0 253:0 / / rw - ext4 /dev/mapper/root rw");
        let used = State::Used("part of a btrfs that is in use".to_owned());
        assert_eq!(machine.state(32), used);
        // Which of all is the system's can't be told.
        machine.mounted("1 0 0:35 / / rw - btrfs /dev/root rw");
        assert!(matches!(machine.state(32), State::Unclear(why) if why.contains("btrfs")));
        // bcachefs names all that it is on.
        machine.mounted("1 0 0:35 / / rw - bcachefs /dev/sdb1:/dev/sdc1 rw");
        assert_eq!(
            (machine.state(16), machine.state(32)),
            (State::System, State::System)
        );
    }

    #[test]
    fn a_disk_of_the_system_s_zfs_pool_is_known_by_what_is_written_on_it() {
        let machine = Machine::new();
        machine.partition("pci/ata2/block/sdc", "sdc1", "8:33");
        let put = |name: &str, bytes: &[u8]| {
            fs::create_dir_all(machine.0.path().join("dev")).unwrap();
            fs::write(machine.0.path().join("dev").join(name), bytes).unwrap();
        };
        for name in ["sda", "sda2", "dm-0", "sdb", "sdb1", "sdc"] {
            put(name, &[0; 512]);
        }
        put("sdc1", &zfs::sample("rpool"));
        // Nothing is in use: what is on it is old.
        assert_eq!(machine.state(32), State::Fixed);
        machine.mounted("1 0 0:30 / / rw - zfs rpool/ROOT/debian rw");
        assert_eq!(machine.state(32), State::System);
        assert_eq!(machine.state(16), State::Free);
        machine.mounted(
            "1 0 0:30 / / rw - zfs rpool2/ROOT rw\n2 1 0:31 / /tank rw - zfs rpool/tank rw",
        );
        let used = State::Used("ZFS pool rpool is on it and in use".to_owned());
        assert_eq!(machine.state(32), used);
        // Imported, and mounted nowhere.
        machine.mounted("1 0 253:0 / / rw - ext4 /dev/mapper/root rw");
        machine.put("proc/spl/kstat/zfs/rpool/state", "ONLINE\n");
        assert_eq!(machine.state(32), used);
        // Below encryption.
        machine.mounted("1 0 0:30 / / rw - zfs rpool/ROOT/debian rw");
        put("dm-0", &zfs::sample("rpool"));
        assert_eq!(machine.state(0), State::System);
        // Damaged, or out of sight: nobody knows.
        put("sdc1", &zfs::sample(""));
        assert!(matches!(machine.state(32), State::Unclear(why) if why.contains("sdc1")));
        fs::remove_file(machine.0.path().join("dev/sdc1")).unwrap();
        assert!(matches!(machine.state(32), State::Unclear(why) if why.contains("/dev/sdc1")));
        machine.mounted("1 0 253:0 / / rw - ext4 /dev/mapper/root rw");
        assert_eq!(machine.state(32), State::Fixed);
    }

    #[test]
    fn a_system_that_names_no_disk_leaves_a_doubt() {
        let machine = Machine::new();
        let doubt = |minor| look(machine.0.path(), 8, minor).unwrap().doubt;
        assert_eq!(doubt(32), None);
        machine.mounted("1 0 0:40 / / rw - zfs rpool/ROOT rw");
        assert_eq!(doubt(32), None);
        machine.mounted("1 0 0:40 / / rw - overlay overlay rw,lowerdir=/l");
        assert!(doubt(32).unwrap().contains("overlay"));
        machine.mounted("");
        assert!(doubt(32).is_some());
    }

    #[test]
    fn memory_on_the_board_is_not_a_card() {
        let machine = Machine::new();
        machine.disk("soc/mmc_host/mmc0/mmc0:1/block/sdd", "8:48", false);
        let kind = "sys/devices/soc/mmc_host/mmc0/mmc0:1/block/sdd/device/type";
        machine.put(kind, "MMC\n");
        assert_eq!(machine.state(48), State::Fixed);
        machine.put(kind, "SD\n");
        assert_eq!(machine.state(48), State::Free);
    }

    #[test]
    fn a_stick_is_free_until_it_is_mounted() {
        let machine = Machine::new();
        let stick = look(machine.0.path(), 8, 16).unwrap();
        assert_eq!(stick.state, State::Free);
        assert_eq!((&*stick.name, &*stick.model), ("sdb", "Ultra [2J"));
        for line in [
            "5 1 8:17 / /media/a\\040b rw shared:1 - vfat /dev/sdb1 rw",
            // btrfs.
            "5 1 0:44 /sub /media/a\\040b rw - btrfs /dev/sdb1 rw",
        ] {
            machine.mounted(line);
            let used = State::Used("mounted at /media/a b".to_owned());
            assert_eq!(machine.state(16), used, "{line}");
        }
        machine.mounted("damaged\n- -\n");
        assert_eq!(machine.state(16), State::Free);
        machine.put(
            "proc/swaps",
            "Filename Type\n/dev/sdb1   partition 1 0 -2\n",
        );
        assert_eq!(
            machine.state(16),
            State::Used("/dev/sdb1 is swap".to_owned())
        );
    }

    #[test]
    fn a_disk_of_the_machine_is_told_from_one_that_was_put_in() {
        let machine = Machine::new();
        assert_eq!(machine.state(32), State::Fixed);
        // An encrypted volume that is open and not mounted.
        machine.link("pci/ata2/block/sdc/holders/dm-0", "virtual/block/dm-0");
        machine.mounted("");
        assert_eq!(
            machine.state(32),
            State::Used("dm-0 is made of it".to_owned())
        );
        machine.disk("pci/usb2/block/sdd", "8:48", false);
        assert_eq!(machine.state(48), State::Free);
    }

    #[test]
    fn a_partition_is_no_disk() {
        let error = look(Machine::new().0.path(), 8, 17).unwrap_err();
        assert!(error.to_string().contains("/dev/sdb"), "{error}");
        assert!(look(Machine::new().0.path(), 9, 9).is_err());
    }
}
