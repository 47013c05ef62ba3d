//! Offers on disk, so that a restart without a feed begins with the prices of before.
//!
//! One file for each feed: a line `hyperion-prices VERSION SHA-256`, then the offers as JSON. It is
//! written beside and renamed, so that there is always a whole one. One that is damaged, or of a
//! version that is not known, is moved aside and named.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Feed, Offer};

const MAGIC: &str = "hyperion-prices";
const VERSION: &str = "1";
/// Bytes of a file; 100,000 offers have a third of this.
const MOST_BYTES: u64 = 64 << 20;

/// The folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    dir: PathBuf,
}

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {text}{}", path.display(), aside.as_ref().map_or_else(String::new, |to| format!("; moved to {}", to.display())))]
pub struct Damaged {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub text: String,
    /// Where it is now; none where it could not be moved.
    pub aside: Option<PathBuf>,
}

impl Cache {
    /// In this folder, which is made.
    ///
    /// # Errors
    /// It can't be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    fn path(&self, feed: Feed) -> PathBuf {
        self.dir.join(format!("prices-{feed}"))
    }

    /// The offers of a feed; none where there is no file.
    ///
    /// # Errors
    /// The file is damaged, and out of the way.
    pub fn load(&self, feed: Feed) -> Result<Vec<Offer>, Damaged> {
        let path = self.path(feed);
        let mut text = String::new();
        let read =
            File::open(&path).and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
        match read {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(aside(path, e.to_string())),
        }
        parse(&text).map_err(|text| aside(path, text))
    }

    /// Puts the offers of a feed in the place of those before. Blocks.
    ///
    /// # Errors
    /// The disk's; the file of before is then as it was.
    pub fn store(&self, feed: Feed, offers: &[Offer]) -> io::Result<()> {
        let body = serde_json::to_string(offers)?;
        let path = self.path(feed);
        let fresh = path.with_extension("new");
        let mut file = File::create(&fresh)?;
        writeln!(file, "{MAGIC} {VERSION} {}", sum(&body))?;
        file.write_all(body.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(&self.dir)?.sync_all()
    }
}

fn aside(path: PathBuf, text: String) -> Damaged {
    let to = path.with_extension(format!("damaged-{}", Timestamp::now().as_second()));
    let aside = std::fs::rename(&path, &to).is_ok().then_some(to);
    Damaged { path, text, aside }
}

fn parse(text: &str) -> Result<Vec<Offer>, String> {
    let (head, body) = text.split_once('\n').ok_or("no first line")?;
    match head.split(' ').collect::<Vec<_>>().as_slice() {
        [MAGIC, VERSION, found] if *found == sum(body) => {}
        [MAGIC, VERSION, _] => return Err("its sum does not match".to_owned()),
        [MAGIC, version, _] => return Err(format!("version {version:?} is not known")),
        _ => return Err("it is no file of prices".to_owned()),
    }
    let offers: Vec<Offer> = serde_json::from_str(body).map_err(|e| e.to_string())?;
    // A type that this version does not know any more is left out.
    let checked = offers
        .into_iter()
        .filter_map(|o| Offer::new(o.key, o.price_per_hour, o.seen).ok());
    Ok(checked.collect())
}

fn sum(body: &str) -> String {
    Sha256::digest(body.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests;
