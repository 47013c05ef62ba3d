//! What the control plane needs of a cluster: its CRDs, its namespace, and a Service through which
//! the API server's proxy reaches it.

use std::time::Duration;

use anyhow::{Context, bail};
use hyperion_api::{MANAGER, NAMESPACE};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tracing::{debug, info, warn};

use crate::endpoint::HTTP_SERVICE;

/// Time for a CRD to be served.
const ESTABLISHED: Duration = Duration::from_secs(30);
/// What our kinds are served as.
const GROUP_VERSION: &str = "hyperion.io/v1alpha1";
/// Time for the API server to answer for the first time.
const FIRST_ANSWER: Duration = Duration::from_secs(30);

/// Installs everything; safe to repeat, and with several control planes at once.
///
/// # Errors
/// The API server does not answer or refuses.
pub async fn install(client: &kube::Client, http_port: u16) -> anyhow::Result<()> {
    answers(client).await?;
    for crd in hyperion_api::crds() {
        let name = crd.name_any();
        self::crd(client, &crd)
            .await
            .with_context(|| format!("CustomResourceDefinition {name}"))?;
    }
    namespace(client)
        .await
        .with_context(|| format!("Namespace {NAMESPACE}"))?;
    if let Err(e) = service(client, http_port).await {
        // Only the console's live view and logs need it.
        warn!(error = %e, "cannot write Service {NAMESPACE}/{HTTP_SERVICE}");
    }
    info!("CRDs are installed");
    Ok(())
}

/// Waits until the API server serves the kinds that somebody else has installed; needs no rights but
/// those that everybody has.
///
/// # Errors
/// The API server does not answer, or a kind is not served: the sentence names it.
pub async fn installed(client: &kube::Client) -> anyhow::Result<()> {
    answers(client).await?;
    let deadline = tokio::time::Instant::now() + ESTABLISHED;
    loop {
        let missing = missing(client).await?;
        if missing.is_empty() {
            info!("CRDs are served");
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!(
                "the API server does not serve {}: install the chart's CRDs, or leave --install=false out",
                missing.join(", ")
            );
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Our kinds that are not served.
async fn missing(client: &kube::Client) -> anyhow::Result<Vec<String>> {
    let served = match client.list_api_group_resources(GROUP_VERSION).await {
        Ok(list) => list.resources,
        Err(kube::Error::Api(e)) if e.code == 404 => Vec::new(),
        Err(e) => return Err(e).context("discovery of hyperion.io"),
    };
    let crds = hyperion_api::crds();
    let names = crds.iter().map(|crd| crd.spec.names.plural.clone());
    Ok(names
        .filter(|name| !served.iter().any(|r| r.name == *name))
        .collect())
}

async fn answers(client: &kube::Client) -> anyhow::Result<()> {
    let deadline = tokio::time::Instant::now() + FIRST_ANSWER;
    loop {
        let error = match client.apiserver_version().await {
            Ok(version) => {
                debug!(version = version.git_version, "API server");
                return Ok(());
            }
            Err(e) => e,
        };
        let refused = matches!(&error, kube::Error::Api(s) if s.code == 401 || s.code == 403);
        if refused || tokio::time::Instant::now() > deadline {
            return Err(error).context("the API server of the kubeconfig does not answer");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn crd(client: &kube::Client, crd: &CustomResourceDefinition) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = crd.name_any();
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&name, &params, &Patch::Apply(crd)).await?;
    let deadline = tokio::time::Instant::now() + ESTABLISHED;
    loop {
        if established(&api.get(&name).await?) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            bail!("is not served after {ESTABLISHED:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_ == "Established" && c.status == "True")
}

async fn namespace(client: &kube::Client) -> Result<(), kube::Error> {
    let api: Api<Namespace> = Api::all(client.clone());
    if api.get_opt(NAMESPACE).await?.is_some() {
        return Ok(());
    }
    let object =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE } });
    let params = PatchParams::apply(MANAGER).force();
    api.patch(NAMESPACE, &params, &Patch::Apply(object))
        .await
        .map(drop)
}

async fn service(client: &kube::Client, http_port: u16) -> Result<(), kube::Error> {
    let api: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": HTTP_SERVICE, "namespace": NAMESPACE },
        "spec": {
            "selector": { "app": "hyperion-control" },
            "ports": [{ "name": "http", "port": http_port, "targetPort": http_port, "protocol": "TCP" }],
        },
    });
    let params = PatchParams::apply(MANAGER).force();
    api.patch(HTTP_SERVICE, &params, &Patch::Apply(object))
        .await
        .map(drop)
}
