//! Telemetry tests on a captured tree and on texts that kernels have been seen to show.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use hyperion_proto::convert;

use super::*;
use crate::testing::copy_tree;

fn captured() -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/debian12-x86_64"
    ))
}

/// A copy of the captured tree that a test may change.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_tree(&captured(), dir.path());
    dir
}

fn look(root: &Path) -> Look {
    sensors::Board::new(root.to_owned()).look(Instant::now())
}

fn sampler(root: &Path) -> Sampler {
    Sampler::new(root, root)
}

#[test]
fn the_captured_node_is_described() {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let reserved = Reserved {
        cpu_millis: 500,
        memory_bytes: 1 << 20,
    };
    let root = captured();
    let c = capabilities(&root, &root, reserved, &labels, &Look::default());
    assert_eq!(c.cpu_millis, 1500);
    let total = text(root.join("proc/meminfo"))
        .and_then(|t| memory::parse(&t))
        .unwrap()
        .total;
    assert_eq!(c.memory_bytes as u64, total - (1 << 20));
    assert!(c.disk_bytes > 0);
    assert_eq!(c.labels["kubernetes.io/hostname"], "board-17");
    assert_eq!(c.labels["zone"], "a");
    assert!(c.os.starts_with("Debian GNU/Linux 12"), "{}", c.os);
    assert!(convert::capabilities(Some(&c)).is_ok());
}

#[test]
fn a_board_is_told_as_labels_that_kubernetes_takes() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/jetson-orin-nano");
    let root = Path::new(root);
    // A person's own word stands.
    let labels = BTreeMap::from([("hyperion.io/serial".to_owned(), "mine".to_owned())]);
    let c = capabilities(root, root, Reserved::default(), &labels, &look(root));
    for (label, value) in [
        (
            "hyperion.io/board",
            "NVIDIA-Jetson-Orin-Nano-Engineering-Reference-Developer-Kit-Sup",
        ),
        ("hyperion.io/soc", "tegra234"),
        ("hyperion.io/l4t", "36.4.3"),
        ("hyperion.io/serial", "mine"),
    ] {
        assert_eq!(c.labels.get(label).map(String::as_str), Some(value));
    }
    assert_eq!(c.gpus[0].uuid, "tegra-17000000.gpu");
    assert_eq!(c.gpus[0].memory_bytes, 7_989_530_624);
    assert!(convert::capabilities(Some(&c)).is_ok());
}

#[test]
fn more_reserved_than_there_is_leaves_nothing_and_no_negative() {
    let reserved = Reserved {
        cpu_millis: u64::MAX,
        memory_bytes: u64::MAX,
    };
    let root = captured();
    let c = capabilities(&root, &root, reserved, &BTreeMap::new(), &Look::default());
    assert_eq!((c.cpu_millis, c.memory_bytes), (0, 0));
}

#[test]
fn rates_are_over_the_time_between_two_samples() {
    let dir = tree();
    let proc = dir.path().join("proc");
    let write = |name: &str, text: &str| fs::write(proc.join(name), text).unwrap();
    let mut sampler = sampler(dir.path());
    let t0 = Instant::now();
    write("stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1 1 1\n");
    write(
        "net/dev",
        "  eth0: 1000 1 0 0 0 0 0 0 500 1 0 0 0 0 0 0\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n",
    );
    let first = sampler.sample(t0, Look::default());
    assert_eq!((first.cpu_percent, first.network), (None, None));
    write("stat", "cpu  130 0 120 950 0 0 0 0 0 0\ncpu0 1 1 1 1\n");
    write(
        "net/dev",
        "  eth0: 5000 1 0 0 0 0 0 0 2500 1 0 0 0 0 0 0\n    lo: 9999 1 0 0 0 0 0 0 9999 1 0 0 0 0 0 0\n",
    );
    let second = sampler.sample(t0 + Duration::from_secs(2), Look::default());
    assert_eq!(second.cpu_percent, Some(25.0));
    assert_eq!(second.network, Some((2000, 1000)));
}

