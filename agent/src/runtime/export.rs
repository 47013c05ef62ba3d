//! Gives an image away as an OCI layout in a tar file, piece by piece, out of containerd's content
//! store: for the other nodes of the site, which may have no registry.

use std::collections::{HashMap, HashSet};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{GetImageRequest, InfoRequest, ReadContentRequest};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use serde::de::DeserializeOwned;
use tonic::{Code, Status};

use bytes::Bytes;

use super::archive::{BLOCK, Descriptor, Index, MAX_JSON, Manifest, is_index};
use super::events::in_namespace;
use super::import::NAME;
use super::names::full_name;
use super::{Cri, RuntimeError};

/// Most platforms and layers that are looked at.
const MAX_PARTS: usize = 256;
/// Piece of a blob that containerd sends at once, at most, bytes.
const MAX_MESSAGE: usize = 16 << 20;

/// An image that can be given whole.
#[derive(Debug)]
pub struct Export {
    cri: Cri,
    image: String,
    /// `oci-layout` and `index.json`.
    small: Vec<(String, Vec<u8>)>,
    /// Digest and size.
    blobs: Vec<(String, u64)>,
}

impl Export {
    /// Looks up what belongs to the image; of an image for several platforms, the platforms that
    /// this node has.
    ///
    /// # Errors
    /// The image is not here, or not whole: containerd may be set to throw away layers that it has
    /// unpacked.
    pub async fn open(cri: &Cri, image: &str) -> Result<Self, RuntimeError> {
        let mut export = Self {
            cri: cri.clone(),
            image: image.to_owned(),
            small: Vec::new(),
            blobs: Vec::new(),
        };
        let name = full_name(image);
        let request = in_namespace(GetImageRequest { name: name.clone() });
        let found = ImagesClient::new(cri.channel()).get(request).await;
        let found = found.map_err(|status| export.error(&status))?.into_inner();
        let target = found
            .image
            .and_then(|image| image.target)
            .ok_or_else(|| export.problem("containerd knows no content of it"))?;
        let size = u64::try_from(target.size).unwrap_or(0);
        let target = Descriptor {
            media_type: target.media_type,
            digest: target.digest,
            size,
            annotations: HashMap::new(),
        };
        if is_index(&target.media_type) {
            export.index(&target).await?;
        } else {
            export.manifest(&target).await?;
        }
        let mut seen = HashSet::new();
        export
            .blobs
            .retain(|(digest, _)| seen.insert(digest.clone()));
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": target.media_type,
                "digest": target.digest,
                "size": target.size,
                "annotations": { NAME: name },
            }],
        });
        export.small = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        Ok(export)
    }

    /// Length of the tar file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let small = self.small.iter().map(|(_, bytes)| bytes.len() as u64);
        let blobs = self.blobs.iter().map(|(_, size)| *size);
        let files: u64 = small.chain(blobs).map(|size| BLOCK + padded(size)).sum();
        files + 2 * BLOCK
    }

    /// The tar file.
    pub fn pieces(self) -> impl Stream<Item = Result<Bytes, RuntimeError>> + Send {
        let small = self.small.clone().into_iter().map(|(name, bytes)| {
            let mut file = header(&name, bytes.len() as u64);
            file.extend_from_slice(&bytes);
            file.resize(file.len() + padding(bytes.len() as u64), 0);
            Ok(Bytes::from(file))
        });
        let end = stream::iter([Ok(Bytes::from(vec![0; 1024]))]);
        let blobs = stream::iter(self.blobs.clone())
            .then(move |(digest, size)| {
                let (cri, image) = (self.cri.clone(), self.image.clone());
                async move { blob(cri, image, digest, size).await }
            })
            .try_flatten();
        stream::iter(small).chain(blobs).chain(end)
    }

    async fn index(&mut self, image: &Descriptor) -> Result<(), RuntimeError> {
        let index: Index = self.read(image).await?;
        let mut whole = 0;
        for manifest in index.manifests.iter().take(MAX_PARTS) {
            let before = self.blobs.len();
            match self.manifest(manifest).await {
                Ok(()) => whole += 1,
                Err(error) if error.is_not_found() => self.blobs.truncate(before),
                Err(error) => return Err(error),
            }
        }
        if whole == 0 {
            return Err(self.problem("none of its platforms is here whole"));
        }
        self.blobs.push((image.digest.clone(), image.size));
        Ok(())
    }

    async fn manifest(&mut self, image: &Descriptor) -> Result<(), RuntimeError> {
        let manifest: Manifest = self.read(image).await?;
        if manifest.layers.len() > MAX_PARTS {
            return Err(self.problem("more layers than an image has"));
        }
        for part in manifest.layers.iter().chain([&manifest.config]) {
            self.has(part).await?;
            self.blobs.push((part.digest.clone(), part.size));
        }
        self.blobs.push((image.digest.clone(), image.size));
        Ok(())
    }

    async fn has(&self, part: &Descriptor) -> Result<(), RuntimeError> {
        let request = in_namespace(InfoRequest {
            digest: part.digest.clone(),
        });
        let info = ContentClient::new(self.cri.channel()).info(request).await;
        let info = info.map_err(|status| self.error(&status))?.into_inner();
        let size = info.info.map_or(0, |info| info.size);
        if u64::try_from(size).ok() == Some(part.size) {
            return Ok(());
        }
        Err(self.problem(&format!(
            "{} has another size than its manifest says",
            part.digest
        )))
    }

    async fn read<T: DeserializeOwned>(&self, part: &Descriptor) -> Result<T, RuntimeError> {
        if part.size > MAX_JSON {
            return Err(self.problem(&format!("{}: {} bytes", part.digest, part.size)));
        }
        let mut bytes = Vec::new();
        let pieces = content(&self.cri, &self.image, &part.digest).await?;
        let mut pieces = std::pin::pin!(pieces);
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > part.size {
                break;
            }
        }
        serde_json::from_slice(&bytes).map_err(|e| self.problem(&format!("{}: {e}", part.digest)))
    }

    fn problem(&self, problem: &str) -> RuntimeError {
        RuntimeError::Failed {
            what: format!("export image {}", self.image),
            code: Code::FailedPrecondition,
            message: problem.to_owned(),
        }
    }

    fn error(&self, status: &Status) -> RuntimeError {
        failed(&self.cri, &self.image, status)
    }
}

