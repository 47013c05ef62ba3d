//! Log files as containerd writes them: `TIME STREAM TAG TEXT`, where tag `P` means that the line
//! goes on in the next entry and `F` that it ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Longest entry that is waited for, bytes. containerd cuts lines at 16 KiB.
const MAX_ENTRY: usize = 256 * 1024;
/// How much is read at once, bytes.
pub const BLOCK: usize = 64 * 1024;

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339, as written.
    pub time: &'a [u8],
    /// Whether it went to standard error.
    pub stderr: bool,
    /// The line goes on in the next entry.
    pub partial: bool,
    /// What the container wrote, without the line's end.
    pub text: &'a [u8],
}

/// Reads one entry, without its line end; none where it is not one.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = parts.next()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Tags may grow by colons: "F:more".
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(Entry {
        time,
        stderr,
        partial,
        text: parts.next()?,
    })
}

/// Turns a log file's bytes, in pieces of any size, into what the container wrote.
#[derive(Debug, Default)]
pub struct Decoder {
    rest: Vec<u8>,
}

impl Decoder {
    /// Takes the next bytes of the file; returns the text of the entries that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::with_capacity(bytes.len());
        let mut bytes = bytes;
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, after) = bytes.split_at(end);
            bytes = &after[1..];
            if self.rest.is_empty() {
                append(&mut text, line);
            } else {
                self.rest.extend_from_slice(line);
                append(&mut text, &self.rest);
                self.rest.clear();
            }
        }
        self.rest.extend_from_slice(bytes);
        if self.rest.len() > MAX_ENTRY {
            // Not a log of containerd's: passed on as it is rather than kept for ever.
            text.append(&mut self.rest);
        }
        text
    }
}

fn append(text: &mut Vec<u8>, line: &[u8]) {
    match parse(line) {
        Some(entry) => {
            text.extend_from_slice(entry.text);
            if !entry.partial {
                text.push(b'\n');
            }
        }
        None => {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
    }
}

/// Where the last `lines` lines of the file begin, bytes from its start.
///
/// # Errors
/// Reading.
pub fn tail_offset(file: &mut File, lines: u32) -> io::Result<u64> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(0);
    }
    let mut found = 0;
    // The bytes between `end` and the first line end behind it; looked at with the block before.
    let mut carry: Vec<u8> = Vec::new();
    while end > 0 {
        let size = usize::try_from(end).map_or(BLOCK, |left| left.min(BLOCK));
        let start = end - size as u64;
        file.seek(SeekFrom::Start(start))?;
        let mut block = vec![0; size];
        file.read_exact(&mut block)?;
        block.extend_from_slice(&carry);
        let mut line_end = block.len();
        while let Some(newline) = block[..line_end].iter().rposition(|byte| *byte == b'\n') {
            let line = &block[newline + 1..line_end];
            if !line.is_empty() && !parse(line).is_some_and(|entry| entry.partial) {
                if found == lines {
                    return Ok(start + line_end as u64 + 1);
                }
                found += 1;
            }
            line_end = newline;
        }
        block.truncate(line_end);
        if block.len() > MAX_ENTRY {
            return Ok(start);
        }
        carry = block;
        end = start;
    }
    let first_is_whole = !parse(&carry).is_some_and(|entry| entry.partial);
    if found == lines && first_is_whole {
        return Ok(carry.len() as u64 + 1);
    }
    Ok(0)
}

/// The latest start that has a log below `dir` (`N.log`), with its file.
///
/// # Errors
/// Reading the folder; a folder that does not exist has no log.
pub fn latest(dir: &Path) -> io::Result<Option<(u32, PathBuf)>> {
    let mut latest = None;
    for (attempt, path) in all(dir)? {
        if latest.as_ref().is_none_or(|(seen, _)| attempt > *seen) {
            latest = Some((attempt, path));
        }
    }
    Ok(latest)
}

/// All logs below `dir`, in no order.
///
/// # Errors
/// Reading the folder; a folder that does not exist has no log.
pub fn all(dir: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut logs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(attempt) = name
            .and_then(|name| name.strip_suffix(".log"))
            .and_then(|number| number.parse().ok())
        {
            logs.push((attempt, path));
        }
    }
    Ok(logs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LOG: &[u8] = b"2026-01-02T03:04:05.6Z stdout F one\n\
        2026-01-02T03:04:05.7Z stderr P tw\n\
        2026-01-02T03:04:05.7Z stderr F o\n\
        2026-01-02T03:04:05.8Z stdout F \n\
        2026-01-02T03:04:05.9Z stdout F four  words here\n";

    #[test]
    fn partial_entries_are_joined_whatever_the_pieces() {
        for size in 1..LOG.len() {
            let mut decoder = Decoder::default();
            let text: Vec<u8> = LOG.chunks(size).flat_map(|c| decoder.push(c)).collect();
            assert_eq!(text, b"one\ntwo\n\nfour  words here\n", "pieces of {size}");
        }
    }

    #[test]
    fn what_is_not_an_entry_is_passed_on() {
        for bad in [
            "",
            "x",
            "t stdout",
            "t stdout F",
            "t elsewhere F x",
            "t stdout Q x",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        assert!(parse(b"t stderr P:x y").is_some_and(|e| e.stderr && e.partial));
        assert_eq!(Decoder::default().push(b"no entry\n"), b"no entry\n");
    }

    #[test]
    fn an_endless_line_does_not_grow_the_memory() {
        let mut decoder = Decoder::default();
        for _ in 0..100 {
            decoder.push(&[b'x'; 16 * 1024]);
            assert!(decoder.rest.len() <= MAX_ENTRY + 16 * 1024);
        }
    }

    fn tail(log: &[u8], lines: u32) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(log).unwrap();
        let at = usize::try_from(tail_offset(&mut file, lines).unwrap()).unwrap();
        Decoder::default().push(&log[at..])
    }

    #[test]
    fn the_tail_counts_lines_not_entries() {
        assert_eq!(tail(LOG, 1), b"four  words here\n");
        assert_eq!(tail(LOG, 2), b"\nfour  words here\n");
        assert_eq!(tail(LOG, 3), b"two\n\nfour  words here\n");
        assert_eq!(tail(LOG, 4), b"one\ntwo\n\nfour  words here\n");
        assert_eq!(tail(LOG, 99), b"one\ntwo\n\nfour  words here\n");
        assert_eq!(tail(LOG, 0), b"one\ntwo\n\nfour  words here\n");
        assert_eq!(tail(b"", 3), b"");
    }

    #[test]
    fn the_tail_crosses_blocks() {
        let long = "x".repeat(10_000);
        let lines: Vec<_> = (0..40).map(|i| format!("{i}{long}")).collect();
        let log: String = lines.iter().map(|l| format!("t stdout F {l}\n")).collect();
        for n in [1, 6, 7, 13, 39] {
            let expected: String = lines[40 - n..].iter().map(|l| format!("{l}\n")).collect();
            let got = tail(log.as_bytes(), u32::try_from(n).unwrap());
            assert!(got == expected.as_bytes(), "last {n}");
        }
    }

    #[test]
    fn the_latest_start_is_found_by_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(latest(&dir.path().join("none")).unwrap(), None);
        for name in ["9.log", "10.log", "10.log.old", "x.log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(latest(dir.path()).unwrap().unwrap().0, 10);
    }
}
