//! Servers as they are.

use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperion_proto::domain::{Bundle, BundleKind};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::bring::{Failure, Patience, bring};

const PATIENCE: Patience = Patience {
    silence: Duration::from_secs(5),
    first: Duration::from_millis(1),
    longest: Duration::from_millis(4),
    give_up: Duration::from_millis(200),
};

fn content() -> Vec<u8> {
    (0..200_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect()
}

/// Answers each request with what the function makes of its head; notes the heads.
struct Server {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answer: impl Fn(usize, &str) -> Vec<u8> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let noted = heads.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8(head).unwrap();
                let n = noted.lock().unwrap().len();
                noted.lock().unwrap().push(head.clone());
                // The connection ends after it: a length that is not reached is a cut.
                let _ = stream.write_all(&answer(n, &head)).await;
            }
        });
        Self { port, heads }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/b.swu?x=1", self.port)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn whole(bytes: &[u8], sent: usize) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len());
    [head.as_bytes(), &bytes[..sent]].concat()
}

/// From what the request asks for on, at most so many bytes.
fn part(bytes: &[u8], head: &str, sent: usize) -> Vec<u8> {
    let from = head
        .lines()
        .find_map(|l| l.strip_prefix("range: bytes=")?.strip_suffix('-'));
    let Some(from) = from.map(|n| n.parse::<usize>().unwrap()) else {
        return whole(bytes, sent.min(bytes.len()));
    };
    let rest = &bytes[from..];
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{}\r\n\r\n",
        rest.len(),
        bytes.len() - 1,
        bytes.len()
    );
    [head.as_bytes(), &rest[..sent.min(rest.len())]].concat()
}

fn status(line: &str) -> Vec<u8> {
    format!("HTTP/1.1 {line}\r\ncontent-length: 0\r\n\r\n").into_bytes()
}

fn bundle(url: &str) -> Bundle {
    let content = content();
    Bundle {
        url: url.to_owned(),
        sha256: Some(Sha256::digest(&content).into()),
        size_bytes: Some(content.len() as u64),
        version: "2.0.0".to_owned(),
        kind: BundleKind::System,
    }
}

async fn brought(bundle: &Bundle, folder: &Path) -> Result<Vec<u8>, Failure> {
    let percent = AtomicU32::new(0);
    let brought = bring(bundle, "u1", folder, &percent, PATIENCE).await?;
    Ok(std::fs::read(brought).unwrap())
}

#[tokio::test]
async fn a_download_goes_on_where_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|n, head| match n {
        2 => status("503 Busy"),
        _ => part(&content(), head, 60_000),
    })
    .await;
    let got = brought(&bundle(&server.url()), folder.path())
        .await
        .unwrap();
    assert!(got == content());
    let ranges: Vec<_> = server
        .heads()
        .iter()
        .map(|h| {
            h.lines()
                .find(|l| l.starts_with("range"))
                .unwrap_or("none")
                .to_owned()
        })
        .collect();
    assert_eq!(
        ranges,
        [
            "none",
            "range: bytes=60000-",
            "range: bytes=120000-",
            "range: bytes=120000-",
            "range: bytes=180000-"
        ]
    );
    assert!(server.heads()[0].starts_with("GET /b.swu?x=1 "));
    // It is here now: a restart does not bring it again.
    brought(&bundle(&server.url()), folder.path())
        .await
        .unwrap();
    assert_eq!(server.heads().len(), 5);
}

#[tokio::test]
async fn a_restart_of_the_agent_goes_on_too() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("u1.part"), &content()[..150_000]).unwrap();
    let server = Server::start(|_, head| part(&content(), head, usize::MAX)).await;
    let got = brought(&bundle(&server.url()), folder.path())
        .await
        .unwrap();
    assert!(got == content());
    assert!(server.heads()[0].contains("bytes=150000-"));
}

#[tokio::test]
async fn a_server_without_parts_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|n, _| whole(&content(), if n == 0 { 1000 } else { 200_000 })).await;
    let got = brought(&bundle(&server.url()), folder.path())
        .await
        .unwrap();
    assert!(got == content());
}

