//! Tables as CSV, plain or gzipped, read so that every complaint names file, line and column.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use csv::{ReaderBuilder, StringRecord};
use flate2::read::GzDecoder;

use super::DataError;

/// A table held in memory; columns are addressed by their position in `columns`.
pub(super) struct Table {
    path: PathBuf,
    columns: &'static [&'static str],
    indices: Vec<usize>,
    records: Vec<StringRecord>,
}

/// The text of a file, unzipped where its name ends in `.gz`; none where there is no such file.
pub(super) fn text(path: &Path) -> Result<Option<String>, DataError> {
    let failed = |source| DataError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut text = String::new();
    if path.extension().is_some_and(|e| e == "gz") {
        GzDecoder::new(file).read_to_string(&mut text)
    } else {
        file.read_to_string(&mut text)
    }
    .map_err(failed)?;
    Ok(Some(text))
}

impl Table {
    /// Reads a table and finds its columns; none where there is no such file.
    pub(super) fn open(
        path: &Path,
        columns: &'static [&'static str],
    ) -> Result<Option<Self>, DataError> {
        let Some(text) = text(path)? else {
            return Ok(None);
        };
        let mut reader = ReaderBuilder::new().from_reader(text.as_bytes());
        let header = reader
            .headers()
            .map_err(|e| malformed(path, 1, &e))?
            .clone();
        let indices = columns
            .iter()
            .map(|column| {
                header
                    .iter()
                    .position(|h| h.trim() == *column)
                    .ok_or(DataError::Column {
                        path: path.to_owned(),
                        column,
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut records = Vec::new();
        for record in reader.records() {
            let last = records.len() as u64 + 1;
            records.push(record.map_err(|e| {
                let line = e.position().map_or(last + 1, csv::Position::line);
                malformed(path, line, &e)
            })?);
        }
        Ok(Some(Self {
            path: path.to_owned(),
            columns,
            indices,
            records,
        }))
    }

    /// Its rows, in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.records.iter().map(|record| Row {
            table: self,
            record,
        })
    }
}

fn malformed(path: &Path, line: u64, error: &csv::Error) -> DataError {
    let problem = match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => {
            format!("{len} fields where the header has {expected_len}")
        }
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    DataError::Malformed {
        path: path.to_owned(),
        line,
        problem,
    }
}

/// One row.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    table: &'a Table,
    record: &'a StringRecord,
}

impl<'a> Row<'a> {
    /// The field in a column, without blanks around it.
    pub(super) fn text(&self, column: usize) -> &'a str {
        self.record
            .get(self.table.indices[column])
            .unwrap_or("")
            .trim()
    }

    /// A complaint about a field of this row.
    pub(super) fn wrong(&self, column: usize, problem: impl Into<String>) -> DataError {
        DataError::Field {
            path: self.table.path.clone(),
            line: self.record.position().map_or(0, csv::Position::line),
            column: self.table.columns[column].to_owned(),
            problem: problem.into(),
        }
    }

    /// A word that must not be empty.
    pub(super) fn word(&self, column: usize) -> Result<&'a str, DataError> {
        let text = self.text(column);
        if text.is_empty() {
            return Err(self.wrong(column, "is empty"));
        }
        Ok(text)
    }

    /// A finite number.
    pub(super) fn signed(&self, column: usize) -> Result<f64, DataError> {
        let text = self.word(column)?;
        let value: f64 = text
            .parse()
            .map_err(|_| self.wrong(column, format!("{text:?} is not a number")))?;
        if !value.is_finite() {
            return Err(self.wrong(column, format!("{text} is not finite")));
        }
        Ok(value)
    }

    /// A finite number that is not negative.
    pub(super) fn number(&self, column: usize) -> Result<f64, DataError> {
        let value = self.signed(column)?;
        if value < 0.0 {
            return Err(self.wrong(column, format!("{} is negative", self.text(column))));
        }
        Ok(value)
    }

    /// A finite number above zero.
    pub(super) fn positive(&self, column: usize) -> Result<f64, DataError> {
        let value = self.number(column)?;
        if value == 0.0 {
            return Err(self.wrong(column, "is zero"));
        }
        Ok(value)
    }

    /// As [`Row::number`]; none where the field is empty.
    pub(super) fn optional(&self, column: usize) -> Result<Option<f64>, DataError> {
        if self.text(column).is_empty() {
            return Ok(None);
        }
        self.number(column).map(Some)
    }
}
