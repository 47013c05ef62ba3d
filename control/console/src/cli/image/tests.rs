//! Small images with a partition table and a FAT volume, made here, and what `image prepare` makes of
//! them and of damaged ones.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use flate2::Crc;
use sha2::{Digest as _, Sha256};

use super::*;

const MIB: u64 = 1 << 20;
/// Type of a partition with Linux on it, as it is on disks.
const LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];
const ESP: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// Header and the beginnings of two entries, as sfdisk 2.38 wrote them for a disk of 3 MiB.
const SFDISK: [&str; 3] = [
    "4546492050415254000001005c0000008784df9d000000000100000000000000ff170000000000002200000000000000de17000000000000a1d0796800000040800000000000001002000000000000008000000080000000258008cc",
    "28732ac11ff8d211ba4b00a0c93ec93ba1d079680000004080000000000000110008000000000000ff0f00000000000000000000000000006500730070000000",
    "af3dc60f838472478e793d69d8477de4a1d079680000004080000000000000120010000000000000ff1300000000000000000000000000005500440041000000",
];

fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = Crc::new();
    crc.update(bytes);
    crc.sum().to_le_bytes()
}

/// Writes a partition table: type, name, first MiB, MiB of each.
fn table(file: &File, parts: &[([u8; 16], &str, u64, u64)]) {
    let mut entries = vec![0; 128 * 128];
    for ((kind, name, start, len), entry) in parts.iter().zip(entries.chunks_exact_mut(128)) {
        entry[..16].copy_from_slice(kind);
        entry[32..40].copy_from_slice(&(start * 2048).to_le_bytes());
        entry[40..48].copy_from_slice(&((start + len) * 2048 - 1).to_le_bytes());
        for (unit, place) in name.encode_utf16().zip(entry[56..].chunks_exact_mut(2)) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    }
    let mut header = [0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    header[88..].copy_from_slice(&crc(&entries));
    let sum = crc(&header);
    header[16..20].copy_from_slice(&sum);
    file.write_all_at(&header, 512).unwrap();
    file.write_all_at(&entries, 1024).unwrap();
}

fn format(file: &File, start: u64, len: u64, label: [u8; 11]) {
    let mut overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
    let options = FormatVolumeOptions::new().volume_label(label);
    fatfs::format_volume(overlay.window(start * MIB, len * MIB), options).unwrap();
    let mut bytes = vec![0; usize::try_from(len * MIB).unwrap()];
    overlay.read_at(&mut bytes, start * MIB).unwrap();
    for (block, bytes) in (0u64..).zip(bytes.chunks(4096)) {
        if bytes.iter().any(|b| *b != 0) {
            file.write_all_at(bytes, start * MIB + block * 4096)
                .unwrap();
        }
    }
}

/// A folder with an image of a device: EFI system partition of 2 MiB, root of 4 MiB in part used.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        let file = bench.create("device.img", 8);
        table(&file, &[(LINUX, "APP", 3, 4), (ESP, "esp", 1, 2)]);
        format(&file, 1, 2, *b"HYP-EFI    ");
        file.write_all_at(&[7; 100_000], 3 * MIB + 5000).unwrap();
        bench
    }

    fn create(&self, name: &str, mib: u64) -> File {
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        let file = options.open(self.at(name)).unwrap();
        file.set_len(mib * MIB).unwrap();
        file
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self) -> File {
        let mut options = fs::OpenOptions::new();
        let options = options.read(true).write(true);
        options.open(self.at("device.img")).unwrap()
    }

    fn command(&self, more: &[&str]) -> Prepare {
        use clap::Parser as _;
        let fingerprint = format!("sha256:{}", "0a".repeat(32));
        let mut line = vec!["hyperion", "image", "prepare", "--token", "abc.def0"];
        line.extend([
            "--control",
            "fleet.example:7444",
            "--ca-fingerprint",
            &fingerprint,
        ]);
        line.extend(more);
        match super::super::Cli::try_parse_from(line).unwrap().command {
            super::super::Command::Image(Command::Prepare(prepare)) => *prepare,
            other => panic!("{other:?}"),
        }
    }

    /// `image prepare` with a token that is given; nobody is to be asked for one.
    async fn prepare(&self, more: &[&str]) -> Result<String, CliError> {
        let sink = Arc::new(std::sync::Mutex::new(Vec::new()));
        let out = Out {
            captured: Some(sink.clone()),
            ..Out::default()
        };
        let nobody = async || panic!("a token is made");
        let command = Command::Prepare(Box::new(self.command(more)));
        run(command, nobody, &out).await?;
        let said = sink.lock().unwrap().clone();
        Ok(String::from_utf8(said).unwrap())
    }

    async fn to(&self, name: &str, more: &[&str]) -> Result<String, CliError> {
        let (image, out) = (self.at("device.img"), self.at(name));
        let mut words = vec![
            "--image",
            image.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
        ];
        words.extend(more);
        self.prepare(&words).await
    }

    /// Names of what is in the folder.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn settings_on(path: &Path) -> String {
    let mut image = Overlay::new(File::open(path).unwrap()).unwrap();
    let partition = fat::find(&mut image).unwrap();
    String::from_utf8(fat::get(&mut image, &partition).unwrap()).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

