//! Where the leader is found in a cluster.
//!
//! Of several control planes one serves agents and the fleet API. The Services have no selector; who
//! leads writes its own address to their Endpoints, so that neither agents nor the API server's proxy
//! come to one that stands by. Endpoints and not `EndpointSlices`: the proxy reads nothing else, and
//! a controller of Kubernetes mirrors them for everybody who reads slices.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use hyperion_api::{MANAGER, NAMESPACE};
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Service of HTTP, which the console's proxy path names.
pub const HTTP_SERVICE: &str = "hyperion-control";
/// Service of the agents' link.
pub const LINK_SERVICE: &str = "hyperion-agents";
/// Time between attempts that fail.
const AGAIN: Duration = Duration::from_secs(2);
/// How often it is written again: somebody may have changed it.
const REPEAT: Duration = Duration::from_secs(60);
/// Time for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// This process as one of the cluster's Pods.
#[derive(Debug, Clone)]
pub struct Pod {
    ip: IpAddr,
    name: String,
    /// Empty where it is not known.
    node: String,
}

impl Pod {
    /// The Pod of this address; its name and its node's are in `POD_NAME` and `NODE_NAME`.
    ///
    /// # Errors
    /// `POD_NAME` is not set.
    pub fn from_env(ip: IpAddr) -> anyhow::Result<Self> {
        let set = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        Ok(Self {
            ip,
            name: set("POD_NAME").context("--publish-ip needs the Pod's name in POD_NAME")?,
            node: set("NODE_NAME").unwrap_or_default(),
        })
    }

    /// Endpoints that lead to this Pod alone. The API server's proxy takes no address without a Pod.
    fn endpoints(&self, service: &str, port: &Value) -> Value {
        let mut address = json!({
            "ip": self.ip,
            "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": self.name },
        });
        if !self.node.is_empty() {
            address["nodeName"] = json!(self.node);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": { "name": service, "namespace": NAMESPACE },
            "subsets": [{ "addresses": [address], "ports": [port] }],
        })
    }

    /// Keeps both Services leading here until `leading` ends. Nothing is taken back then: whoever
    /// leads next writes over it.
    pub async fn publish(
        self,
        client: kube::Client,
        http: SocketAddr,
        link: SocketAddr,
        leading: CancellationToken,
    ) {
        let http = json!({ "name": "http", "port": http.port(), "protocol": "TCP" });
        let link = json!({ "name": "link", "port": link.port(), "protocol": "UDP" });
        let wanted = [(HTTP_SERVICE, &http), (LINK_SERVICE, &link)];
        let api: Api<Endpoints> = Api::namespaced(client, NAMESPACE);
        let mut told = false;
        loop {
            let mut wait = REPEAT;
            for (service, port) in wanted {
                let endpoints = self.endpoints(service, port);
                let params = PatchParams::apply(MANAGER).force();
                let patch = Patch::Apply(endpoints);
                let written = tokio::select! {
                    written = tokio::time::timeout(ANSWER, api.patch(service, &params, &patch)) => written,
                    () = leading.cancelled() => return,
                };
                let error = match written {
                    Ok(Ok(_)) => continue,
                    Ok(Err(e)) => e.to_string(),
                    Err(_) => "no answer".to_owned(),
                };
                warn!(error, "cannot write Endpoints {NAMESPACE}/{service}");
                wait = AGAIN;
            }
            if wait == REPEAT && !told {
                info!(ip = %self.ip, "Services lead to this control plane");
                told = true;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = leading.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_name_the_pod_that_the_proxy_checks() {
        let mut pod = Pod {
            ip: "10.1.2.3".parse().unwrap(),
            name: "hyperion-control-abc".to_owned(),
            node: "n1".to_owned(),
        };
        let port = json!({ "name": "link", "port": 7444, "protocol": "UDP" });
        let object = pod.endpoints(LINK_SERVICE, &port);
        let read: Endpoints = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), object);
        let address = &object["subsets"][0]["addresses"][0];
        assert_eq!(address["targetRef"]["name"], "hyperion-control-abc");
        assert_eq!(address["nodeName"], "n1");
        pod.node.clear();
        let object = pod.endpoints(LINK_SERVICE, &port);
        assert_eq!(object["subsets"][0]["addresses"][0].get("nodeName"), None);
    }
}
