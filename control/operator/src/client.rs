//! The client of the Kubernetes API, and the count of its requests.

use std::path::Path;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyperion_embedded::Embedded;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tower::{Layer, Service};

/// Watches end by themselves before that; nothing else takes this long.
const ANSWER: Duration = Duration::from_secs(330);

/// Labels of `hyperion_operator_api_requests_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    method: String,
    /// HTTP status, or `error` where there was no answer.
    code: String,
}

/// Requests to the API server, by method and outcome. A watch counts once, when it opens.
pub type Requests = Family<Labels, Counter>;

/// A client of the embedded API where there is one, else of the kubeconfig's, else of the cluster
/// that this process runs in. Its requests are counted.
///
/// # Errors
/// The kubeconfig can't be read, or there is no cluster.
pub async fn connect(
    api: Option<&Embedded>,
    kubeconfig: Option<&Path>,
    requests: &Requests,
) -> anyhow::Result<kube::Client> {
    let read = match (api, kubeconfig) {
        (Some(api), _) => Some(
            Kubeconfig::from_yaml(&api.kubeconfig_yaml())
                .context("the embedded API's kubeconfig")?,
        ),
        (None, Some(path)) => Some(
            Kubeconfig::read_from(path)
                .with_context(|| format!("kubeconfig {}", path.display()))?,
        ),
        (None, None) => None,
    };
    let mut config = match read {
        Some(read) => kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
            .await
            .context("kubeconfig")?,
        None => kube::Config::incluster()
            .context("not in a cluster: give --kubeconfig FILE, or --embedded --data-dir DIR")?,
    };
    config.read_timeout = Some(ANSWER);
    let builder = ClientBuilder::try_from(config).context("Kubernetes client")?;
    Ok(builder.with_layer(&Count(requests.clone())).build())
}

/// Counts the requests of a service.
struct Count(Requests);

impl<S> Layer<S> for Count {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            requests: self.0.clone(),
        }
    }
}

#[derive(Clone)]
struct Counted<S> {
    inner: S,
    requests: Requests,
}

impl<S, A, B> Service<Request<A>> for Counted<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let method = request.method().to_string();
        let answer = self.inner.call(request);
        let requests = self.requests.clone();
        Box::pin(async move {
            let answer = answer.await;
            let code = match &answer {
                Ok(response) => response.status().as_str().to_owned(),
                Err(_) => "error".to_owned(),
            };
            requests.get_or_create(&Labels { method, code }).inc();
            answer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_counted_by_method_and_outcome() {
        let requests = Requests::default();
        let mut service =
            Count(requests.clone()).layer(tower::service_fn(async |request: Request<u16>| {
                match *request.body() {
                    0 => Err("the line is down"),
                    code => Ok(Response::builder().status(code).body(()).unwrap()),
                }
            }));
        for (method, code) in [("GET", 200), ("GET", 200), ("PATCH", 409), ("GET", 0)] {
            let request = Request::builder().method(method).body(code).unwrap();
            let answer = service.call(request).await;
            assert_eq!(answer.is_ok(), code != 0);
        }
        let count = |method: &str, code: &str| {
            let (method, code) = (method.to_owned(), code.to_owned());
            requests.get_or_create(&Labels { method, code }).get()
        };
        assert_eq!(count("GET", "200"), 2);
        assert_eq!(count("PATCH", "409"), 1);
        assert_eq!(count("GET", "error"), 1);
    }
}
