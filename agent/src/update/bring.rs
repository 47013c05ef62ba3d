//! Brings a bundle: from a server, going on where a cut left it, or from a file that is here.
//!
//! What is trusted is the bundle's signature, which root's part verifies; the hash is a first look
//! that finds a damaged or exchanged file sooner.

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HOST, LOCATION, RANGE};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use hyperion_proto::domain::Bundle;
use rand::RngExt;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::{debug, info};

/// Bytes that are left free for the store and the system.
const MARGIN: u64 = 32 << 20;
/// Servers that a request may be sent on to.
const REDIRECTS: usize = 5;

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection, and for each piece of an answer.
    pub silence: Duration,
    /// Before the first new attempt; each later one waits twice as long.
    pub first: Duration,
    /// At most between two attempts.
    pub longest: Duration,
    /// Without a byte more, before the bundle is given up.
    pub give_up: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            first: Duration::from_secs(1),
            longest: Duration::from_secs(60),
            give_up: Duration::from_secs(30 * 60),
        }
    }
}

/// Why a bundle can't be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// CamelCase, stable.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Failure {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    fn disk(e: &std::io::Error, path: &Path) -> Self {
        let reason = match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "NoSpace",
            _ => "DiskFailed",
        };
        Self::new(reason, format!("{}: {e}", path.display()))
    }
}

/// Why an attempt ended.
enum Ended {
    /// The next may do better.
    Cut(String),
    /// It would be the same again.
    For(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::For(failure)
    }
}

/// Where a bundle lies once it is brought.
#[must_use]
pub fn place(url: &str, id: &str, folder: &Path) -> PathBuf {
    match url.strip_prefix("file://") {
        Some(path) => PathBuf::from(path),
        None => folder.join(format!("{id}.swu")),
    }
}

/// Brings a bundle into `folder`, and says where it is; `percent` follows. Goes on with what an earlier call left there.
///
/// # Errors
/// When trying again would not help, or has not helped for long.
pub async fn bring(
    bundle: &Bundle,
    id: &str,
    folder: &Path,
    percent: &AtomicU32,
    patience: Patience,
) -> Result<PathBuf, Failure> {
    let path = place(&bundle.url, id, folder);
    if bundle.url.starts_with("file://") {
        if !path.is_file() {
            let message = format!("{}: no such file", path.display());
            return Err(Failure::new("BundleMissing", message));
        }
        verify(bundle, &path).await?;
        return Ok(path);
    }
    if path.is_file() {
        // It was there before the device restarted.
        match verify(bundle, &path).await {
            Ok(()) => return Ok(path),
            Err(failure) => debug!(message = %failure.message, "brought once more"),
        }
    }
    let part = path.with_extension("part");
    std::fs::create_dir_all(folder).map_err(|e| Failure::disk(&e, folder))?;
    let mut again = true;
    loop {
        let whole = length(&part) == 0;
        download(bundle, &part, percent, patience).await?;
        match verify(bundle, &part).await {
            Ok(()) => break,
            Err(failure) => {
                let _ = std::fs::remove_file(&part);
                // Of two files: the server has another one since the cut. Once from the beginning.
                if whole || !std::mem::take(&mut again) {
                    return Err(failure);
                }
                info!("the bundle does not fit what was there of it; brought from the beginning");
            }
        }
    }
    // Its name too is on disk before anything is built on it: the power may go.
    std::fs::rename(&part, &path)
        .and_then(|()| std::fs::File::open(folder)?.sync_all())
        .map_err(|e| Failure::disk(&e, &path))?;
    Ok(path)
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// Compares size and hash, where they are known.
async fn verify(bundle: &Bundle, path: &Path) -> Result<(), Failure> {
    let found = length(path);
    if let Some(size) = bundle.size_bytes
        && found != size
    {
        let message = format!("{found} bytes, and not {size}");
        return Err(Failure::new("SizeMismatch", message));
    }
    let Some(wanted) = bundle.sha256 else {
        return Ok(());
    };
    let file = path.to_owned();
    let hash = tokio::task::spawn_blocking(move || hash_of(&file)).await;
    let hash = hash
        .map_err(|e| Failure::new("DiskFailed", e.to_string()))?
        .map_err(|e| Failure::disk(&e, path))?;
    if hash == wanted {
        Ok(())
    } else {
        Err(Failure::new(
            "HashMismatch",
            "not the bundle that was ordered",
        ))
    }
}

fn hash_of(path: &Path) -> std::io::Result<[u8; 32]> {
    let mut file = std::fs::File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 256 * 1024];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&piece[..n]),
        }
    }
}

