//! Reads an OCI image layout from a tar file: what is in it and where.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::RuntimeError;

/// Size of a tar block, bytes.
pub(super) const BLOCK: u64 = 512;
/// Largest index, manifest or configuration that is read, bytes.
pub(super) const MAX_JSON: u64 = 4 << 20;
/// Most entries of an archive.
const MAX_ENTRIES: usize = 100_000;

/// An archive that can't be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Reading.
    #[error("{path}: {source}")]
    Io {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Not an OCI image layout that can be used here.
    #[error("{path}: {problem}")]
    Invalid {
        /// File.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// containerd refused it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Where a file of the archive lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub offset: u64,
    pub size: u64,
}

/// An OCI descriptor.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
}

/// An OCI index.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub manifests: Vec<Descriptor>,
}

/// An OCI manifest.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Whether a descriptor names an index of platforms.
pub(super) fn is_index(media_type: &str) -> bool {
    media_type.contains("index") || media_type.contains("manifest.list")
}

/// An archive and the places of its files.
#[derive(Debug)]
pub(super) struct Archive {
    pub path: PathBuf,
    files: HashMap<String, Place>,
}

impl Archive {
    /// Reads the headers.
    ///
    /// # Errors
    /// The file can't be read or is no tar file.
    pub(super) fn open(path: &Path) -> Result<Self, ImportError> {
        let mut archive = Self {
            path: path.to_owned(),
            files: HashMap::new(),
        };
        let mut file = File::open(path).map_err(|e| archive.io(e))?;
        let length = file.metadata().map_err(|e| archive.io(e))?.len();
        let mut at = 0;
        while at + BLOCK <= length {
            let mut header = [0; 512];
            file.seek(SeekFrom::Start(at)).map_err(|e| archive.io(e))?;
            file.read_exact(&mut header).map_err(|e| archive.io(e))?;
            if header.iter().all(|byte| *byte == 0) {
                break;
            }
            let size = octal(&header[124..136])
                .filter(|_| header[257..262] == *b"ustar")
                .ok_or_else(|| archive.invalid(no_header(at, &header)))?;
            let offset = at + BLOCK;
            let fits = offset.checked_add(size).is_some_and(|end| end <= length);
            if !fits || archive.files.len() >= MAX_ENTRIES {
                return Err(archive.invalid("truncated, or not an image"));
            }
            if matches!(header[156], b'0' | 0) {
                let name = text(&header[..100]);
                let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
                archive.files.insert(name, Place { offset, size });
            }
            at = offset + size.div_ceil(BLOCK) * BLOCK;
        }
        Ok(archive)
    }

    pub(super) fn io(&self, source: std::io::Error) -> ImportError {
        ImportError::Io {
            path: self.path.clone(),
            source,
        }
    }

    pub(super) fn invalid(&self, problem: impl Into<String>) -> ImportError {
        ImportError::Invalid {
            path: self.path.clone(),
            problem: problem.into(),
        }
    }

    /// Place of a blob; its size is what the descriptor says.
    ///
    /// # Errors
    /// It is missing or has another size.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Place, ImportError> {
        let digest = &descriptor.digest;
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(self.invalid(format!("{digest:?} is not a sha256 digest")));
        }
        match self.files.get(&format!("blobs/sha256/{hex}")) {
            Some(place) if place.size == descriptor.size => Ok(*place),
            Some(_) => Err(self.invalid(format!("blob {digest} has another size than announced"))),
            None => Err(self.invalid(format!("blob {digest} is missing"))),
        }
    }

    /// Whether the blob is there: archives of one platform keep the index of all.
    pub(super) fn has(&self, descriptor: &Descriptor) -> bool {
        self.blob(descriptor).is_ok()
    }

    /// Reads `index.json`.
    ///
    /// # Errors
    /// It is missing or is no index.
    pub(super) fn index(&self) -> Result<Index, ImportError> {
        let place = self.files.get("index.json");
        let place = place.ok_or_else(|| self.invalid("no index.json: not an OCI image layout"))?;
        self.json("index.json", *place)
    }

    /// Reads a blob as JSON.
    ///
    /// # Errors
    /// It is missing or something else.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        descriptor: &Descriptor,
    ) -> Result<T, ImportError> {
        self.json(&descriptor.digest, self.blob(descriptor)?)
    }

    fn json<T: DeserializeOwned>(&self, name: &str, place: Place) -> Result<T, ImportError> {
        if place.size > MAX_JSON {
            return Err(self.invalid(format!("{name}: {} bytes", place.size)));
        }
        let mut file = File::open(&self.path).map_err(|e| self.io(e))?;
        file.seek(SeekFrom::Start(place.offset))
            .map_err(|e| self.io(e))?;
        serde_json::from_reader(std::io::BufReader::new(file.take(place.size)))
            .map_err(|e| self.invalid(format!("{name}: {e}")))
    }
}

