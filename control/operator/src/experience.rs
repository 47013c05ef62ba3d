//! What became of placements, kept in a file to learn from: one line of JSON each.
//!
//! A thread of its own writes: a disk that is slow must not make a decision wait. Under a flood
//! lines are dropped, and with a disk that is full or a file that can't be written no line is
//! kept; both are counted, and the latter is said once.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use hyperion_policy::Experience;
use prometheus_client::metrics::counter::Counter;
use tracing::{info, warn};

/// Name of the file in the data folder; the one before it has `.1` at its end.
pub const FILE: &str = "experience.jsonl";
/// A file of this many bytes is put aside, in the place of the one before: about 60,000
/// placements, and never more than twice this on the disk.
pub const MOST_BYTES: u64 = 64 << 20;
/// Lines that may wait.
const WAITING: usize = 1024;

/// Where experiences go.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: Option<SyncSender<Box<Experience>>>,
    lost: Counter,
}

impl Recorder {
    /// Starts to write to `dir`; without one nothing is kept. `kept` and `lost` count.
    #[must_use]
    pub fn start(dir: Option<&Path>, kept: Counter, lost: Counter) -> Self {
        let queue = dir.and_then(|dir| {
            let (queue, waiting) = sync_channel(WAITING);
            let log = Log::new(dir.join(FILE), MOST_BYTES);
            let counters = (kept, lost.clone());
            let thread = std::thread::Builder::new().name("experience".to_owned());
            match thread.spawn(move || write(log, &waiting, &counters)) {
                Ok(_) => Some(queue),
                Err(e) => {
                    warn!(error = %e, "experience is not kept");
                    None
                }
            }
        });
        Self { queue, lost }
    }

    /// Asks for an experience to be kept.
    pub fn record(&self, experience: Box<Experience>) {
        let kept = self.queue.as_ref().map(|queue| queue.try_send(experience));
        if !matches!(kept, Some(Ok(()))) {
            self.lost.inc();
        }
    }
}

/// Ends when nobody can send any more.
fn write(mut log: Log, waiting: &Receiver<Box<Experience>>, (kept, lost): &(Counter, Counter)) {
    let mut fails = false;
    while let Ok(experience) = waiting.recv() {
        let written = match experience.to_line() {
            Ok(line) => log.append(&line).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        match written {
            Ok(()) => {
                kept.inc();
                if std::mem::take(&mut fails) {
                    info!(file = %log.path.display(), "experience is kept again");
                }
            }
            Err(error) => {
                lost.inc();
                if !std::mem::replace(&mut fails, true) {
                    warn!(file = %log.path.display(), error, "experience is not kept");
                }
            }
        }
    }
}

/// A file that does not grow without end.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    most: u64,
    file: Option<(File, u64)>,
}

impl Log {
    fn new(path: PathBuf, most: u64) -> Self {
        Self {
            path,
            most,
            file: None,
        }
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        let result = self.try_append(line);
        if result.is_err() {
            // Opened anew next time: the folder may be back by then.
            self.file = None;
        }
        result
    }

    fn try_append(&mut self, line: &str) -> io::Result<()> {
        let (mut file, mut size) = match self.file.take() {
            Some(open) => open,
            None => self.open()?,
        };
        if size > 0 && size + line.len() as u64 > self.most {
            drop(file);
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            (file, size) = self.open()?;
        }
        if let Err(e) = file.write_all(line.as_bytes()) {
            // Half a line would spoil the next one.
            let _ = file.set_len(size);
            return Err(e);
        }
        self.file = Some((file, size + line.len() as u64));
        Ok(())
    }

    /// A line that was cut off by a crash is taken away.
    fn open(&self) -> io::Result<(File, u64)> {
        let mut file = OpenOptions::new()
            .read(true)
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        let size = file.metadata()?.len();
        let whole = whole_lines(&mut file, size)?;
        if whole < size {
            file.set_len(whole)?;
        }
        Ok((file, whole))
    }
}

/// Bytes up to the end of the last line that is whole. No line is longer than the tail looked at.
fn whole_lines(file: &mut File, size: u64) -> io::Result<u64> {
    const TAIL: u64 = 1 << 20;
    let mut tail = Vec::new();
    let from = size.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    file.take(TAIL).read_to_end(&mut tail)?;
    let end = tail.iter().rposition(|byte| *byte == b'\n');
    Ok(end.map_or(from, |end| from + end as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_one_before_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut log = Log::new(path.clone(), 10);
        for i in 0..7 {
            log.append(&format!("l-{i}\n")).unwrap();
        }
        assert_eq!(lines(&path), ["l-6"]);
        let old = dir.path().join("experience.jsonl.1");
        assert_eq!(lines(&old), ["l-4", "l-5"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_restart_goes_on_after_a_line_that_a_crash_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, "whole\nhal").unwrap();
        Log::new(path.clone(), 1000).append("next\n").unwrap();
        assert_eq!(lines(&path), ["whole", "next"]);
    }

    #[test]
    fn a_file_that_cant_be_written_loses_lines_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("later").join(FILE);
        let mut log = Log::new(path.clone(), 1000);
        assert!(log.append("a\n").is_err());
        std::fs::create_dir(dir.path().join("later")).unwrap();
        log.append("b\n").unwrap();
        assert_eq!(lines(&path), ["b"]);
    }

    #[test]
    fn a_disk_that_is_full_is_no_reason_to_stop() {
        let mut log = Log::new(PathBuf::from("/dev/full"), u64::MAX);
        assert!(log.append("a\n").is_err());
        assert!(log.append("a\n").is_err());
    }

    #[test]
    fn without_a_folder_lost_lines_are_counted() {
        let lost = Counter::default();
        let recorder = Recorder::start(None, Counter::default(), lost.clone());
        recorder.record(Box::new(sample()));
        assert_eq!(lost.get(), 1);
    }

    #[test]
    fn what_is_recorded_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, lost) = (Counter::default(), Counter::default());
        let recorder = Recorder::start(Some(dir.path()), kept.clone(), lost.clone());
        recorder.record(Box::new(sample()));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while kept.get() + lost.get() == 0 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(Experience::parse(&text).unwrap(), [sample()]);
    }

    fn sample() -> Experience {
        use hyperion_placement::features::{FIT_LEN, NODE_LEN, PAIR_LEN, REQUEST_LEN};
        use hyperion_placement::model::Goal;
        Experience {
            goal: Goal::Cost,
            request: [0.0; REQUEST_LEN],
            candidates: vec![hyperion_policy::Encoded {
                node: [0.0; NODE_LEN],
                pair: [0.0; PAIR_LEN],
                fit: [0.0; FIT_LEN],
            }],
            chosen: 0,
            log_probability: 0.0,
            outcome: hyperion_policy::Outcome {
                cost_per_hour: 0.1,
                p99_ms: None,
                completed: true,
                moved: false,
                violations: 0,
                hours: 1.0,
            },
        }
    }
}