#[test]
fn a_table_of_another_program_is_read() {
    let bench = Bench(tempfile::tempdir().unwrap());
    let file = bench.create("device.img", 3);
    for (text, at) in SFDISK.iter().zip([512, 1024, 1152]) {
        file.write_all_at(&unhex(text), at).unwrap();
    }
    let found = gpt::partitions(&Overlay::new(file).unwrap()).unwrap();
    let named: Vec<_> = found
        .iter()
        .map(|p| (p.number, &*p.name, p.start, p.len, p.efi_system))
        .collect();
    let expected = [
        (1, "esp", MIB, MIB, true),
        (2, "UDA", 2 * MIB, MIB / 2, false),
    ];
    assert_eq!(named, expected);
}

#[tokio::test]
async fn an_image_is_written_with_its_settings_and_is_otherwise_the_same() {
    let bench = Bench::new();
    let before = fs::read(bench.at("device.img")).unwrap();
    let said = bench
        .to(
            "out.img",
            &[
                "--site",
                "hall-3",
                "--label",
                "a=b",
                "--hostname",
                "press-7",
            ],
        )
        .await
        .unwrap();
    let after = fs::read(bench.at("out.img")).unwrap();
    let fingerprint = "0a".repeat(32);
    assert_eq!(
        settings_on(&bench.at("out.img")),
        format!(
            "control=fleet.example:7444\ntoken=abc.def0\nca-fingerprint=sha256:{fingerprint}\n\
             site=hall-3\nlabel=a=b\nhostname=press-7\nend\n"
        )
    );
    assert_eq!(before, fs::read(bench.at("device.img")).unwrap());
    assert_eq!(before.len(), after.len());
    let differs = |at: &usize| before[*at] != after[*at];
    let (first, last) = (1 << 20, 3 << 20);
    assert!(
        (0..before.len())
            .filter(differs)
            .all(|at| (first..last).contains(&at))
    );
    let digest: String = Sha256::digest(&after)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    assert!(
        said.contains(&digest) && said.contains("partition 2 \"esp\""),
        "{said}"
    );
    assert!(!said.contains("def0"), "the token is a secret: {said}");
    let meta = fs::metadata(bench.at("out.img")).unwrap();
    assert_eq!(meta.mode() & 0o777, 0o600);
    assert!(
        meta.blocks() * 512 < 2 * MIB,
        "holes stay holes: {} blocks",
        meta.blocks()
    );
    assert_eq!(bench.names(), ["device.img", "out.img"]);
}

#[tokio::test]
async fn settings_that_were_there_make_way() {
    let bench = Bench::new();
    let labels: Vec<String> = (0..150)
        .map(|n| format!("--label=a{n}={}", "b".repeat(60)))
        .collect();
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    bench.to("first.img", &labels).await.unwrap();
    fs::rename(bench.at("first.img"), bench.at("device.img")).unwrap();
    bench.to("out.img", &[]).await.unwrap();
    let text = settings_on(&bench.at("out.img"));
    assert!(
        text.ends_with("\nend\n") && !text.contains("label"),
        "{text}"
    );
}

