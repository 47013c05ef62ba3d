//! A small HTTP server on loopback that says what a test wants, down to half an answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET /path?query`.
    pub line: String,
    /// Head lines, names in lower case.
    pub head: String,
    pub body: String,
}

/// An answer.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Status, head lines, body.
    Whole(u16, &'static str, String),
    /// Says that it is longer by this than it is, and hangs up.
    Half(String, usize),
    /// Says nothing, and does not hang up.
    Silence,
}

pub fn ok(body: impl Into<String>) -> Reply {
    Reply::Whole(200, "content-type: application/json\r\n", body.into())
}

type Answer = dyn Fn(&Asked, usize) -> Reply + Send + Sync;

/// Serves until it is dropped.
pub struct Server {
    pub url: String,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `answer` is given the request and how many came before. `{server}` in bodies becomes the
    /// server's address.
    pub async fn start(answer: impl Fn(&Asked, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Answer> = Arc::new(answer);
        let (log, own) = (asked.clone(), url.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, own, answer) = (log.clone(), own.clone(), answer.clone());
                tokio::spawn(async move { exchange(stream, &log, &own, &*answer).await });
            }
        });
        Self { url, asked, task }
    }

    /// Gives these answers in turn, the last again and again.
    pub async fn script(replies: impl IntoIterator<Item = Reply>) -> Self {
        let replies = Mutex::new(replies.into_iter().collect::<VecDeque<_>>());
        Self::start(move |_, _| {
            let mut replies = replies.lock().expect("no panic");
            if replies.len() > 1 {
                replies.pop_front().expect("more than one")
            } else {
                replies.front().expect("at least one").clone()
            }
        })
        .await
    }

    pub fn count(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }
}

async fn exchange(mut stream: TcpStream, log: &Mutex<Vec<Asked>>, own: &str, answer: &Answer) {
    let Some(asked) = read(&mut stream).await else {
        return;
    };
    let before = {
        let mut log = log.lock().expect("no panic");
        log.push(asked.clone());
        log.len() - 1
    };
    let (status, lines, body, more) = match answer(&asked, before) {
        Reply::Whole(status, lines, body) => (status, lines, body, 0),
        Reply::Half(body, more) => (200, "", body, more),
        Reply::Silence => {
            let _ = stream.read(&mut [0; 1]).await;
            return;
        }
    };
    let body = body.replace("{server}", own);
    let length = body.len() + more;
    let head = format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {length}\r\n{lines}\r\n"
    );
    // A client that has heard enough hangs up.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let (line, head) = head.split_once("\r\n")?;
            let head = head.to_ascii_lowercase();
            let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |l| l.trim().parse().unwrap_or(0));
            if body.len() >= length {
                return Some(Asked {
                    line: line.to_owned(),
                    head,
                    body: body.to_owned(),
                });
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}
