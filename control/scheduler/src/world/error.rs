//! What can be wrong with a data directory.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A data directory that can't be used. Nothing of it has been taken.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The directory or a file in it can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// What was being read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The directory holds none of the files that are known.
    #[error("{}: no data here; expected at least one of {expected}", path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
        /// Files that are known, comma-separated.
        expected: String,
    },
    /// A table without one of its columns.
    #[error("{}: line 1: no column {column:?}", path.display())]
    Column {
        /// The file.
        path: PathBuf,
        /// The column that is missing.
        column: &'static str,
    },
    /// A field with wrong content.
    #[error("{}: line {line}: column {column}: {problem}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// Name of the column, or, in JSON, of the field.
        column: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file or directory that is wrong as a whole.
    #[error("{}: {problem}", path.display())]
    Whole {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A line that is not what the file's name says: a row of another length, broken JSON.
    #[error("{}: line {line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
}

/// Something that is left out of a world; the rest is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// File or directory.
    pub path: PathBuf,
    /// What is left out and what stands in for it.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.message)
    }
}