/// Downloads until the file is whole.
async fn download(
    bundle: &Bundle,
    part: &Path,
    percent: &AtomicU32,
    patience: Patience,
) -> Result<(), Failure> {
    let mut wait = patience.first;
    let mut had = length(part);
    let mut since = Instant::now();
    loop {
        let why = match attempt(bundle, part, percent, patience.silence).await {
            Ok(()) => return Ok(()),
            Err(Ended::For(failure)) => return Err(failure),
            Err(Ended::Cut(why)) => why,
        };
        let have = length(part);
        if have > had {
            (had, since, wait) = (have, Instant::now(), patience.first);
        }
        if since.elapsed() >= patience.give_up {
            return Err(Failure::new("DownloadFailed", why));
        }
        debug!(%why, bytes = have, "the download was cut");
        // Devices that were cut off together do not come back together.
        let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::time::sleep(jittered).await;
        wait = (wait * 2).min(patience.longest);
    }
}

async fn attempt(
    bundle: &Bundle,
    part: &Path,
    percent: &AtomicU32,
    silence: Duration,
) -> Result<(), Ended> {
    let mut have = length(part);
    if bundle.size_bytes.is_some_and(|size| have > size) {
        have = 0;
    }
    let mut answer = ask(&bundle.url, have, silence).await?;
    match answer.status() {
        StatusCode::PARTIAL_CONTENT if starts_at(&answer) == Some(have) => {}
        // From the beginning, as the server does not do parts.
        StatusCode::OK => have = 0,
        StatusCode::RANGE_NOT_SATISFIABLE if bundle.size_bytes == Some(have) => return Ok(()),
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PARTIAL_CONTENT => {
            let _ = std::fs::remove_file(part);
            return Err(Ended::Cut("the server has another file".to_owned()));
        }
        status if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) => {
            return Err(Ended::Cut(format!("status {status}")));
        }
        status => return Err(Failure::new("NotFound", format!("status {status}")).into()),
    }
    let rest = answer.headers().get(CONTENT_LENGTH);
    let rest: Option<u64> = rest.and_then(|v| v.to_str().ok()?.parse().ok());
    let size = bundle.size_bytes.or(rest.map(|rest| rest + have));
    room(part, size.unwrap_or(0).saturating_sub(have))?;
    let disk = |e: std::io::Error| Ended::For(Failure::disk(&e, part));
    let mut file = tokio::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(part)
        .await
        .map_err(disk)?;
    file.set_len(have).await.map_err(disk)?;
    tokio::io::AsyncSeekExt::seek(&mut file, std::io::SeekFrom::Start(have))
        .await
        .map_err(disk)?;
    let ended = loop {
        let frame = match tokio::time::timeout(silence, answer.body_mut().frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => break None,
            Ok(Some(Err(e))) => break Some(e.to_string()),
            Err(_) => break Some(format!("nothing came for {silence:?}")),
        };
        let Ok(bytes) = frame.into_data() else {
            continue;
        };
        file.write_all(&bytes).await.map_err(disk)?;
        have += bytes.len() as u64;
        if let Some(size) = size.filter(|size| *size > 0) {
            if have > size {
                let message = format!("more than the {size} bytes that were told");
                return Err(Failure::new("SizeMismatch", message).into());
            }
            let now = u32::try_from(have * 100 / size).unwrap_or(100);
            percent.store(now, Ordering::Relaxed);
        }
    };
    file.flush().await.map_err(disk)?;
    file.sync_all().await.map_err(disk)?;
    match ended {
        Some(why) => Err(Ended::Cut(why)),
        None if size.is_some_and(|size| have < size) => {
            Err(Ended::Cut(format!("ended after {have} bytes")))
        }
        None => Ok(()),
    }
}

/// Where a part begins: of `bytes 100-199/200`.
fn starts_at(answer: &Response<Incoming>) -> Option<u64> {
    let range = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}

