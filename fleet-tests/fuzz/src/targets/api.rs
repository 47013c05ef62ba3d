//! Requests to a running embedded API: paths, selectors, patches, schemas, columns, the lot.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use http::Request;
use hyperion_embedded::{Embedded, EmbeddedConfig};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{agent, pki};
use crate::{Case, Outcome};

/// Time for an answer: a watch has no end.
const ANSWER: Duration = Duration::from_millis(500);

/// The input is a line with method, path and query, a line with headers' values for `Accept` and
/// `Content-Type`, separated by a bar, and the body.
pub struct ApiCase {
    runtime: Runtime,
    client: kube::Client,
    _embedded: Embedded,
    _folder: TempDir,
}

impl ApiCase {
    /// Starts the API and installs our kinds.
    ///
    /// # Errors
    /// It does not start.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = pki::runtime()?;
        let folder = agent::folder()?;
        let (client, embedded) = runtime.block_on(start(&folder))?;
        Ok(Self {
            runtime,
            client,
            _embedded: embedded,
            _folder: folder,
        })
    }
}

async fn start(folder: &TempDir) -> anyhow::Result<(kube::Client, Embedded)> {
    let config = EmbeddedConfig {
        data_dir: folder.path().to_owned(),
        api_addr: SocketAddr::from(([127, 0, 0, 1], 0)),
        kubeconfig_out: None,
        service_proxies: BTreeMap::new(),
    };
    let embedded = hyperion_embedded::start(config).await?;
    let kubeconfig = Kubeconfig::from_yaml(&embedded.kubeconfig_yaml())?;
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
    let client = kube::Client::try_from(config)?;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in hyperion_api::crd::crds() {
        let made = definitions
            .create(&PostParams::default(), &definition)
            .await;
        made.context("CustomResourceDefinition")?;
    }
    Ok((client, embedded))
}

async fn send(client: &kube::Client, input: &[u8]) -> Option<(u16, String)> {
    let mut lines = input.splitn(3, |b| *b == b'\n');
    let first = String::from_utf8_lossy(lines.next()?).into_owned();
    let types = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let body = lines.next().unwrap_or_default();
    let (method, uri) = first.split_once(' ')?;
    let (accept, content) = types.split_once('|').unwrap_or((&types, ""));
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in [("accept", accept), ("content-type", content)] {
        if !value.is_empty() {
            request = request.header(name, value);
        }
    }
    let request = request.body(Body::from(body.to_vec())).ok()?;
    // Another host would leave this machine.
    if request.uri().authority().is_some() || !request.uri().path().starts_with('/') {
        return None;
    }
    let answer = async {
        let response = client.send(request).await.ok()?;
        let status = response.status().as_u16();
        let read = response.into_body().collect_bytes();
        let body = tokio::time::timeout(Duration::from_millis(30), read).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        let text = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
        let words = format!("{} {}", text["reason"], text["message"]);
        Some((status, words))
    };
    tokio::time::timeout(ANSWER, answer).await.ok().flatten()
}

const WORKLOADS: &str = "/apis/hyperion.io/v1alpha1/namespaces/default/hyperionworkloads";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