/// Why there is no tar header here. Compressed archives are what people try first.
fn no_header(at: u64, found: &[u8]) -> String {
    let packed = [
        (&[0x1f, 0x8b][..], "gzip"),
        (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
        (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    ];
    let with = packed.iter().find(|(magic, _)| found.starts_with(magic));
    match with {
        Some((_, with)) if at == 0 => format!("compressed with {with}: decompress it first"),
        _ => format!("not an OCI image archive: no tar header at byte {at}"),
    }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&field[..end.unwrap_or(field.len())]).into_owned()
}

/// A number of a header: octal digits, or, from 8 GiB on, binary with the first bit set.
fn octal(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        let zero = high[0] == 0x80 && high[1..].iter().all(|byte| *byte == 0);
        return zero.then(|| u64::from_be_bytes(low.try_into().unwrap_or_default()));
    }
    u64::from_str_radix(text(field).trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, size: &str) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..124 + size.len()].copy_from_slice(size.as_bytes());
        block[156] = b'0';
        block[257..262].copy_from_slice(b"ustar");
        block
    }

    fn open(bytes: &[u8]) -> Result<Archive, ImportError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let archive = Archive::open(file.path());
        if let Err(error) = &archive {
            let name = file.path().display().to_string();
            assert!(error.to_string().contains(&name), "{error}");
        }
        archive
    }

    #[test]
    fn files_are_found_behind_each_other() {
        let mut tar = header("./a", "00000000003\0");
        tar.extend([b'x'; 512]);
        tar.extend(header("index.json", "00000000002\0"));
        tar.extend(*b"{}");
        tar.resize(tar.len() + 510 + 1024, 0);
        let archive = open(&tar).unwrap();
        assert_eq!(archive.files["a"].size, 3);
        assert_eq!(archive.files["index.json"].offset, 1536);
        assert!(archive.index().is_err());
    }

    #[test]
    fn what_is_no_archive_is_refused_with_its_name() {
        let mut huge = vec![0x80, 0, 0, 0];
        huge.extend([0xff; 8]);
        let mut overflow = header("a", "");
        overflow[124..136].copy_from_slice(&huge);
        for bad in [
            vec![b'x'; 4096],
            header("a", "77777777777\0"),
            header("a", "12x\0"),
            overflow,
        ] {
            assert!(open(&bad).is_err());
        }
        let empty = open(&[]).unwrap();
        assert!(
            empty
                .index()
                .unwrap_err()
                .to_string()
                .contains("index.json")
        );
    }

    #[test]
    fn a_compressed_archive_is_called_that() {
        let mut gzip = vec![0x1f, 0x8b];
        gzip.resize(1024, 0);
        let error = open(&gzip).unwrap_err().to_string();
        assert!(error.contains("compressed with gzip"), "{error}");
    }

    #[test]
    fn digests_are_checked_before_they_become_names() {
        let archive = open(&[]).unwrap();
        for digest in ["", "sha256:../../../etc", "md5:x"] {
            let descriptor = Descriptor {
                media_type: String::new(),
                digest: digest.into(),
                size: 0,
                annotations: HashMap::new(),
            };
            let error = archive.blob(&descriptor).unwrap_err().to_string();
            assert!(error.contains("not a sha256 digest"), "{error}");
        }
    }
}
