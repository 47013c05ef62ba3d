//! Files of procfs and sysfs under an injected root: small, read once a look, and never for longer
//! than the watch allows.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use super::watch::Step;

/// Longest file of a sensor, bytes: one of sysfs has at most a page.
const LONGEST: u64 = 4096;
/// Longest table (`meminfo`, clients of the GPU, modes of power), bytes.
const LONGEST_TABLE: u64 = 128 * 1024;
/// Most entries of a folder that are looked at.
const MOST_ENTRIES: usize = 1024;
/// Longest name that is taken from a file, characters: models of boards have up to 70.
const LONGEST_NAME: usize = 96;

/// Reads files, each once a look.
pub struct Files {
    root: PathBuf,
    step: Arc<Step>,
    seen: RefCell<HashMap<String, Option<Rc<str>>>>,
}

impl Files {
    /// Paths are below `root`; `step` is told of each.
    pub fn new(root: PathBuf, step: Arc<Step>) -> Self {
        Self {
            root,
            step,
            seen: RefCell::default(),
        }
    }

    /// Forgets what was read.
    pub fn new_look(&self) {
        self.seen.borrow_mut().clear();
    }

    /// Files that hang now.
    pub fn hanging(&self) -> Vec<String> {
        self.step.hanging()
    }

    /// Text of a file; none where it is missing, can't be read, is too long or no text.
    pub fn text(&self, path: &str) -> Option<Rc<str>> {
        if let Some(seen) = self.seen.borrow().get(path) {
            return seen.clone();
        }
        let longest = longest(path);
        let file = self.below(path);
        let read = self.step.run(path, || {
            let mut bytes = Vec::new();
            let file = std::fs::File::open(file).ok()?;
            // One byte more tells what is too long.
            file.take(longest + 1).read_to_end(&mut bytes).ok()?;
            (bytes.len() as u64 <= longest).then_some(bytes)
        });
        let text = read.flatten().and_then(|b| String::from_utf8(b).ok());
        let text: Option<Rc<str>> = text.map(Rc::from);
        self.seen.borrow_mut().insert(path.to_owned(), text.clone());
        text
    }

    /// First line of a file as a name: a few printable characters, none of them a NUL.
    pub fn name(&self, path: &str) -> Option<String> {
        name_of(&self.text(path)?)
    }

    /// Whether there is such a file or folder.
    pub fn exists(&self, path: &str) -> bool {
        let file = self.below(path);
        self.step.run(path, || file.exists()).unwrap_or(false)
    }

    /// Names in a folder that begin with `prefix`; `x2` before `x10`.
    pub fn entries(&self, folder: &str, prefix: &str) -> Vec<String> {
        let below = self.below(folder);
        let listed = self.step.run(folder, || {
            let entries = std::fs::read_dir(below).ok()?;
            let names = entries.flatten().take(MOST_ENTRIES);
            Some(
                names
                    .filter_map(|e| e.file_name().into_string().ok())
                    .filter(|name| name.starts_with(prefix))
                    .collect::<Vec<_>>(),
            )
        });
        let mut names = listed.flatten().unwrap_or_default();
        names.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
        names
    }

    fn below(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

fn longest(path: &str) -> u64 {
    if path.starts_with("/sys/") && !path.starts_with("/sys/kernel/debug/nvmap/") {
        LONGEST
    } else {
        LONGEST_TABLE
    }
}

/// A name out of a text of any kind; none where it holds no word or something a screen would obey.
pub fn name_of(text: &str) -> Option<String> {
    // Properties of the device tree end with NULs.
    let line = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    let plain = |c: char| c.is_ascii_graphic() || c == ' ';
    let fits = line.len() <= LONGEST_NAME && line.chars().all(plain);
    let word = line.chars().any(|c| c.is_ascii_alphanumeric());
    // What begins so is a number where a name should be.
    (fits && word && line != "N/A" && !line.starts_with('-')).then(|| line.to_owned())
}

/// First whole number of a text: old kernels write `32760 ma`.
pub fn number(text: &str) -> Option<f64> {
    let word = text.trim_matches('\0').split_ascii_whitespace().next()?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "no sensor has more than fifteen digits that matter"
    )]
    word.parse::<i64>().ok().map(|n| n as f64)
}

/// A number of a text in a unit, where it lies in what such a sensor can show.
pub fn scaled(text: &str, unit: f64, least: f64, most: f64) -> Option<f64> {
    let value = number(text)? * unit;
    (least..=most).contains(&value).then_some(value)
}

/// A switch: 0 or 1.
pub fn switch(text: &str) -> Option<f64> {
    number(text).filter(|n| *n == 0.0 || *n == 1.0)
}

/// A count that is not negative.
pub fn count(text: &str) -> Option<f64> {
    scaled(text, 1.0, 0.0, 1e15)
}

/// A clock in hertz: 0 while it is gated.
pub fn hertz(text: &str) -> Option<f64> {
    scaled(text, 1.0, 0.0, 1e11)
}

/// A clock in kilohertz.
pub fn kilohertz(text: &str) -> Option<f64> {
    scaled(text, 1e3, 0.0, 1e11)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_in_range_are_taken() {
        assert_eq!(scaled(" 32760 ma\n", 1e-3, 0.0, 100.0), Some(32.76));
        assert_eq!(scaled("48500\0", 1e-3, -60.0, 250.0), Some(48.5));
        for bad in ["", "N/A", "-256000", "99999999999999999999", "1.5", "NaN"] {
            assert_eq!(scaled(bad, 1e-3, -60.0, 250.0), None, "{bad:?}");
        }
        assert_eq!((switch("1\n"), switch("2")), (Some(1.0), None));
        assert_eq!(
            (count("-1"), hertz("-5"), kilohertz("0")),
            (None, None, Some(0.0))
        );
    }

    #[test]
    fn names_are_what_a_screen_may_show() {
        assert_eq!(
            name_of("nvidia,tegra234\0").as_deref(),
            Some("nvidia,tegra234")
        );
        let long = "x".repeat(97);
        for bad in [
            "",
            "\0",
            "  \n",
            "N/A",
            "-1",
            "a\u{1b}[2J",
            "a\nb",
            "..",
            long.as_str(),
        ] {
            assert_eq!(name_of(bad), None, "{bad:?}");
        }
    }
}
