//! What a replica's container wrote in a workload cluster, through the cluster's API server.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use futures::future::BoxFuture;
use futures::io::AsyncBufRead;
use futures::stream::{BoxStream, StreamExt};
use futures::{AsyncReadExt, FutureExt};
use hyperion_gateway::{LogError, LogRequest};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, LogParams};

use super::Clusters;
use super::connect;
use super::pod::pod_name;

/// Time for the API server to begin its answer: it asks a kubelet.
const WITHIN: Duration = Duration::from_secs(10);
/// Most that is read at once, bytes.
const CHUNK: usize = 16 * 1024;
/// A log that breaks off after nothing was written for so long is taken up again: connections on which
/// nothing comes are ended by clients, balancers and API servers.
const QUIET: Duration = Duration::from_secs(60);
/// Names the container that people mean, where a Pod has it.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Why there are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoLogs {
    /// The Pod, its container or their log is not there, or not yet.
    #[error("{0}")]
    Missing(String),
    /// The cluster is out of reach, or does not answer.
    #[error("{0}")]
    Unreachable(String),
    /// The cluster refuses.
    #[error("{0}")]
    Refused(String),
}

/// Output of a container, as it comes.
pub type Chunks = BoxStream<'static, Result<Bytes, LogError>>;

type Reader = std::pin::Pin<Box<dyn AsyncBufRead + Send>>;

/// The log of a Pod.
#[derive(Clone)]
struct Source {
    pods: Api<Pod>,
    /// `NAMESPACE/NAME`, and the cluster's name.
    about: String,
    name: String,
    params: LogParams,
}

/// Begins to read what a replica by the decision of this generation writes.
///
/// # Errors
/// In words that name cluster, Pod and container.
pub async fn open(
    clusters: &Clusters,
    cluster: &str,
    request: &LogRequest,
    generation: u64,
) -> Result<Chunks, NoLogs> {
    let client = clusters.client(cluster).map_err(NoLogs::Unreachable)?;
    let name = pod_name(&request.key, generation);
    let about = format!("{}/{name} in cluster {cluster}", request.key.namespace);
    let pods: Api<Pod> = Api::namespaced(client, &request.key.namespace);
    let container = match request.container.as_str() {
        "" => first(&pods, &name, &about).await?,
        named => Some(named.to_owned()),
    };
    let tail = i64::from(request.tail_lines);
    let source = Source {
        pods,
        about,
        name,
        params: LogParams {
            container,
            follow: request.follow,
            tail_lines: (tail > 0).then_some(tail),
            ..LogParams::default()
        },
    };
    let reader = source.read().await?;
    Ok(source.chunks(reader))
}

/// The container that is meant where none is named.
async fn first(pods: &Api<Pod>, name: &str, about: &str) -> Result<Option<String>, NoLogs> {
    let pod = match tokio::time::timeout(WITHIN, pods.get(name)).await {
        Ok(Ok(pod)) => pod,
        Ok(Err(e)) => return Err(why(about, "get pods", &e)),
        Err(_) => return Err(late(about)),
    };
    let meant = pod.annotations().get(DEFAULT_CONTAINER).cloned();
    let all = pod.spec.map(|s| s.containers).unwrap_or_default();
    let known = meant.filter(|name| all.iter().any(|c| &c.name == name));
    Ok(known.or_else(|| all.into_iter().next().map(|c| c.name)))
}

fn late(about: &str) -> NoLogs {
    NoLogs::Unreachable(format!("log of {about}: no answer within {WITHIN:?}"))
}

fn why(about: &str, right: &str, error: &kube::Error) -> NoLogs {
    let text = format!("log of {about}: {}", connect::plain(error));
    match error {
        kube::Error::Api(status) => match status.code {
            401 | 403 => NoLogs::Refused(format!("{text} (the right to {right} is missing there)")),
            // A container that has not started, or is not there, is a bad request.
            400 | 404 => NoLogs::Missing(text),
            _ => NoLogs::Unreachable(text),
        },
        _ => NoLogs::Unreachable(text),
    }
}

impl Source {
    fn read(&self) -> BoxFuture<'static, Result<Reader, NoLogs>> {
        let source = self.clone();
        async move {
            let stream = source.pods.log_stream(&source.name, &source.params);
            match tokio::time::timeout(WITHIN, stream).await {
                Ok(Ok(reader)) => Ok(Box::pin(reader) as Reader),
                Ok(Err(e)) => Err(why(&source.about, "get pods/log", &e)),
                Err(_) => Err(late(&source.about)),
            }
        }
        .boxed()
    }

    /// The same, with what was written in the last `quiet`.
    fn again(&self, quiet: Duration) -> BoxFuture<'static, Result<Reader, NoLogs>> {
        let mut source = self.clone();
        source.params.tail_lines = None;
        // Not more than that: what was written before was read.
        let seconds = i64::try_from(quiet.as_secs()).unwrap_or(i64::MAX);
        source.params.since_seconds = Some(seconds.saturating_sub(1).max(1));
        source.read()
    }

    fn chunks(self, reader: Reader) -> Chunks {
        let begin = (self, Some(reader), Instant::now());
        let next = |(source, reader, mut heard): (Self, Option<Reader>, Instant)| async move {
            let mut reader: Reader = reader?;
            let mut buffer = vec![0; CHUNK];
            loop {
                let error = match reader.read(&mut buffer).await {
                    Ok(0) => return None,
                    Ok(count) => {
                        buffer.truncate(count);
                        let chunk = Ok(Bytes::from(buffer));
                        return Some((chunk, (source, Some(reader), Instant::now())));
                    }
                    Err(e) => e.to_string(),
                };
                let quiet = heard.elapsed();
                let error = if source.params.follow && quiet >= QUIET {
                    match source.again(quiet).await {
                        Ok(fresh) => {
                            (reader, heard) = (fresh, Instant::now());
                            continue;
                        }
                        Err(no) => no.to_string(),
                    }
                } else {
                    format!("log of {} broke off: {error}", source.about)
                };
                return Some((Err(LogError::Node(error)), (source, None, heard)));
            }
        };
        futures::stream::unfold(begin, next).boxed()
    }
}

#[cfg(test)]
mod tests;
