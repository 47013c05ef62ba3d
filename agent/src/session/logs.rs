//! Logs by command: one task per request, at the pace of the link.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hyperion_link::{LinkSender, SendError};
use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{FetchLogs, LogChunk, StreamMessage};
use hyperion_proto::convert;
use tokio_util::sync::CancellationToken;

use crate::supervisor::LogQuery;
use crate::workloads::Workloads;

/// Requests at a time; one more is refused.
const REQUESTS: usize = 16;
/// Largest chunk, bytes: the link's queue may be full of them.
const CHUNK: usize = 8 * 1024;
/// Wait while the link's queue is full. Telemetry and reports share it, and a request that fills
/// it takes its turn behind them.
const PAUSE: Duration = Duration::from_millis(20);
/// Messages that logs leave room for in the link's queue.
const ROOM: usize = 192;

/// The requests in progress.
#[derive(Default)]
pub struct LogRequests {
    running: HashMap<u64, CancellationToken>,
}

impl LogRequests {
    /// Starts or cancels a request.
    pub fn handle(&mut self, fetch: &FetchLogs, workloads: &impl Workloads, link: &LinkSender) {
        if fetch.cancel {
            if let Some(running) = self.running.remove(&fetch.request_id) {
                running.cancel();
            }
            return;
        }
        self.running.retain(|_, running| !running.is_cancelled());
        let refuse = |error: String| {
            let _ = link.try_send(chunk(fetch.request_id, Bytes::new(), true, error));
        };
        if self.running.len() >= REQUESTS || self.running.contains_key(&fetch.request_id) {
            return refuse(format!(
                "fetch_logs.request_id: {} is running or {REQUESTS} others are",
                fetch.request_id
            ));
        }
        let key = match convert::replica_key("fetch_logs.key", fetch.key.as_ref()) {
            Ok(key) => key,
            Err(e) => return refuse(e.to_string()),
        };
        let stream = workloads.logs(LogQuery {
            key,
            container: fetch.container.clone(),
            tail_lines: fetch.tail_lines,
            follow: fetch.follow,
        });
        let done = CancellationToken::new();
        self.running.insert(fetch.request_id, done.clone());
        let (id, link) = (fetch.request_id, link.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = send_all(id, stream, &link) => {}
                () = done.cancelled() => {}
            }
            done.cancel();
        });
    }

    /// Ends all: the connection that asked is gone.
    pub fn clear(&mut self) {
        for (_, running) in self.running.drain() {
            running.cancel();
        }
    }
}

async fn send_all<E: std::fmt::Display>(
    id: u64,
    mut stream: impl futures::Stream<Item = Result<Bytes, E>> + Unpin,
    link: &LinkSender,
) {
    let mut error = String::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(mut data) => {
                while !data.is_empty() {
                    let part = data.split_to(CHUNK.min(data.len()));
                    if !send(chunk(id, part, false, String::new()), link).await {
                        return;
                    }
                }
            }
            Err(e) => {
                error = e.to_string();
                break;
            }
        }
    }
    send(chunk(id, Bytes::new(), true, error), link).await;
}

/// Waits until the link takes the message; false where the connection is gone.
async fn send(mut message: StreamMessage, link: &LinkSender) -> bool {
    loop {
        // Without a connection there is no room either; then the attempt tells.
        if (1..ROOM).contains(&link.room()) {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        match link.try_send(message) {
            Ok(()) => return true,
            Err(SendError::Full(back)) => {
                message = *back;
                tokio::time::sleep(PAUSE).await;
            }
            Err(SendError::NotConnected(_)) => return false,
        }
    }
}

fn chunk(request_id: u64, data: Bytes, end: bool, error: String) -> StreamMessage {
    StreamMessage {
        body: Some(Body::LogChunk(LogChunk {
            request_id,
            data: data.into(),
            end,
            error,
        })),
    }
}
