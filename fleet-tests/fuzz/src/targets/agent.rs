//! Files that the agent reads, and orders that it carries out.

use std::fs;
use std::io::{Seek, Write};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use hyperion_agent::identity::{self, IdentityFile};
use hyperion_agent::runtime::{labels, logs, pod};
use hyperion_agent::store::Store;
use hyperion_agent::telemetry::sensors::Board;
use hyperion_agent::telemetry::{self, Envelope, Sampler};
use hyperion_gateway::pki::Authority;
use hyperion_gateway::testing::MemoryApi;
use hyperion_link::Identity;
use hyperion_link::identity::{certificate_request, new_key};
use hyperion_proto::agent_v1::StartReplica;
use hyperion_proto::convert;
use prost::Message;
use tempfile::TempDir;

use super::{pki, samples};
use crate::{Case, Outcome};

/// A folder in memory, where there is one.
pub(crate) fn folder() -> std::io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
}

/// Log files. The first byte is the size of the pieces, the second the lines asked for.
pub struct LogCase {
    file: fs::File,
    _folder: TempDir,
}

impl LogCase {
    /// Makes the file.
    ///
    /// # Errors
    /// No space.
    pub fn new() -> anyhow::Result<Self> {
        let folder = folder()?;
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(folder.path().join("0.log"))?;
        Ok(Self {
            file,
            _folder: folder,
        })
    }
}

impl Case for LogCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let log = "\u{3}\u{2}2026-01-01T00:00:00.000000000Z stdout F one\n\
            2026-01-01T00:00:01Z stderr P two \n2026-01-01T00:00:01Z stderr F goes on\n\
            no entry\n2026-01-01T00:00:02Z stdout F:x \n2026-01-01T00:00:02Z stdout F last";
        vec![log.as_bytes().to_vec()]
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let words = ["\n", " stdout F ", " stderr P ", " F:", "\n\n", " "];
        words.iter().map(|w| w.as_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let (head, bytes) = input.split_at(input.len().min(2));
        let size = usize::from(head.first().copied().unwrap_or(0)).max(1);
        let lines = u32::from(head.get(1).copied().unwrap_or(0));
        let whole = logs::Decoder::default().push(bytes);
        let mut decoder = logs::Decoder::default();
        let pieces: Vec<u8> = bytes.chunks(size).flat_map(|c| decoder.push(c)).collect();
        assert_eq!(whole, pieces, "in pieces of {size} it reads otherwise");
        self.file.set_len(0).unwrap_or_default();
        let written = self.file.rewind().and_then(|()| self.file.write_all(bytes));
        let offset = logs::tail_offset(&mut self.file, lines);
        if written.is_ok()
            && let Ok(offset) = offset
        {
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            assert!(at <= bytes.len(), "begins at {at} of {}", bytes.len());
            let starts = at == 0 || bytes.get(at - 1) == Some(&b'\n');
            assert!(starts, "begins within a line, at {at}");
        }
        let entries = bytes.split(|b| *b == b'\n').filter_map(logs::parse);
        let kinds = entries.fold(0, |all, e| {
            all | 1 << (u32::from(e.stderr) * 2 + u32::from(e.partial))
        });
        Outcome(kinds).and(Outcome(u64::from(lines.min(3))))
    }
}

/// procfs and sysfs. Files are separated by a line of two percent signs.
pub struct ProcCase {
    folder: TempDir,
}

const FILES: [&str; 6] = [
    "proc/stat",
    "proc/meminfo",
    "proc/loadavg",
    "proc/net/dev",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/thermal_zone0/type",
];

impl ProcCase {
    /// Makes the folders.
    ///
    /// # Errors
    /// No space.
    pub fn new() -> anyhow::Result<Self> {
        let folder = folder()?;
        for file in FILES {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap_or(folder.path()))?;
        }
        Ok(Self { folder })
    }
}

