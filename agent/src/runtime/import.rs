//! Brings images from a file into containerd, for devices without a registry: blobs into the
//! content store, then the image's name. CRI unpacks it when the first container needs it.

use std::collections::HashMap;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    CreateImageRequest, CreateRequest, DeleteRequest, Image, UpdateImageRequest, WriteAction,
    WriteContentRequest,
};
use containerd_client::types::Descriptor as Target;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use super::archive::{Archive, Descriptor, ImportError, Index, Manifest, Place, is_index};
use super::events::in_namespace;
use super::names::{digest, full_name};
use super::{Cri, RuntimeError};

/// Piece of a blob, bytes.
const PIECE: u64 = 256 * 1024;
/// After that containerd clears away what an import that was cut off has left.
const LEASE: Duration = Duration::from_secs(3600);
/// CRI hears of a new image a moment later.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
/// Annotation with the image's full name.
pub(super) const NAME: &str = "io.containerd.image.name";

/// Imports every image of an OCI layout in a tar file; their names.
///
/// # Errors
/// Names the file and what is wrong with it, or containerd's complaint.
pub async fn import_oci_tar(cri: &Cri, path: &Path) -> Result<Vec<String>, ImportError> {
    import(cri.clone(), path.to_owned(), None).await
}

/// Imports the one image that an archive of somebody else is to hold, and nothing else.
///
/// # Errors
/// As [`import_oci_tar`]; also where the archive holds other images, or one of this name with
/// another digest than the name says.
pub async fn import_image(cri: Cri, path: PathBuf, image: String) -> Result<(), ImportError> {
    import(cri, path, Some(image)).await.map(|_| ())
}

