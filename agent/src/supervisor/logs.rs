//! Container output as a stream.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::try_unfold;
use hyperion_proto::agent_v1::ReplicaPhase;

use super::{LogError, LogQuery, Shared, lock};
use crate::runtime::logs::{BLOCK, Decoder, all, latest, tail_offset};
use crate::runtime::pod;

/// Time between two looks at a file that is followed.
const FOLLOW: Duration = Duration::from_millis(200);

pub(super) fn stream(
    shared: Arc<Shared>,
    query: LogQuery,
) -> impl Stream<Item = Result<Bytes, LogError>> + Send + use<> {
    let reader = Reader {
        shared,
        query,
        dir: None,
        open: None,
        decoder: Decoder::default(),
        ended: false,
    };
    try_unfold(reader, |mut reader| async move {
        loop {
            // Files are read outside of the runtime's own threads: a disk may be slow.
            let (back, piece) = tokio::task::spawn_blocking(move || {
                let piece = reader.piece();
                (reader, piece)
            })
            .await
            .map_err(|error| LogError::Io {
                path: PathBuf::new(),
                source: std::io::Error::other(error),
            })?;
            reader = back;
            match piece? {
                Piece::Text(text) => return Ok(Some((text, reader))),
                Piece::Wait => tokio::time::sleep(FOLLOW).await,
                Piece::End => return Ok(None),
            }
        }
    })
}

enum Piece {
    Text(Bytes),
    Wait,
    End,
}

struct Reader {
    shared: Arc<Shared>,
    query: LogQuery,
    dir: Option<PathBuf>,
    open: Option<Open>,
    decoder: Decoder,
    /// The replica had ended at the last look: what is read after that is all.
    ended: bool,
}

struct Open {
    attempt: u32,
    path: PathBuf,
    file: File,
}

impl Open {
    fn new(attempt: u32, path: PathBuf) -> Result<Self, LogError> {
        let file = File::open(&path).map_err(|source| io(&path, source))?;
        Ok(Self {
            attempt,
            path,
            file,
        })
    }

    /// The log was moved away and containerd writes to a new one.
    fn rotated(&self) -> bool {
        match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(mine), Ok(there)) => mine.ino() != there.ino(),
            _ => false,
        }
    }
}

fn io(path: &Path, source: std::io::Error) -> LogError {
    LogError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Reader {
    fn piece(&mut self) -> Result<Piece, LogError> {
        let Some(open) = &mut self.open else {
            return self.begin();
        };
        let mut block = vec![0; BLOCK];
        // Whether there is a newer file is asked before the old one is read to its end.
        let rotated = open.rotated();
        let newer = newer(&open.path, open.attempt)?;
        let n = open
            .file
            .read(&mut block)
            .map_err(|source| io(&open.path, source))?;
        if n > 0 {
            let text = self.decoder.push(&block[..n]);
            if text.is_empty() {
                return Ok(Piece::Wait);
            }
            return Ok(Piece::Text(text.into()));
        }
        if !self.query.follow {
            return Ok(Piece::End);
        }
        if let Some((attempt, path)) = newer {
            self.open = Some(Open::new(attempt, path)?);
            return Ok(Piece::Wait);
        }
        if rotated {
            let (attempt, path) = (open.attempt, open.path.clone());
            self.open = Some(Open::new(attempt, path)?);
            return Ok(Piece::Wait);
        }
        if self.ended {
            return Ok(Piece::End);
        }
        self.ended = self.has_ended();
        Ok(Piece::Wait)
    }

    /// Finds the file. One that does not exist yet is waited for where the log is followed.
    fn begin(&mut self) -> Result<Piece, LogError> {
        let dir = self.find()?;
        let Some((attempt, path)) = latest(&dir).map_err(|source| io(&dir, source))? else {
            if self.query.follow && !self.has_ended() {
                return Ok(Piece::Wait);
            }
            return Err(LogError::UnknownContainer {
                key: self.query.key.clone(),
                container: self.query.container.clone(),
            });
        };
        let mut open = Open::new(attempt, path)?;
        let at = tail_offset(&mut open.file, self.query.tail_lines)
            .map_err(|source| io(&open.path, source))?;
        open.file
            .seek(SeekFrom::Start(at))
            .map_err(|source| io(&open.path, source))?;
        self.open = Some(open);
        self.piece()
    }

    /// Folder of the container's logs.
    fn find(&mut self) -> Result<PathBuf, LogError> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let key = &self.query.key;
        let root = pod::log_dir(&self.shared.log_dir, key);
        let names = self.container_names();
        if names.is_none() && !root.is_dir() {
            return Err(LogError::UnknownReplica(key.clone()));
        }
        let asked = self.query.container.as_str();
        let name = match &names {
            Some(names) if asked.is_empty() => names.first().cloned(),
            Some(names) => names.iter().find(|name| *name == asked).cloned(),
            None => there(&root, asked),
        };
        let Some(name) = name else {
            return Err(LogError::UnknownContainer {
                key: key.clone(),
                container: asked.to_owned(),
            });
        };
        let dir = root.join(name);
        self.dir = Some(dir.clone());
        Ok(dir)
    }

    /// Names of the pod's containers; none where the replica is not desired.
    fn container_names(&self) -> Option<Vec<String>> {
        let desired = self.shared.desired.borrow();
        let mut all = desired.iter().flat_map(|all| all.iter());
        let found = all.find(|desired| desired.start.key == self.query.key)?;
        let containers = found.start.pod.containers.iter();
        Some(containers.map(|c| c.name.clone()).collect())
    }

    fn has_ended(&self) -> bool {
        let reports = lock(&self.shared.reports);
        match reports.get(&self.query.key) {
            Some(report) => matches!(
                report.phase(),
                ReplicaPhase::Succeeded | ReplicaPhase::Failed | ReplicaPhase::Stopped
            ),
            None => self.container_names().is_none(),
        }
    }
}

/// The first start after `attempt` that has a log beside `path`.
fn newer(path: &Path, attempt: u32) -> Result<Option<(u32, PathBuf)>, LogError> {
    let Some(dir) = path.parent() else {
        return Ok(None);
    };
    let logs = all(dir).map_err(|source| io(dir, source))?;
    let newer = logs.into_iter().filter(|(number, _)| *number > attempt);
    Ok(newer.min_by_key(|(number, _)| *number))
}

/// The container folder of that name, or the only one. Names come from outside: they are compared
/// with what is there and never made into a path.
fn there(root: &Path, asked: &str) -> Option<String> {
    let entries = std::fs::read_dir(root).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.collect();
    names.sort();
    match asked {
        "" => names.into_iter().next(),
        _ => names.into_iter().find(|name| name == asked),
    }
}