impl Case for ProcCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let files = [
            "cpu  100 0 50 1000 5 0 1 0 0 0\ncpu0 50 0 25 500 2 0 1 0 0 0\ncpu1 50 0 25 500 3 0 0 0\n",
            "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable: 4000000 kB\n",
            "0.50 0.40 0.30 1/100 1234\n",
            "Inter-|\n face |\n  lo: 1 2 0 0 0 0 0 0 3 4\neth0: 1000 10 0 0 0 0 0 0 2000 20 0 0\n",
            "47500\n",
            "cpu-thermal\n",
        ];
        vec![files.join("%%\n").into_bytes()]
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let words = [
            "%%\n",
            "18446744073709551615",
            "-1",
            "nan",
            "inf",
            "1e39",
            "cpu ",
            "cpu0 ",
            "eth1:",
            "MemTotal:",
            "99999999999999999999999",
        ];
        words.iter().map(|w| w.as_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let root = self.folder.path();
        let text = String::from_utf8_lossy(input).into_owned();
        // Two moments, so that there are rates: the second is the input, the first its half.
        let mut sampler = Sampler::new(root, root);
        let now = Instant::now();
        let mut kinds = Outcome(0);
        for (at, part) in [&text.replace("00", "0"), &text].into_iter().enumerate() {
            let mut parts = part.split("%%\n");
            for file in FILES {
                let content = parts.next().unwrap_or_default();
                let _ = fs::write(root.join(file), content);
            }
            let look = Board::new(root.to_owned()).look(now);
            let sample = sampler.sample(now + Duration::from_secs(at as u64), look);
            let message = sample.message(Envelope::default());
            let read = convert::telemetry(&message);
            assert!(read.is_ok(), "the gateway would refuse it: {read:?}");
            kinds = kinds
                .and(Outcome(u64::from(message.cpu_utilization_percent > 0.0)))
                .and(Outcome(u64::from(message.memory_used_bytes > 0)))
                .and(Outcome(message.temperatures.len() as u64))
                .and(Outcome(u64::from(message.network_status.is_some())));
        }
        let _ = telemetry::hostname(root);
        kinds
    }
}

/// The store's file.
pub struct StoreCase {
    folder: TempDir,
    seed: Vec<u8>,
}

impl StoreCase {
    /// Makes a store for the sample.
    ///
    /// # Errors
    /// No space.
    pub fn new() -> anyhow::Result<Self> {
        let folder = folder()?;
        drop(Store::open(folder.path(), false)?);
        let file = store_file(folder.path())?;
        let seed = fs::read(&file)?;
        Ok(Self { folder, seed })
    }
}

fn store_file(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut files = fs::read_dir(folder)?;
    let file = files.find_map(Result::ok);
    Ok(file.ok_or_else(|| anyhow::anyhow!("no store"))?.path())
}

impl Case for StoreCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![self.seed.clone()]
    }

    fn max_len(&self) -> usize {
        self.seed.len() * 2
    }

    fn tolerates(&self, panic: &str) -> bool {
        // The store catches what redb makes of a damaged page.
        panic.contains("/redb-")
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let folder = self.folder.path();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        let _ = fs::write(folder.join(hyperion_agent::store::FILE), input);
        let opened = Store::open(folder, true);
        match &opened {
            Ok(store) => {
                let moved = fs::read_dir(folder).map_or(0, Iterator::count) > 1;
                Outcome(u64::from(moved) * 2 + u64::from(store.partial()))
            }
            Err(e) => Outcome::text(&e.to_string()),
        }
    }
}

/// Records of the store, in a file whose structure is sound. The first byte says in which table,
/// then come the key, a line break, and the value.
pub struct RecordCase {
    folder: TempDir,
    empty: Vec<u8>,
}

const TEXTS: [&str; 2] = ["desired", "finished"];

impl RecordCase {
    /// Makes a store for the sample.
    ///
    /// # Errors
    /// No space.
    pub fn new() -> anyhow::Result<Self> {
        let StoreCase { folder, seed } = StoreCase::new()?;
        Ok(Self {
            folder,
            empty: seed,
        })
    }

    fn write(&self, how: u8, key: &[u8], value: &[u8]) -> Result<(), redb::Error> {
        let path = self.folder.path().join(hyperion_agent::store::FILE);
        fs::write(&path, &self.empty)?;
        let mut builder = redb::Builder::new();
        builder.set_cache_size(1 << 20);
        let db = builder.open(&path)?;
        let tx = db.begin_write()?;
        let text = String::from_utf8_lossy(key);
        let number = |bytes: &[u8]| {
            let mut padded = [0; 8];
            for (to, from) in padded.iter_mut().zip(bytes) {
                *to = *from;
            }
            u64::from_le_bytes(padded)
        };
        match how % 5 {
            table @ (0 | 1) => {
                let name = TEXTS[usize::from(table)];
                let table = redb::TableDefinition::<&str, &[u8]>::new(name);
                tx.open_table(table)?.insert(&*text, value)?;
                if name == "finished" {
                    // Outcomes are read where there is a desired replica.
                    let order = samples::start().encode_to_vec();
                    let table = redb::TableDefinition::<&str, &[u8]>::new("desired");
                    tx.open_table(table)?.insert(&*text, order.as_slice())?;
                }
            }
            2 => {
                let table = redb::TableDefinition::<u64, &[u8]>::new("events");
                tx.open_table(table)?.insert(number(key), value)?;
            }
            3 => {
                let table = redb::TableDefinition::<&str, (u64, u64)>::new("seen");
                let pair = (number(value), number(value.get(8..).unwrap_or_default()));
                tx.open_table(table)?.insert(&*text, pair)?;
            }
            _ => {
                let table = redb::TableDefinition::<&str, u64>::new("meta");
                tx.open_table(table)?.insert(&*text, number(value))?;
            }
        }
        tx.commit()?;
        Ok(())
    }
}

