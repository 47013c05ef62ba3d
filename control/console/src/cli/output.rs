//! Where output goes: colours only for people, closed pipes without complaint.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::error::CliError;

/// Machine-readable output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Standard output and what it can show.
#[derive(Debug, Clone, Default)]
pub struct Out {
    /// Colours are welcome.
    pub colour: bool,
    /// Columns of the terminal; none where output goes to a file or a pipe.
    pub width: Option<u16>,
    /// The locale has no Unicode.
    pub ascii: bool,
    /// Where output goes instead, in tests.
    pub captured: Option<Arc<Mutex<Vec<u8>>>>,
}

impl Out {
    /// Asks the terminal and the environment.
    #[must_use]
    pub fn detect(no_colour: bool) -> Self {
        let tty = io::stdout().is_terminal();
        Self {
            colour: tty && !no_colour && colours_wanted(),
            width: tty.then(|| crossterm::terminal::size().map_or(80, |(columns, _)| columns)),
            ascii: ascii_locale(),
            captured: None,
        }
    }

    /// Writes to standard output. A reader that has gone away ends the program quietly.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn write(&self, bytes: &[u8]) -> Result<(), CliError> {
        if let Some(captured) = &self.captured {
            let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
            captured.extend_from_slice(bytes);
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            // `hyperion nodes | head` has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(e) => Err(CliError::new(format!("standard output: {e}"))),
        }
    }

    /// One line.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn line(&self, line: &str) -> Result<(), CliError> {
        self.write(format!("{line}\n").as_bytes())
    }

    /// A value as JSON or YAML.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn value(&self, format: Format, value: &impl Serialize) -> Result<(), CliError> {
        self.write(render(format, value)?.as_bytes())
    }
}

/// A value as text.
///
/// # Errors
/// The value has no such form.
pub fn render(format: Format, value: &impl Serialize) -> Result<String, CliError> {
    let failed = |e: &dyn std::fmt::Display| CliError::new(format!("cannot print: {e}"));
    match format {
        Format::Json => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .map_err(|e| failed(&e)),
        Format::Yaml => serde_yaml_ng::to_string(value).map_err(|e| failed(&e)),
    }
}

/// The error on standard error.
pub fn complain(error: &CliError) {
    let mut stderr = io::stderr().lock();
    let colour = stderr.is_terminal() && colours_wanted();
    let (red, dim, off) = if colour {
        ("\x1b[1;31m", "\x1b[2m", "\x1b[0m")
    } else {
        ("", "", "")
    };
    // Nobody is left to tell if this fails.
    let _ = writeln!(stderr, "{red}error:{off} {}", error.message);
    if let Some(hint) = &error.hint {
        let _ = writeln!(stderr, "{dim}hint: {hint}{off}");
    }
}

/// The environment does not forbid colours.
#[must_use]
pub fn colours_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// The first locale variable that is set names another character set than UTF-8.
#[must_use]
pub fn ascii_locale() -> bool {
    ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
        .is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            // A bare "C" is what minimal systems and containers have; their terminals know UTF-8.
            locale.contains('.') && !locale.contains("utf-8") && !locale.contains("utf8")
        })
}