/// Whether the disk has room for so many bytes more.
fn room(part: &Path, more: u64) -> Result<(), Failure> {
    let Some(free) = crate::telemetry::free(part.parent().unwrap_or(part)) else {
        return Ok(());
    };
    if more.saturating_add(MARGIN) <= free {
        return Ok(());
    }
    let message = format!("{more} bytes are to come, {free} are free, {MARGIN} are kept free");
    Err(Failure::new("NoSpace", message))
}

/// One request, sent on where the server says so.
async fn ask(url: &str, from: u64, silence: Duration) -> Result<Response<Incoming>, Ended> {
    let mut url = url.to_owned();
    for _ in 0..=REDIRECTS {
        let answer = tokio::time::timeout(silence, once(&url, from))
            .await
            .map_err(|_| Ended::Cut(format!("no answer in {silence:?}")))??;
        if !answer.status().is_redirection() {
            return Ok(answer);
        }
        let next = answer.headers().get(LOCATION);
        let next = next.and_then(|v| v.to_str().ok()).unwrap_or_default();
        url = sent_on(&url, next)?;
    }
    Err(Failure::new("NotFound", format!("sent on more than {REDIRECTS} times")).into())
}

/// The next address; never one with less protection.
fn sent_on(from: &str, to: &str) -> Result<String, Failure> {
    let bad = || Failure::new("NotFound", format!("sent on to {to:?}"));
    if to.starts_with('/') && !to.starts_with("//") {
        let base: Uri = from.parse().map_err(|_| bad())?;
        let (scheme, authority) = base.scheme_str().zip(base.authority()).ok_or_else(bad)?;
        return Ok(format!("{scheme}://{authority}{to}"));
    }
    let protected = from.starts_with("https://");
    if to.starts_with("https://") || (to.starts_with("http://") && !protected) {
        Ok(to.to_owned())
    } else {
        Err(bad())
    }
}

async fn once(url: &str, from: u64) -> Result<Response<Incoming>, Ended> {
    let bad = |what: String| Ended::For(Failure::new("NotFound", format!("{url}: {what}")));
    let uri: Uri = url.parse().map_err(|e| bad(format!("{e}")))?;
    let (named, tls) = match (uri.host(), uri.scheme_str()) {
        (Some(host), Some("http")) => (host, false),
        (Some(host), Some("https")) => (host, true),
        _ => return Err(bad("neither http nor https".to_owned())),
    };
    let authority = uri
        .authority()
        .map_or("", hyper::http::uri::Authority::as_str);
    // A user's name and password are not sent: bundles are no secrets.
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let port = match (uri.port_u16(), authority.ends_with(named)) {
        (Some(port), _) => port,
        (None, true) if tls => 443,
        (None, true) => 80,
        (None, false) => return Err(bad("not a port".to_owned())),
    };
    let host = named.trim_start_matches('[').trim_end_matches(']');
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header(HOST, authority);
    if from > 0 {
        request = request.header(RANGE, format!("bytes={from}-"));
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| bad(e.to_string()))?;
    let cut = |e: std::io::Error| Ended::Cut(format!("{host}:{port}: {e}"));
    let broken = |e: hyper::Error| Ended::Cut(e.to_string());
    let stream = TcpStream::connect((host, port)).await.map_err(cut)?;
    if !tls {
        return send(stream, request).await.map_err(broken);
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|e| bad(e.to_string()))?;
    let stream = TlsConnector::from(tls_config()?)
        .connect(name, stream)
        .await
        .map_err(cut)?;
    send(stream, request).await.map_err(broken)
}

/// Trusts whom this system trusts.
fn tls_config() -> Result<Arc<ClientConfig>, Ended> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (known, _) = roots.add_parsable_certificates(found.certs);
    if known == 0 {
        let message = "this system trusts no certificate authority";
        return Err(Failure::new("DownloadFailed", message).into());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::new("DownloadFailed", e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// One request on a connection of its own.
pub(super) async fn send<S, B>(stream: S, request: Request<B>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: hyper::body::Body<Data: Send, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer's body.
    tokio::spawn(async move {
        if let Err(e) = connection.await {
            debug!(error = %e, "connection ended");
        }
    });
    sender.send_request(request).await
}