/// Takes its arguments whole: with borrowed ones the compiler does not see that the future may
/// move between threads.
async fn import(cri: Cri, path: PathBuf, only: Option<String>) -> Result<Vec<String>, ImportError> {
    let archive = tokio::task::spawn_blocking(move || Archive::open(&path))
        .await
        .map_err(|error| RuntimeError::Failed {
            what: "import".to_owned(),
            code: Code::Internal,
            message: error.to_string(),
        })??;
    let index = archive.index()?;
    if index.manifests.is_empty() {
        return Err(archive.invalid("index.json names no image"));
    }
    if let Some(wanted) = only {
        let name = full_name(&wanted);
        let [image] = index.manifests.as_slice() else {
            return Err(archive.invalid("holds more than the one image that was asked for"));
        };
        let found = image.annotations.get(NAME);
        if found != Some(&name) || digest(&name).is_some_and(|d| d != image.digest) {
            let found = found.map_or("none", String::as_str);
            return Err(archive.invalid(format!("holds {found:?}, not {name}")));
        }
    }
    let import = Import::begin(cri.clone(), archive).await?;
    let result = import.all(&index).await;
    import.end().await;
    let names = result?;
    for name in &names {
        let deadline = tokio::time::Instant::now() + SEEN_WITHIN;
        while !cri.image_present(name).await? && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(names)
}

struct Import {
    cri: Cri,
    archive: Arc<Archive>,
    /// Keeps containerd from clearing away blobs that no image names yet.
    lease: MetadataValue<Ascii>,
}

impl Import {
    async fn begin(cri: Cri, archive: Archive) -> Result<Self, ImportError> {
        let id = format!("hyperion-import-{:016x}", rand::random::<u64>());
        let lease = MetadataValue::try_from(&id).map_err(|e| archive.invalid(e.to_string()))?;
        let import = Self {
            cri,
            archive: Arc::new(archive),
            lease,
        };
        let expires = humantime::format_rfc3339_seconds(SystemTime::now() + LEASE);
        let request = import.request(CreateRequest {
            id,
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expires.to_string())]),
        });
        LeasesClient::new(import.cri.channel())
            .create(request)
            .await
            .map_err(|status| import.error("lease", &status))?;
        Ok(import)
    }

    async fn end(&self) {
        let request = self.request(DeleteRequest {
            id: self.lease.to_str().unwrap_or_default().to_owned(),
            sync: false,
        });
        // It runs out by itself.
        let _ = LeasesClient::new(self.cri.channel()).delete(request).await;
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = in_namespace(message);
        request
            .metadata_mut()
            .insert("containerd-lease", self.lease.clone());
        request
    }

    fn error(&self, what: &str, status: &Status) -> ImportError {
        let what = format!("import {}: {what}", self.archive.path.display());
        RuntimeError::from_status(self.cri.socket(), &what, status).into()
    }

    async fn all(&self, index: &Index) -> Result<Vec<String>, ImportError> {
        let mut names = Vec::new();
        for image in &index.manifests {
            let name = image.annotations.get(NAME);
            let name = name.ok_or_else(|| {
                let problem = format!("{} has no annotation {NAME}", image.digest);
                self.archive.invalid(problem)
            })?;
            if is_index(&image.media_type) {
                self.index(image).await?;
            } else {
                self.manifest(image).await?;
            }
            self.name(name, image).await?;
            names.push(name.clone());
        }
        Ok(names)
    }

    /// The platforms that are in the archive; those that are not need not be.
    async fn index(&self, image: &Descriptor) -> Result<(), ImportError> {
        let index: Index = self.archive.read(image)?;
        let mut labels = HashMap::new();
        for (i, manifest) in index.manifests.iter().enumerate() {
            if self.archive.has(manifest) {
                self.manifest(manifest).await?;
                let label = format!("containerd.io/gc.ref.content.m.{i}");
                labels.insert(label, manifest.digest.clone());
            }
        }
        self.blob(image, labels).await
    }

    async fn manifest(&self, image: &Descriptor) -> Result<(), ImportError> {
        let manifest: Manifest = self.archive.read(image)?;
        // The labels tell containerd what the manifest needs.
        let mut labels = HashMap::new();
        for (i, layer) in manifest.layers.iter().enumerate() {
            self.blob(layer, HashMap::new()).await?;
            let label = format!("containerd.io/gc.ref.content.l.{i}");
            labels.insert(label, layer.digest.clone());
        }
        self.blob(&manifest.config, HashMap::new()).await?;
        let label = "containerd.io/gc.ref.content.config".to_owned();
        labels.insert(label, manifest.config.digest.clone());
        self.blob(image, labels).await
    }

    /// containerd checks the digest.
    async fn blob(
        &self,
        blob: &Descriptor,
        labels: HashMap<String, String>,
    ) -> Result<(), ImportError> {
        let place = self.archive.blob(blob)?;
        let (sender, receiver) = mpsc::channel(2);
        let messages = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let reader = tokio::spawn(send(
            Arc::clone(&self.archive),
            blob.digest.clone(),
            place,
            labels,
            sender,
        ));
        let written = async {
            let request = self.request(messages);
            let answer = ContentClient::new(self.cri.channel())
                .write(request)
                .await?;
            let mut answers = answer.into_inner();
            let mut done = false;
            while let Some(answer) = answers.message().await? {
                done = answer.action() == WriteAction::Commit;
            }
            Ok(done)
        };
        let written: Result<bool, Status> = written.await;
        match (written, reader.await) {
            (Err(status), _) if status.code() == Code::AlreadyExists => Ok(()),
            (_, Ok(Err(error))) => Err(self.archive.io(error)),
            (Err(status), _) => Err(self.error(&blob.digest, &status)),
            (Ok(true), _) => Ok(()),
            (Ok(false), _) => {
                let problem = format!("{}: containerd did not take it", blob.digest);
                Err(self.archive.invalid(problem))
            }
        }
    }

    async fn name(&self, name: &str, image: &Descriptor) -> Result<(), ImportError> {
        let mut images = ImagesClient::new(self.cri.channel());
        let image = Some(Image {
            name: name.to_owned(),
            target: Some(Target {
                media_type: image.media_type.clone(),
                digest: image.digest.clone(),
                size: image.size.try_into().unwrap_or(i64::MAX),
                ..Default::default()
            }),
            ..Default::default()
        });
        let request = CreateImageRequest {
            image: image.clone(),
            ..Default::default()
        };
        let result = match images.create(self.request(request)).await {
            Err(status) if status.code() == Code::AlreadyExists => {
                let request = UpdateImageRequest {
                    image,
                    ..Default::default()
                };
                images.update(self.request(request)).await.map(|_| ())
            }
            other => other.map(|_| ()),
        };
        result.map_err(|status| self.error(name, &status))
    }
}

/// Sends a blob piece by piece. Ends early, and well, when containerd has it already.
async fn send(
    archive: Arc<Archive>,
    digest: String,
    place: Place,
    labels: HashMap<String, String>,
    messages: mpsc::Sender<WriteContentRequest>,
) -> std::io::Result<()> {
    let mut file = tokio::fs::File::open(&archive.path).await?;
    file.seek(SeekFrom::Start(place.offset)).await?;
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let message = |action: WriteAction, offset: u64, data: Vec<u8>| WriteContentRequest {
        action: action.into(),
        r#ref: format!("hyperion-import-{digest}"),
        total: signed(place.size),
        expected: digest.clone(),
        offset: signed(offset),
        data,
        labels: HashMap::new(),
    };
    let mut offset = 0;
    while offset < place.size {
        let mut data = vec![0; usize::try_from((place.size - offset).min(PIECE)).unwrap_or(0)];
        file.read_exact(&mut data).await?;
        let next = offset + data.len() as u64;
        let piece = message(WriteAction::Write, offset, data);
        if messages.send(piece).await.is_err() {
            return Ok(());
        }
        offset = next;
    }
    let mut last = message(WriteAction::Commit, offset, Vec::new());
    last.labels = labels;
    // The other end is gone only where containerd answered already.
    let _ = messages.send(last).await;
    Ok(())
}