#[tokio::test]
async fn a_volume_with_the_label_comes_before_the_boot_partition() {
    let bench = Bench::new();
    let file = bench.image();
    table(&file, &[(ESP, "esp", 1, 2), (LINUX, "conf", 3, 2)]);
    format(&file, 3, 2, *b"hyperion   ");
    let said = bench.to("out.img", &[]).await.unwrap();
    assert!(said.contains("partition 2 \"conf\""), "{said}");
    // A FAT volume that a device does not look at is no place for settings.
    table(&file, &[(LINUX, "a", 1, 2)]);
    let error = bench.to("other.img", &[]).await.unwrap_err();
    assert!(
        error.message.contains("no FAT partition") && error.message.contains("1 \"a\""),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_no_image_is_refused_and_nothing_is_written() {
    type Damage = fn(&File);
    let cases: [(&str, Damage); 8] = [
        ("no GUID partition table", |f| f.set_len(0).unwrap()),
        ("no GUID partition table", |f| f.set_len(600).unwrap()),
        ("no GUID partition table", |f| {
            f.write_all_at(b"x", 512).unwrap();
        }),
        ("the checksum of its header", |f| {
            f.write_all_at(b"x", 560).unwrap();
        }),
        ("the checksum of its entries", |f| {
            f.write_all_at(b"x", 1100).unwrap();
        }),
        ("reaches beyond the end", |f| f.set_len(4 * MIB).unwrap()),
        ("no FAT partition", |f| {
            f.write_all_at(&[0; 512], MIB).unwrap();
        }),
        ("no FAT partition", |f| table(f, &[])),
    ];
    for (expected, damage) in cases {
        let bench = Bench::new();
        damage(&bench.image());
        let error = bench.to("out.img", &[]).await.unwrap_err();
        assert!(error.message.contains(expected), "{expected}: {error}");
        assert_eq!(bench.names(), ["device.img"], "{expected}");
    }
    let bench = Bench::new();
    fs::write(bench.at("device.img"), b"\x28\xb5\x2f\xfdmore").unwrap();
    let error = bench.to("out.img", &[]).await.unwrap_err();
    assert!(error.hint.unwrap().contains("unzstd"));
}

#[tokio::test]
async fn a_volume_without_room_is_refused() {
    let bench = Bench::new();
    let mut overlay = Overlay::new(bench.image()).unwrap();
    let volume = FileSystem::new(overlay.window(MIB, 2 * MIB), FsOptions::new()).unwrap();
    let mut full = volume.root_dir().create_file("full").unwrap();
    while full.write_all(&[1; 512]).is_ok() {}
    drop(full);
    volume.unmount().unwrap();
    let mut bytes = vec![0; 2 << 20];
    overlay.read_at(&mut bytes, MIB).unwrap();
    bench.image().write_all_at(&bytes, MIB).unwrap();
    let error = bench.to("out.img", &[]).await.unwrap_err();
    assert!(error.message.contains("partition 2: "), "{error}");
    assert_eq!(bench.names(), ["device.img"]);
}

/// Every byte of the first block, of the tables and of the root folder, in turn.
#[test]
fn a_damaged_volume_is_an_error_or_holds_what_was_put_there() {
    let bench = Bench::new();
    let file = bench.image();
    let mut begin = vec![0; 24 << 10];
    file.read_exact_at(&mut begin, MIB).unwrap();
    let partition = Partition {
        number: 1,
        name: String::new(),
        start: MIB,
        len: 2 * MIB,
        efi_system: true,
    };
    let used = (0..begin.len()).filter(|at| *at < 512 || begin[*at] != 0 || at % 64 == 0);
    let mut refused = 0;
    for at in used.collect::<Vec<_>>() {
        for value in [0, 1, 0x80, 0xff, begin[at] ^ 1] {
            let mut overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
            overlay.write_at(&[value], MIB + at as u64).unwrap();
            match fat::put(&mut overlay, &partition, "text") {
                Ok(()) => assert_eq!(fat::get(&mut overlay, &partition).unwrap(), b"text"),
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 50, "{refused}");
}

#[tokio::test]
async fn what_is_there_is_kept_unless_it_is_to_go() {
    let bench = Bench::new();
    fs::write(bench.at("out.img"), "precious").unwrap();
    let error = bench.to("out.img", &[]).await.unwrap_err();
    assert!(error.message.ends_with("there already"), "{error}");
    assert_eq!(fs::read(bench.at("out.img")).unwrap(), b"precious");
    bench.to("out.img", &["--force"]).await.unwrap();
    assert!(settings_on(&bench.at("out.img")).contains("token=abc.def0"));

    let error = bench.to("device.img", &["--force"]).await.unwrap_err();
    assert!(error.message.contains("the image itself"), "{error}");
    fs::create_dir(bench.at("folder")).unwrap();
    let error = bench.to("folder", &["--force"]).await.unwrap_err();
    assert!(
        error.message.ends_with("neither a file nor a disk"),
        "{error}"
    );
    let error = bench.to("none/out.img", &[]).await.unwrap_err();
    assert!(error.message.contains("No such file"), "{error}");
    for device in ["/dev/null", "/dev/no-such-disk"] {
        let image = bench.at("device.img");
        let words = ["--image", image.to_str().unwrap(), "--out", device];
        let error = bench.prepare(&words).await.unwrap_err();
        assert!(error.message.contains(device), "{error}");
    }
    assert!(!Path::new("/dev/no-such-disk").exists());
}

#[test]
fn a_copy_that_ends_early_leaves_no_file() {
    let bench = Bench::new();
    let image = Image::open(&bench.at("device.img")).unwrap();
    let target = Target::look(&bench.at("out.img"), &image.file, false, Path::new("/")).unwrap();
    let stopped = image.write(&target, &AtomicBool::new(true)).unwrap_err();
    assert!(stopped.message.ends_with("stopped"), "{stopped}");
    // The image is cut off while it is read.
    bench.image().set_len(3 * MIB + 6000).unwrap();
    let error = image.write(&target, &AtomicBool::new(false)).unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("no file was left behind"));
    assert_eq!(bench.names(), ["device.img"]);
}

#[test]
fn a_file_that_came_into_being_meanwhile_is_kept() {
    let bench = Bench::new();
    let image = Image::open(&bench.at("device.img")).unwrap();
    let target = Target::look(&bench.at("out.img"), &image.file, false, Path::new("/")).unwrap();
    fs::write(bench.at("out.img"), "precious").unwrap();
    assert!(image.write(&target, &AtomicBool::new(false)).is_err());
    assert_eq!(fs::read(bench.at("out.img")).unwrap(), b"precious");
    assert_eq!(bench.names(), ["device.img", "out.img"]);
}

#[test]
fn on_a_disk_zeros_are_written_and_the_table_comes_last() {
    let bench = Bench::new();
    let image = Overlay::new(bench.image()).unwrap();
    let go = AtomicBool::new(false);
    let disk = bench.create("disk", 9);
    disk.write_all_at(&vec![0xff; 9 << 20], 0).unwrap();
    let written = copy::write(&image, &disk, false, &go).unwrap();
    let back = copy::read(&disk, image.bytes(), &go).unwrap();
    assert_eq!(written.digest, back.digest);
    let (on_disk, source) = (
        fs::read(bench.at("disk")).unwrap(),
        fs::read(bench.at("device.img")).unwrap(),
    );
    assert!(on_disk[..source.len()] == source, "the same bytes");
    assert!(
        on_disk[source.len()..].iter().all(|b| *b == 0xff),
        "and no more"
    );

    // One byte that the disk did not keep.
    disk.write_all_at(&[9], 5 * MIB).unwrap();
    let worn = copy::read(&disk, image.bytes(), &go).unwrap();
    assert_ne!(written.digest, worn.digest);

    // The image ends early, or the person does: no partition table.
    bench.image().set_len(5 * MIB).unwrap();
    bench.image().set_len(3 * MIB + 6000).unwrap();
    assert!(copy::write(&image, &disk, false, &go).is_err());
    let mut first = vec![1; 1 << 20];
    disk.read_exact_at(&mut first, 0).unwrap();
    assert!(first.iter().all(|b| *b == 0));
}

#[tokio::test]
async fn settings_alone_go_to_a_stick() {
    let bench = Bench::new();
    let dir = bench.0.path().to_str().unwrap();
    let said = bench
        .prepare(&["--stick", dir, "--label", "a=b"])
        .await
        .unwrap();
    assert!(said.contains(settings::FILE), "{said}");
    let text = fs::read_to_string(bench.at(settings::FILE)).unwrap();
    assert!(
        text.starts_with("control=") && text.ends_with("label=a=b\nend\n"),
        "{text}"
    );
    let error = bench.prepare(&["--stick", dir]).await.unwrap_err();
    assert!(error.message.ends_with("there already"), "{error}");
    bench.prepare(&["--stick", dir, "--force"]).await.unwrap();
    let text = fs::read_to_string(bench.at(settings::FILE)).unwrap();
    assert!(!text.contains("label"), "{text}");
    let error = bench.prepare(&["--stick", "/nowhere"]).await.unwrap_err();
    assert!(error.message.contains("/nowhere"), "{error}");
    assert_eq!(bench.names(), ["device.img", settings::FILE]);
}
