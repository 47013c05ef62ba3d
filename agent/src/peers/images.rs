//! Images from other nodes of the site.

use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::io::AsyncWriteExt;
use tracing::{debug, info};

use super::{PeerError, PeersHandle};
use crate::runtime::{Cri, ImageSource, full_name, import_image};

/// Largest image that is taken, bytes of its archive.
const MAX_IMAGE: u64 = 32 << 30;
/// Room that is left on the disk, bytes.
const SPARE: u64 = 64 << 20;
/// Peers that are asked.
const ASKED: usize = 3;

/// Live nodes that say that they have the image of this name (see [`full_name`]).
pub type Holders = Arc<dyn Fn(&str) -> Vec<String> + Send + Sync>;

/// Brings images from peers into containerd: as an archive on the disk first, then by import, so
/// that half an image never has a name.
pub struct PeerImages {
    peers: PeersHandle,
    cri: Cri,
    dir: PathBuf,
    holders: Holders,
    /// One at a time of each image.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl fmt::Debug for PeerImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerImages({})", self.dir.display())
    }
}

impl PeerImages {
    /// Archives are kept in `dir` while they come; what an earlier process left there goes.
    #[must_use]
    pub fn new(peers: PeersHandle, cri: Cri, dir: PathBuf, holders: Holders) -> Self {
        if let Err(e) = std::fs::remove_dir_all(&dir)
            && e.kind() != ErrorKind::NotFound
        {
            debug!(dir = %dir.display(), error = %e, "left-over archives stay");
        }
        Self {
            peers,
            cri,
            dir,
            holders,
            turns: Mutex::default(),
        }
    }

    fn turn(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        turns.insert(name.to_owned(), Arc::downgrade(&turn));
        turn
    }

    async fn fetch_from(&self, peer: &str, name: &str) -> Result<u64, PeerError> {
        let mut answer = self.peers.fetch_image(peer, name).await?;
        let bytes = answer.bytes;
        let local = |problem: String| PeerError::Local(format!("image {name}: {problem}"));
        if bytes > MAX_IMAGE {
            return Err(local(format!("{bytes} bytes are too many")));
        }
        std::fs::create_dir_all(&self.dir)
            .map_err(|e| local(format!("{}: {e}", self.dir.display())))?;
        // The archive and what containerd makes of it.
        let room = crate::telemetry::free(&self.dir).unwrap_or(u64::MAX);
        if room < bytes.saturating_mul(2).saturating_add(SPARE) {
            let dir = self.dir.display();
            return Err(local(format!("{dir} has room for {room} bytes only")));
        }
        let archive = Archive(self.dir.join(format!("{:016x}.tar", rand::random::<u64>())));
        let io = |e: std::io::Error| local(format!("{}: {e}", archive.0.display()));
        let mut file = tokio::fs::File::create(&archive.0).await.map_err(io)?;
        while let Some(piece) = answer.piece().await? {
            file.write_all(&piece).await.map_err(io)?;
        }
        file.flush().await.map_err(io)?;
        drop(file);
        import_image(self.cri.clone(), archive.0.clone(), name.to_owned())
            .await
            .map_err(|e| PeerError::Lost {
                peer: peer.to_owned(),
                problem: e.to_string(),
            })?;
        Ok(bytes)
    }
}

#[tonic::async_trait]
impl ImageSource for PeerImages {
    async fn fetch(&self, image: &str) -> Result<(), String> {
        let name = full_name(image);
        let _turn = self.turn(&name).lock_owned().await;
        // Somebody else's turn may have brought it.
        if self.cri.image_present(&name).await.unwrap_or(false) {
            return Ok(());
        }
        let mut why = "no node of the site has it".to_owned();
        for peer in (self.holders)(&name).iter().take(ASKED) {
            match self.fetch_from(peer, &name).await {
                Ok(bytes) => {
                    info!(image = %name, %peer, bytes, "image came from a peer");
                    return Ok(());
                }
                Err(e) => why = e.to_string(),
            }
        }
        Err(why)
    }
}

/// A file that goes with its owner, also where the owner's task is dropped.
struct Archive(PathBuf);

impl Drop for Archive {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