#[test]
fn counters_that_start_anew_give_no_negative_numbers() {
    let dir = tree();
    let proc = dir.path().join("proc");
    let write = |name: &str, text: &str| fs::write(proc.join(name), text).unwrap();
    let mut sampler = sampler(dir.path());
    let t0 = Instant::now();
    write("stat", "cpu  500 0 500 5000 0 0 0 0\n");
    write(
        "net/dev",
        "eth0:18446744073709551615 1 0 0 0 0 0 0 900 1 0 0 0 0 0 0\nwlan0: 7 0 0 0 0 0 0 0 7 0 0 0 0 0 0 0\n",
    );
    sampler.sample(t0, Look::default());
    write("stat", "cpu  1 0 1 5 0 0 0 0\n");
    write(
        "net/dev",
        "eth0: 10 1 0 0 0 0 0 0 950 1 0 0 0 0 0 0\nusb0: 900000 0 0 0 0 0 0 0 7 0 0 0 0 0 0 0\n",
    );
    let sample = sampler.sample(t0 + Duration::from_secs(1), Look::default());
    assert_eq!(sample.cpu_percent, None);
    assert_eq!(sample.network, Some((0, 50)));
    // Idle time went backwards a little, which kernels do.
    write("stat", "cpu  11 0 1 4 0 0 0 0\n");
    let sample = sampler.sample(t0 + Duration::from_secs(2), Look::default());
    assert_eq!(sample.cpu_percent, Some(100.0));
    // No time passed.
    assert_eq!(
        sampler
            .sample(t0 + Duration::from_secs(2), Look::default())
            .network,
        None
    );
}

#[test]
fn sensors_are_named_and_nonsense_is_left_out() {
    let readings = look(&captured()).temperatures();
    let readings: Vec<(&str, f32)> = readings.iter().map(|(s, c)| (s.as_str(), *c)).collect();
    assert_eq!(readings, [("cpu-thermal", 48.5), ("nvme/Composite", 38.85)]);
}

#[test]
fn a_tree_without_files_gives_missing_numbers_and_a_message_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let mut sampler = Sampler::new(dir.path(), &dir.path().join("none"));
    let sample = sampler.sample(Instant::now(), look(dir.path()));
    assert_eq!(sample, Sample::default());
    let message = sample.message(Envelope::default());
    assert!(convert::telemetry(&message).is_ok());
    let c = capabilities(
        dir.path(),
        &dir.path().join("none"),
        Reserved::default(),
        &BTreeMap::new(),
        &Look::default(),
    );
    assert!(convert::capabilities(Some(&c)).is_ok());
}

#[test]
fn files_with_nonsense_never_give_a_message_that_is_refused() {
    let nonsense = [
        "",
        "\0\0\0",
        "cpu  -1 -2 -3 -4\n",
        "cpu  1 2\n",
        "cpu  99999999999999999999999 0 0 0\n",
        "NaN inf -inf",
        "-1.0 0 0",
        "1e30 0 0",
        "MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n",
        "MemTotal: 10 kB\nMemAvailable: 4000 kB\n",
        "eth0: x y z\n:::\n",
        "2147483647\n",
        "-2147483648\n",
    ];
    let dir = tree();
    for one in nonsense {
        for two in nonsense {
            let mut sampler = sampler(dir.path());
            let t0 = Instant::now();
            for (text, second) in [(one, 0), (two, 1)] {
                for file in ["stat", "meminfo", "loadavg", "net/dev"] {
                    fs::write(dir.path().join("proc").join(file), text).unwrap();
                }
                let zone = "sys/class/thermal/thermal_zone0/temp";
                fs::write(dir.path().join(zone), text).unwrap();
                let sample = sampler.sample(t0 + Duration::from_secs(second), look(dir.path()));
                let message = sample.message(Envelope {
                    rtt_ms: Some(f32::NAN),
                    ..Envelope::default()
                });
                let refused = convert::telemetry(&message).err();
                assert_eq!(refused, None, "{one:?} then {two:?}");
            }
        }
    }
}

#[test]
fn kernels_without_available_memory_get_what_can_be_freed() {
    let old = "MemTotal: 100 kB\nMemFree: 10 kB\nBuffers: 5 kB\nCached: 20 kB\n";
    let m = memory::parse(old).unwrap();
    assert_eq!((m.total, m.used), (100 * 1024, 65 * 1024));
}

#[test]
fn amounts_that_no_machine_has_are_none() {
    let total = |kib: u64| format!("MemTotal: {kib} kB\nMemAvailable: 1 kB\n");
    let most = 1 << 50;
    assert!(memory::parse(&total(most)).is_some());
    assert_eq!(memory::parse(&total(most + 1)), None);
    assert_eq!(memory::parse(&total(u64::MAX)), None);
}

#[test]
fn this_machine_has_memory_disk_and_load() {
    let sample = sampler(Path::new("/")).sample(Instant::now(), Look::default());
    assert!(
        sample
            .memory
            .is_some_and(|m| m.used > 0 && m.used < m.total)
    );
    assert!(sample.disk.is_some_and(|d| d.used <= d.total));
    assert!(sample.load1.is_some());
}
