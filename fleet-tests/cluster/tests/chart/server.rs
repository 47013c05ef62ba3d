//! An API server that has taken a manifest, and keeps an audit of what our accounts ask it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hyperion_lab::Kubectl;
use hyperion_lab::apiserver::ApiServer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::rights::Right;

pub const SYSTEM: &str = "hyperion-system";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

pub struct Server {
    server: ApiServer,
    /// Service account, ClusterRole and Role that the manifest makes.
    pub account: &'static str,
    /// The plain manifest.
    file: String,
    /// Its objects.
    pub manifest: Vec<Value>,
    audit: PathBuf,
}

/// What the API server noted of a request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    #[serde(default)]
    object_ref: Option<Value>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    response_status: Answer,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    code: u16,
    message: String,
}

impl Server {
    /// Starts one in a folder of this name in `dir`, with the manifest of this name.
    pub fn start(dir: &Path, name: &str, manifest: &str, account: &'static str) -> Self {
        let path = |file: &str| dir.join(format!("{name}.{file}"));
        let logs = path("logs");
        std::fs::create_dir(&logs).unwrap();
        let (policy, audit) = (path("policy"), path("audit"));
        let users = [format!("system:serviceaccount:{SYSTEM}:{account}")];
        let rules = json!([{ "level": "Metadata", "users": users }, { "level": "None" }]);
        let text = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived"], "rules": rules,
        });
        std::fs::write(&policy, text.to_string()).unwrap();
        let mut server = ApiServer::prepare(&path("api"), &path("kubeconfig"), &logs).unwrap();
        server.set_flags(&[
            &format!("--audit-policy-file={}", policy.display()),
            &format!("--audit-log-path={}", audit.display()),
        ]);
        server.end_with_parent();
        server.start().unwrap();
        let crds = format!("{ROOT}/control/api/crds");
        let file = format!("{ROOT}/images/chart/manifests/{manifest}.yaml");
        for path in [&crds, &file] {
            apply(server.kubectl(), path, &[]);
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let manifest = serde_yaml_ng::Deserializer::from_str(&text)
            .map(|d| Value::deserialize(d).unwrap())
            .filter(|object| !object.is_null())
            .collect();
        Self {
            server,
            account,
            file,
            manifest,
            audit,
        }
    }

    pub fn kubectl(&self) -> &Kubectl {
        self.server.kubectl()
    }

    pub async fn admin(&self) -> kube::Client {
        hyperion_lab::watch::client(self.kubectl().kubeconfig())
            .await
            .unwrap()
    }

    pub fn object(&self, kind: &str) -> &Value {
        let found = self.manifest.iter().find(|object| object["kind"] == kind);
        found.unwrap()
    }

    /// A second install changes nothing, and the server's own validation has nothing to say.
    pub fn takes_it_again(&self) {
        apply(self.kubectl(), &self.file, &["--dry-run=server"]);
    }

    /// A kubeconfig of the service account.
    pub fn kubeconfig(&self) -> String {
        let token = ["create", "token", self.account, "--duration=24h"];
        let token = self
            .kubectl()
            .run(&[&token[..], &["--namespace", SYSTEM]].concat())
            .unwrap();
        let view = ["config", "view", "--raw", "--output=json"];
        let mut config: Value = serde_json::from_str(&self.kubectl().run(&view).unwrap()).unwrap();
        config["users"][0]["user"] = json!({ "token": token.trim() });
        config.to_string()
    }

    /// Where the audit ends now.
    pub fn audited(&self) -> usize {
        self.read_audit().len()
    }

    /// The requests that the account had no right to, from `begin` of the audit on.
    pub fn refused(&self, begin: usize) -> Vec<String> {
        let mut refused = Vec::new();
        for line in self.read_audit()[begin..].split(|b| *b == b'\n') {
            // The last line may be half there; discovery has no object.
            let Ok(line) = serde_json::from_slice::<Line>(line) else {
                continue;
            };
            let Some(object) = line.object_ref else {
                continue;
            };
            let decision = line.annotations.get("authorization.k8s.io/decision");
            let Answer { code, message } = line.response_status;
            // A patch that would make its object is refused behind the door.
            let making = code == 403 && message.contains("cannot create resource");
            if making || decision.is_some_and(|d| d == "forbid") {
                let verb = if making { "create" } else { &line.verb };
                refused.push(Right::asked(verb, &object).to_string());
            }
        }
        refused
    }

    fn read_audit(&self) -> Vec<u8> {
        std::fs::read(&self.audit).unwrap_or_default()
    }
}

fn apply(kubectl: &Kubectl, path: &str, flags: &[&str]) {
    let apply = ["apply", "--server-side", "--validate=strict", "-f", path];
    kubectl.run(&[&apply, flags].concat()).unwrap();
}