impl Case for RecordCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let record = |how: u8, key: &str, value: Vec<u8>| {
            [vec![how], key.as_bytes().to_vec(), b"\n".to_vec(), value].concat()
        };
        let event = hyperion_proto::agent_v1::Event {
            id: 3,
            reason: "Started".to_owned(),
            ..Default::default()
        };
        let key = "default/web/8d3f0a2c-1111-2222-3333-444455556666/3";
        vec![
            record(0, key, samples::start().encode_to_vec()),
            record(1, key, samples::report().encode_to_vec()),
            record(2, "\u{3}", event.encode_to_vec()),
            record(3, key, vec![7; 16]),
            record(4, "schema", vec![1]),
            record(4, "next_event", vec![0xff; 8]),
            record(4, "boot", vec![0xff; 8]),
        ]
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let (how, rest) = input.split_first().unwrap_or((&0, &[]));
        let end = rest.iter().position(|b| *b == b'\n');
        let (key, value) = rest.split_at(end.unwrap_or(rest.len()));
        let value = value.get(1..).unwrap_or_default();
        let folder = self.folder.path();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let _ = fs::remove_file(entry.path());
        }
        if let Err(e) = self.write(*how, key, value) {
            return Outcome::text(&e.to_string());
        }
        let opened = Store::open(folder, true);
        let kind = match &opened {
            Ok(store) => Outcome(u64::from(store.partial()) + 2 * store.desired().len() as u64),
            Err(e) => Outcome::text(&e.to_string()),
        };
        kind.and(Outcome(u64::from(how % 5)))
    }
}

/// The identity's file.
pub struct IdentityCase {
    folder: TempDir,
    seeds: Vec<Vec<u8>>,
}

impl IdentityCase {
    /// Makes an identity for the sample.
    ///
    /// # Errors
    /// No space, or no random numbers.
    pub fn new() -> anyhow::Result<Self> {
        let folder = folder()?;
        let chain_der = pki::runtime()?.block_on(async {
            let client = MemoryApi::default().client();
            let authority = Authority::ensure(&client, "hyperion").await?;
            let csr = certificate_request(&new_key()?)?;
            let ttl = Duration::from_secs(60);
            anyhow::Ok(authority.sign_node(&csr, "lab-1", "lab", ttl)?)
        })?;
        let identity = Identity {
            node_id: "lab-1".to_owned(),
            site: "lab".to_owned(),
            key_der: new_key()?,
            chain_der,
        };
        let file = folder.path().join(identity::FILE);
        let secret = folder.path().join("secret");
        let mut seeds = Vec::new();
        for sealed in [false, true] {
            if sealed {
                fs::write(&secret, "7".repeat(64))?;
            }
            IdentityFile::open(folder.path(), Some(&secret))?
                .0
                .save(&identity)?;
            seeds.push(fs::read(&file)?);
            fs::remove_file(&file)?;
        }
        Ok(Self { folder, seeds })
    }
}

impl Case for IdentityCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        self.seeds.clone()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let dir = self.folder.path();
        let _ = fs::write(dir.join(identity::FILE), input);
        Outcome::of(&IdentityFile::open(dir, Some(&dir.join("secret"))))
    }
}

/// Orders to start.
pub struct PodCase;

impl Case for PodCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        vec![samples::start().encode_to_vec()]
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let words = ["..", "/", "../..", ".", "-", "a.b", "\0"];
        words.iter().map(|w| w.as_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let order = match StartReplica::decode(input) {
            Ok(order) => order,
            Err(e) => return Outcome::text(&e.to_string()),
        };
        let start = convert::start(&order);
        if let Ok(start) = &start {
            let root = Path::new("/logs");
            let hash = labels::pod_hash(&start.pod);
            let sandbox = pod::sandbox_config("lab-1", root, start, &hash, 1);
            stays_below(root, Path::new(&sandbox.log_directory));
            assert!(sandbox.hostname.len() <= 63, "{}", sandbox.hostname);
            let of = labels::replica_of(&sandbox.labels);
            assert_eq!(of.as_ref(), Some(&start.key), "labels do not lead back");
            for container in &start.pod.containers {
                let config = pod::container_config("lab-1", start, &hash, container, 1);
                stays_below(root, &root.join(config.log_path));
            }
        }
        Outcome::of(&start)
    }
}

fn stays_below(root: &Path, path: &Path) {
    let inside = path
        .strip_prefix(root)
        .ok()
        .is_some_and(|rest| rest.components().all(|c| matches!(c, Component::Normal(_))));
    assert!(inside, "{} leaves {}", path.display(), root.display());
}