impl Case for ApiCase {
    fn seeds(&self) -> Vec<Vec<u8>> {
        let workload = r#"{"apiVersion":"hyperion.io/v1alpha1","kind":"HyperionWorkload","metadata":{"name":"w","labels":{"a":"b"}},"spec":{"replicas":1,"template":{"spec":{"containers":[{"name":"m","image":"i"}]}},"policy":{"goal":"cost"}}}"#;
        let map = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m","labels":{"a":"b"}},"data":{"k":"v"}}"#;
        let definition = r#"{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"as.x.io"},"spec":{"group":"x.io","names":{"plural":"as","kind":"A"},"scope":"Namespaced","versions":[{"name":"v1","served":true,"storage":true,"subresources":{"status":{},"scale":{"specReplicasPath":".spec.n","statusReplicasPath":".status.n"}},"additionalPrinterColumns":[{"name":"N","type":"integer","jsonPath":".spec.l[?(@.a=='b')].c"}],"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","x-kubernetes-validations":[{"rule":"self.n > 0 && self.l.all(x, x.a != '')","message":"m"}],"required":["n"],"properties":{"n":{"type":"integer","minimum":1,"default":2},"l":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["a"],"items":{"type":"object","required":["a"],"properties":{"a":{"type":"string","pattern":"^a.*"},"c":{"x-kubernetes-int-or-string":true}}}}}}}}}}]}}"#;
        let lines = [
            format!("POST {WORKLOADS}\n|application/json\n{workload}"),
            format!("GET {WORKLOADS}?labelSelector=a%3Db,c!%3Dd,e+in+(f,g),!h&fieldSelector=metadata.name%3Dw&limit=5\n{TABLE}|\n"),
            format!("GET {WORKLOADS}/w\napplication/yaml|\n"),
            format!("PATCH {WORKLOADS}/w\n|application/json-patch+json\n[{{\"op\":\"replace\",\"path\":\"/spec/replicas\",\"value\":3}},{{\"op\":\"test\",\"path\":\"/spec/template/spec/containers/0/name\",\"value\":\"m\"}}]"),
            format!("PATCH {WORKLOADS}/w\n|application/merge-patch+json\n{{\"spec\":{{\"replicas\":2}},\"metadata\":{{\"labels\":{{\"a\":null}}}}}}"),
            format!("PATCH {WORKLOADS}/w?fieldManager=f&force=true\n|application/apply-patch+yaml\n{workload}"),
            format!("GET {WORKLOADS}/w/scale\n|\n"),
            format!("PUT {WORKLOADS}/w/scale\n|application/json\n{{\"apiVersion\":\"autoscaling/v1\",\"kind\":\"Scale\",\"metadata\":{{\"name\":\"w\"}},\"spec\":{{\"replicas\":4}}}}"),
            format!("GET {WORKLOADS}?watch=true&resourceVersion=1&timeoutSeconds=1&allowWatchBookmarks=true\n|\n"),
            format!("DELETE {WORKLOADS}/w?propagationPolicy=Foreground\n|application/json\n{{\"kind\":\"DeleteOptions\",\"apiVersion\":\"v1\",\"preconditions\":{{\"uid\":\"x\"}}}}"),
            format!("POST /api/v1/namespaces/default/configmaps?dryRun=All&fieldValidation=Strict\n|application/json\n{map}"),
            format!("POST /api/v1/namespaces/default/configmaps\n|application/yaml\n{map}"),
            "PATCH /api/v1/namespaces/default/configmaps/m\n|application/strategic-merge-patch+json\n{\"data\":{\"k\":null,\"$patch\":\"replace\"},\"metadata\":{\"$deleteFromPrimitiveList/finalizers\":[\"x\"]}}".to_owned(),
            format!("POST /apis/apiextensions.k8s.io/v1/customresourcedefinitions\n|application/json\n{definition}"),
            "POST /apis/x.io/v1/namespaces/default/as\n|application/json\n{\"apiVersion\":\"x.io/v1\",\"kind\":\"A\",\"metadata\":{\"generateName\":\"a\"},\"spec\":{\"n\":1,\"l\":[{\"a\":\"ab\",\"c\":\"1\"}]}}".to_owned(),
            format!("GET /apis/x.io/v1/namespaces/default/as?limit=1&continue=eyJ2IjoibWV0YSJ9\n{TABLE}|\n"),
            "GET /openapi/v3/apis/hyperion.io/v1alpha1\napplication/json|\n".to_owned(),
            "GET /openapi/v2\napplication/com.github.proto-openapi.spec.v2@v1.0+protobuf|\n".to_owned(),
            "GET /apis\napplication/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList|\n".to_owned(),
            "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews\n|application/json\n{\"apiVersion\":\"authorization.k8s.io/v1\",\"kind\":\"SelfSubjectAccessReview\",\"spec\":{\"resourceAttributes\":{\"verb\":\"get\"}}}".to_owned(),
            "GET /api/v1/namespaces/hyperion-system/services/hyperion-control:http/proxy/fleet/v1/nodes\n|\n".to_owned(),
        ];
        lines.into_iter().map(String::into_bytes).collect()
    }

    fn dictionary(&self) -> Vec<Vec<u8>> {
        let words = [
            "/status",
            "/scale",
            "%2f",
            "%00",
            "..",
            "?watch=true",
            "&limit=-1",
            "$patch",
            "\"$retainKeys\":[]",
            "/spec/l/-",
            "~1",
            "null",
            "[]",
            "{}",
            "-1",
            "1e999",
            "[?(@.a==\"b\")]",
            "[*]",
            "..",
            "self.all(x, x)",
            "oldSelf",
            "\"x-kubernetes-preserve-unknown-fields\":true",
            "\"nullable\":true",
            "GET",
            "PATCH",
            "metadata.name",
            "notin (a)",
            "!",
            "metadata.managedFields",
        ];
        words.iter().map(|w| w.as_bytes().to_vec()).collect()
    }

    fn run(&mut self, input: &[u8]) -> Outcome {
        let answer = self.runtime.block_on(send(&self.client, input));
        match answer {
            Some((status, words)) => {
                // What a real API server answers with 500, too: an apply with a field of metadata
                // that does not exist.
                let as_kubernetes = words.contains("failed to create typed patch object");
                assert!(status != 500 || as_kubernetes, "internal error: {words}");
                Outcome::text(&words).and(Outcome(u64::from(status)))
            }
            None => Outcome(0),
        }
    }
}
