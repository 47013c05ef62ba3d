//! Sensors on trees of boards, whole and damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hyperion_proto::convert;

use super::*;
use crate::telemetry::{Envelope, Sampler};
use crate::testing::copy_tree;

const BOARDS: [&str; 4] = [
    "jetson-nano",
    "jetson-agx-xavier",
    "jetson-orin-nano",
    "jetson-agx-thor",
];

fn written(board: &str) -> PathBuf {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
    Path::new(folder).join(board)
}

fn look(root: &Path) -> Look {
    Board::new(root.to_owned()).look(Instant::now())
}

/// A number or fact, and what had a part in it.
#[derive(Debug, PartialEq)]
struct Part {
    value: String,
    source: Vec<String>,
    named_by: Vec<String>,
}

impl Part {
    fn is_of(&self, file: &str) -> bool {
        self.source.iter().chain(&self.named_by).any(|f| f == file)
    }
}

type Told = BTreeMap<String, Part>;

fn told(look: &Look) -> Told {
    let readings = look.readings.iter().map(|r| {
        let part = Part {
            value: r.value.to_string(),
            source: r.sensor.source.clone(),
            named_by: r.sensor.named_by.clone(),
        };
        (
            format!("{} {:?}", r.sensor.metric.name, r.sensor.labels),
            part,
        )
    });
    let facts = look.facts.iter().map(|f| {
        let part = Part {
            value: f.value.clone(),
            source: f.source.clone(),
            named_by: Vec::new(),
        };
        (f.name.to_owned(), part)
    });
    readings.chain(facts).collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_tables_of_the_manual_are_those_of_the_trees() {
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/sensors.md");
    let manual = fs::read_to_string(manual).unwrap();
    for board in BOARDS {
        let table = table(&look(&written(board)));
        assert!(manual.contains(&table), "{board} is now\n{table}");
    }
}

#[test]
fn boards_tell_what_they_are_and_how_warm_and_busy() {
    let facts = |board: &str| {
        let look = look(&written(board));
        let gpu = look.gpu_status().remove(0);
        (
            look.fact("board_soc").unwrap().to_owned(),
            look.fact("l4t_release").unwrap().to_owned(),
            look.fact("power_mode").unwrap().to_owned(),
            gpu.utilization_percent,
            gpu.temperature_celsius,
            look.power_watts(),
            look.throttled_by_heat(),
        )
    };
    let words =
        |soc: &str, l4t: &str, mode: &str| (soc.to_owned(), l4t.to_owned(), mode.to_owned());
    let expect = |(soc, l4t, mode), gpu, celsius, watts, slowed| {
        (soc, l4t, mode, gpu, celsius, watts, slowed)
    };
    let nano = words("tegra210", "32.7.4", "MAXN");
    assert_eq!(
        facts(BOARDS[0]),
        expect(nano, 43.8, 36.0, Some(3.383), false)
    );
    let xavier = words("tegra194", "35.4.1", "MODE_15W");
    assert_eq!(facts(BOARDS[1]), expect(xavier, 0.0, 37.0, None, false));
    let orin = words("tegra234", "36.4.3", "25W");
    assert_eq!(
        facts(BOARDS[2]),
        expect(orin, 87.4, 53.718, Some(11.024832), false)
    );
    let thor = words("tegra264", "38.2.0", "120W");
    assert_eq!(facts(BOARDS[3]), expect(thor, 0.0, 45.906, None, true));
    // A constant that is no temperature, and a zone that says nothing while its block is off.
    for board in BOARDS {
        let look = look(&written(board));
        let absent = |s: &str| s == "PMIC-Die" || s.starts_with("cv");
        assert!(
            look.temperatures()
                .iter()
                .all(|(s, c)| !absent(s) && *c < 60.0)
        );
    }
}

#[test]
fn every_damaged_file_costs_only_what_is_read_from_it() {
    let huge = "9".repeat(1 << 20).into_bytes();
    let damages: [Option<&[u8]>; 6] = [
        None,
        Some(b""),
        Some(b"\xff\xfe\x00\x01"),
        Some(b"N/A\n"),
        Some(b"-2147483648\n"),
        Some(&huge),
    ];
    for board in BOARDS {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        copy_tree(&written(board), root);
        let whole = told(&look(root));
        assert!(whole.len() > 50, "{board}: {}", whole.len());
        for file in files(root) {
            let content = fs::read(&file).unwrap();
            let name = format!("/{}", file.strip_prefix(root).unwrap().display());
            for damage in damages {
                match damage {
                    None => fs::remove_file(&file).unwrap(),
                    Some(bytes) => fs::write(&file, bytes).unwrap(),
                }
                let seen = look(root);
                only_this_is_missing(&whole, &told(&seen), &name, damage);
                let sample = Sampler::new(root, root).sample(Instant::now(), seen);
                let message = sample.message(Envelope::default());
                assert_eq!(convert::telemetry(&message).err(), None, "{board} {name}");
            }
            fs::write(&file, content).unwrap();
        }
        assert_eq!(told(&look(root)), whole);
    }
}

fn only_this_is_missing(whole: &Told, seen: &Told, file: &str, damage: Option<&[u8]>) {
    let shown = damage.map(|d| String::from_utf8_lossy(&d[..d.len().min(16)]).into_owned());
    for (name, part) in whole.iter().filter(|(_, part)| !part.is_of(file)) {
        assert_eq!(seen.get(name), Some(part), "{file} as {shown:?}: {name}");
    }
    for (name, part) in seen {
        // Another file may say the same, or a sensor go by another name.
        let known = whole.get(name);
        let renamed = || {
            whole
                .values()
                .any(|p| p.is_of(file) && p.source == part.source)
        };
        assert!(
            known.is_some() || renamed(),
            "{file} as {shown:?}: {name} appeared"
        );
        // What was read from it is not there, or, of a word, not what it was.
        let damaged = part.source.iter().any(|f| f == file);
        let number = name.starts_with("hyperion_");
        let stale = damaged && (number || known == Some(part));
        assert!(!stale, "{file} as {shown:?}: {name} is {}", part.value);
    }
}

#[tokio::test]
async fn a_sensor_that_hangs_is_left_out_until_it_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    copy_tree(&written("jetson-orin-nano"), root);
    let whole = told(&look(root));
    let name = "/sys/class/thermal/thermal_zone1/temp";
    let file = root.join(&name[1..]);
    let content = fs::read(&file).unwrap();
    // Nobody writes to it, so that to open it takes for ever.
    fs::remove_file(&file).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &file, kind, mode, 0).unwrap();

    let mut sensors = Sensors::new(root);
    let until = Instant::now() + Duration::from_secs(60);
    let left = loop {
        let look = sensors.look().await;
        // The first look may be over before the thread is given up.
        if !look.is_late() && !look.left_out.is_empty() {
            break look;
        }
        assert!(Instant::now() < until, "{:?}", look.left_out);
    };
    assert_eq!(left.left_out.len(), 1);
    assert_eq!(left.left_out[0].what, name);
    let seen = told(&left);
    for (of, part) in &whole {
        let expected = (!part.is_of(name)).then_some(part);
        assert_eq!(seen.get(of), expected, "{of}");
    }
    assert!(table(&left).contains("left out: /sys/class/thermal/thermal_zone1/temp: hangs"));

    // The chip answers at last: the read ends, and the sensor is there again.
    let answer = fs::OpenOptions::new().write(true).open(&file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(&file, content).unwrap();
    drop(answer);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let look = sensors.look().await;
        if look.left_out.is_empty() && told(&look) == whole {
            break;
        }
        assert!(Instant::now() < until, "{:?}", look.left_out);
    }
}

#[test]
fn sensors_of_one_name_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    for zone in 0..12 {
        let folder = dir
            .path()
            .join(format!("sys/class/thermal/thermal_zone{zone}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("type"), "acpitz\n").unwrap();
        fs::write(folder.join("temp"), format!("{}000\n", 30 + zone)).unwrap();
    }
    let temperatures = look(dir.path()).temperatures();
    assert_eq!(temperatures[0], ("acpitz".to_owned(), 30.0));
    assert_eq!(temperatures[1], ("acpitz-2".to_owned(), 31.0));
    assert_eq!(temperatures[11], ("acpitz-12".to_owned(), 41.0));
}

#[test]
fn another_makers_gpu_is_measured_and_not_offered() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sys/class/devfreq/fb000000.gpu");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("cur_freq"), "300000000\n").unwrap();
    let look = look(dir.path());
    assert_eq!(look.of(&metric::GPU_CLOCK).count(), 1);
    assert!(look.gpu_list().is_empty());
}