fn failed(cri: &Cri, image: &str, status: &Status) -> RuntimeError {
    RuntimeError::from_status(cri.socket(), &format!("export image {image}"), status)
}

/// Content by its digest.
async fn content(
    cri: &Cri,
    image: &str,
    digest: &str,
) -> Result<impl Stream<Item = Result<Bytes, RuntimeError>> + Send + use<>, RuntimeError> {
    let request = in_namespace(ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    });
    let mut client = ContentClient::new(cri.channel()).max_decoding_message_size(MAX_MESSAGE);
    let (cri, image) = (cri.clone(), image.to_owned());
    let answer = client
        .read(request)
        .await
        .map_err(|status| failed(&cri, &image, &status))?;
    Ok(answer.into_inner().map(move |piece| {
        piece
            .map(|piece| Bytes::from(piece.data))
            .map_err(|status| failed(&cri, &image, &status))
    }))
}

/// A blob as a file of the archive.
async fn blob(
    cri: Cri,
    image: String,
    digest: String,
    size: u64,
) -> Result<impl Stream<Item = Result<Bytes, RuntimeError>> + Send, RuntimeError> {
    let hex = digest.strip_prefix("sha256:").unwrap_or(&digest);
    let head = header(&format!("blobs/sha256/{hex}"), size);
    let pieces = content(&cri, &image, &digest).await?;
    let fill = vec![0; padding(size)];
    let one = |bytes: Vec<u8>| stream::iter([Ok(Bytes::from(bytes))]);
    Ok(one(head).chain(pieces).chain(one(fill)))
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK) * BLOCK
}

fn padding(size: u64) -> usize {
    usize::try_from(padded(size) - size).unwrap_or(0)
}

/// Largest size that eleven octal digits hold: 8 GiB less one.
const MAX_OCTAL: u64 = (1 << 33) - 1;

/// Header of a plain file (POSIX.1-1988, ustar).
fn header(name: &str, size: u64) -> Vec<u8> {
    let mut block = vec![0_u8; 512];
    let mut put = |at: usize, text: &str| {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    // Names are `blobs/sha256/` and 64 digits at most; the field has 100 bytes.
    put(0, &name[..name.len().min(99)]);
    put(100, "0000444\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    if size <= MAX_OCTAL {
        put(124, &format!("{size:011o}\0"));
    } else {
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    block[148..156].copy_from_slice(sum.as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::runtime::archive::Archive;

    #[test]
    fn headers_are_what_tar_and_the_import_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let name = format!("blobs/sha256/{}", "a".repeat(64));
        for (name, bytes) in [("index.json", b"{}".as_slice()), (&name, b"layer")] {
            file.write_all(&header(name, bytes.len() as u64)).unwrap();
            file.write_all(bytes).unwrap();
            let fill = vec![0; padding(bytes.len() as u64)];
            file.write_all(&fill).unwrap();
        }
        file.write_all(&[0; 1024]).unwrap();
        let archive = Archive::open(file.path()).unwrap();
        let layer = Descriptor {
            media_type: String::new(),
            digest: format!("sha256:{}", "a".repeat(64)),
            size: 5,
            annotations: HashMap::new(),
        };
        assert!(archive.has(&layer));
        let listed = std::process::Command::new("tar")
            .arg("tf")
            .arg(file.path())
            .output()
            .unwrap();
        assert!(listed.status.success(), "{listed:?}");
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(listed, format!("index.json\n{name}\n"));
    }

    #[test]
    fn files_of_more_than_8_gib_have_a_header_too() {
        let large = header("x", (1 << 33) + 5);
        assert_eq!(large[124], 0x80);
        assert_eq!(large[128..136], ((1_u64 << 33) + 5).to_be_bytes());
        assert_eq!(padding(0), 0);
        assert_eq!(padding(1), 511);
        assert_eq!(padded(512), 512);
    }
}
