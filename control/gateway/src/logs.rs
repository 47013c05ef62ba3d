//! Logs on their way from a node to whoever asked.
//!
//! The session that brings a chunk never waits for its reader, or one stalled terminal would hold
//! up the node's reports. A reader may be behind by [`BEHIND`] bytes; after that its request ends
//! with an error that says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyperion_proto::agent_v1::LogChunk;
use tokio::sync::mpsc;

/// Bytes that may wait for a reader.
const BEHIND: usize = 32 << 20;
/// What a chunk costs beside its data, bytes.
const OVERHEAD: usize = 128;

struct Sink {
    node: String,
    chunks: mpsc::UnboundedSender<LogChunk>,
    waiting: Arc<AtomicUsize>,
}

/// The reader's end of a request.
pub struct LogChunks {
    chunks: mpsc::UnboundedReceiver<LogChunk>,
    waiting: Arc<AtomicUsize>,
}

impl LogChunks {
    /// Next chunk; none after the last.
    pub async fn next(&mut self) -> Option<LogChunk> {
        let chunk = self.chunks.recv().await?;
        self.waiting.fetch_sub(cost(&chunk), Ordering::Relaxed);
        Some(chunk)
    }
}

/// Open requests.
#[derive(Default)]
pub struct LogSinks {
    sinks: HashMap<u64, Sink>,
}

impl LogSinks {
    /// Opens a request to a node.
    pub fn open(&mut self, id: u64, node: &str) -> LogChunks {
        let (tx, chunks) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let sink = Sink {
            node: node.to_owned(),
            chunks: tx,
            waiting: waiting.clone(),
        };
        self.sinks.insert(id, sink);
        LogChunks { chunks, waiting }
    }

    /// Ends a request; false where it had ended.
    pub fn close(&mut self, id: u64) -> bool {
        self.sinks.remove(&id).is_some()
    }

    /// Takes a chunk from a node; false where the node need not send more of them.
    pub fn chunk(&mut self, node: &str, chunk: LogChunk) -> bool {
        let id = chunk.request_id;
        // Another node's request is none of this node's business.
        let Some(sink) = self.sinks.get(&id).filter(|s| s.node == node) else {
            return false;
        };
        let last = chunk.end || !chunk.error.is_empty();
        let cost = cost(&chunk);
        if sink.waiting.load(Ordering::Relaxed) + cost > BEHIND {
            sink.fail(
                id,
                "the reader does not keep up with the logs; ask for fewer lines",
            );
            self.close(id);
            return false;
        }
        sink.waiting.fetch_add(cost, Ordering::Relaxed);
        // A reader that went away has closed its request, or is about to.
        let heard = sink.chunks.send(chunk).is_ok();
        if last || !heard {
            self.close(id);
        }
        heard
    }

    /// Ends the requests to a node whose session ended.
    pub fn node_down(&mut self, node: &str) {
        self.sinks.retain(|id, sink| {
            if sink.node == node {
                sink.fail(*id, "the node went out of reach");
            }
            sink.node != node
        });
    }
}

impl Sink {
    fn fail(&self, request_id: u64, error: &str) {
        let chunk = LogChunk {
            request_id,
            error: error.to_owned(),
            ..Default::default()
        };
        self.waiting.fetch_add(cost(&chunk), Ordering::Relaxed);
        let _ = self.chunks.send(chunk);
    }
}

fn cost(chunk: &LogChunk) -> usize {
    chunk.data.len() + chunk.error.len() + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(id: u64, bytes: usize) -> LogChunk {
        LogChunk {
            request_id: id,
            data: vec![b'x'; bytes],
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn a_reader_that_does_not_keep_up_is_told_so() {
        let mut sinks = LogSinks::default();
        let mut reader = sinks.open(7, "a");
        while sinks.chunk("a", chunk(7, 1 << 20)) {}
        assert!(sinks.sinks.is_empty());
        let mut last = None;
        while let Some(chunk) = reader.next().await {
            last = Some(chunk);
        }
        assert!(last.unwrap().error.contains("does not keep up"));
    }

    #[tokio::test]
    async fn a_reader_that_keeps_up_may_read_any_amount() {
        let mut sinks = LogSinks::default();
        let mut reader = sinks.open(7, "a");
        for _ in 0..100 {
            assert!(sinks.chunk("a", chunk(7, 1 << 20)));
            assert_eq!(reader.next().await.unwrap().data.len(), 1 << 20);
        }
    }

    #[tokio::test]
    async fn a_node_cannot_write_into_the_logs_of_another() {
        let mut sinks = LogSinks::default();
        let mut reader = sinks.open(7, "a");
        assert!(!sinks.chunk("b", chunk(7, 1)));
        sinks.node_down("a");
        assert!(reader.next().await.unwrap().error.contains("out of reach"));
        assert!(reader.next().await.is_none());
    }
}