#[tokio::test]
async fn a_file_that_changed_at_the_server_is_brought_from_the_beginning() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("u1.part"), vec![1; 150_000]).unwrap();
    let server = Server::start(|_, head| part(&content(), head, usize::MAX)).await;
    let got = brought(&bundle(&server.url()), folder.path())
        .await
        .unwrap();
    assert!(got == content());
    assert_eq!(server.heads().len(), 2);
    // What lies there is longer than the bundle, or all of it.
    for there in [vec![1; 300_000], content()] {
        std::fs::remove_file(folder.path().join("u1.swu")).unwrap();
        std::fs::write(folder.path().join("u1.part"), there).unwrap();
        let got = brought(&bundle(&server.url()), folder.path())
            .await
            .unwrap();
        assert!(got == content());
    }
}

#[tokio::test]
async fn what_can_t_be_had_has_a_reason() {
    let other = || {
        let mut bytes = content();
        bytes[7] ^= 1;
        bytes
    };
    type Answer = Box<dyn Fn(usize, &str) -> Vec<u8> + Send>;
    let cases: Vec<(&str, Answer)> = vec![
        ("NotFound", Box::new(|_, _| status("404 Not Found"))),
        ("NotFound", Box::new(|_, _| status("403 Forbidden"))),
        (
            "NotFound",
            Box::new(|_, _| status("302 Found\r\nlocation: ftp://a.example/")),
        ),
        ("NotFound", Box::new(|_, _| status("302 Found"))),
        (
            "NotFound",
            Box::new(|_, _| status("301 Moved\r\nlocation: /round")),
        ),
        (
            "HashMismatch",
            Box::new(move |_, _| whole(&other(), 200_000)),
        ),
        (
            "SizeMismatch",
            Box::new(|_, _| [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![0; 200_001]].concat()),
        ),
        ("DownloadFailed", Box::new(|_, _| status("500 Oh"))),
        ("DownloadFailed", Box::new(|_, _| b"SSH-2.0-x\r\n".to_vec())),
        ("DownloadFailed", Box::new(|_, _| Vec::new())),
    ];
    for (reason, answer) in cases {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(answer).await;
        let failure = brought(&bundle(&server.url()), folder.path())
            .await
            .unwrap_err();
        assert_eq!(failure.reason, reason, "{failure:?}");
        assert!(!folder.path().join("u1.swu").exists());
    }
    let folder = tempfile::tempdir().unwrap();
    for url in [
        "http://",
        "http://127.0.0.1:99999/",
        "file:///nowhere/b.swu",
    ] {
        let failure = brought(&bundle(url), folder.path()).await.unwrap_err();
        assert!(
            ["NotFound", "BundleMissing"].contains(&failure.reason),
            "{failure:?}"
        );
    }
    // Nobody listens there.
    let failure = brought(&bundle("http://127.0.0.1:1/b"), folder.path())
        .await
        .unwrap_err();
    assert_eq!(failure.reason, "DownloadFailed");
}

#[tokio::test]
async fn a_bundle_for_which_there_is_no_room_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|_, _| whole(&content(), 200_000)).await;
    let large = Bundle {
        size_bytes: Some(1 << 60),
        sha256: None,
        ..bundle(&server.url())
    };
    let failure = brought(&large, folder.path()).await.unwrap_err();
    assert_eq!(failure.reason, "NoSpace");
    assert!(!folder.path().join("u1.part").exists());
}

#[tokio::test]
async fn a_server_may_send_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|n, head| match n {
        0 => status("307 Temporary Redirect\r\nlocation: /there"),
        _ => part(&content(), head, usize::MAX),
    })
    .await;
    brought(&bundle(&server.url()), folder.path())
        .await
        .unwrap();
    assert!(server.heads()[1].starts_with("GET /there "));
}

#[tokio::test]
async fn a_file_on_the_device_stays_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stick.swu");
    std::fs::write(&file, content()).unwrap();
    let url = format!("file://{}", file.display());
    let got = brought(&bundle(&url), &folder.path().join("update"))
        .await
        .unwrap();
    assert!(got == content() && file.exists());
    std::fs::write(&file, b"another").unwrap();
    let failure = brought(&bundle(&url), folder.path()).await.unwrap_err();
    assert_eq!(failure.reason, "SizeMismatch");
}
