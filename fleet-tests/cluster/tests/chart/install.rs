//! The manifests applied to an API server that keeps an audit of what the control plane asks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use hyperion_lab::apiserver::ApiServer;
use hyperion_lab::{Kubectl, needs, process::Process};
use serde::Deserialize;
use serde_json::{Value, json};

use super::agent::free_port;
use super::rights::Right;

pub const SYSTEM: &str = "hyperion-system";
/// Whom the Deployment's Pods are.
pub const ACCOUNT: &str = "system:serviceaccount:hyperion-system:hyperion-control";
/// Not of loopback, which no Endpoints may lead to. Nobody goes there.
const POD_IP: &str = "192.0.2.7";

pub struct Installed {
    // Before the folder: programs end first.
    server: ApiServer,
    pub control: Process,
    pub link: SocketAddr,
    pub http: SocketAddr,
    /// The objects of the plain manifest.
    pub manifest: Vec<Value>,
    dir: tempfile::TempDir,
}

/// What the API server noted of a request of the control plane.
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

impl Installed {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("logs")).unwrap();
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{ "level": "Metadata", "users": [ACCOUNT] }, { "level": "None" }],
        });
        std::fs::write(path("audit.yaml"), policy.to_string()).unwrap();
        let mut server =
            ApiServer::prepare(&path("api"), &path("kubeconfig"), &path("logs")).unwrap();
        server.set_flags(&[
            &format!("--audit-policy-file={}", path("audit.yaml").display()),
            &format!("--audit-log-path={}", path("audit.log").display()),
        ]);
        server.end_with_parent();
        server.start().unwrap();
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let kubectl = server.kubectl();
        apply(kubectl, &format!("{root}/control/api/crds"), &[]);
        let file = format!("{root}/images/chart/manifests/hyperion.yaml");
        apply(kubectl, &file, &[]);
        let text = std::fs::read_to_string(&file).unwrap();
        let manifest = serde_yaml_ng::Deserializer::from_str(&text)
            .map(|d| Value::deserialize(d).unwrap())
            .filter(|object| !object.is_null())
            .collect();
        let program = needs::programs().join("hyperion-control");
        let mut installed = Self {
            control: Process::new("control", &program, Vec::new(), &path("logs")),
            link: free_port(true),
            http: free_port(false),
            server,
            manifest,
            dir,
        };
        installed.use_account();
        installed
    }

    /// The control plane runs with the flags of the Deployment, as its service account.
    fn use_account(&mut self) {
        let kubectl = self.server.kubectl();
        let token = kubectl
            .run(&[
                "create",
                "token",
                "hyperion-control",
                "-n",
                SYSTEM,
                "--duration=24h",
            ])
            .unwrap();
        let all = kubectl
            .run(&["config", "view", "--raw", "--output=json"])
            .unwrap();
        let mut config: Value = serde_json::from_str(&all).unwrap();
        config["users"][0]["user"] = json!({ "token": token.trim() });
        let kubeconfig = self.dir.path().join("account");
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let given = [
            ("--data-dir", self.data().display().to_string()),
            ("--link-addr", self.link.to_string()),
            ("--http-addr", self.http.to_string()),
        ];
        let deployment = self.object("Deployment");
        let flags = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
            .as_array()
            .unwrap();
        let mut args = vec![format!("--kubeconfig={}", kubeconfig.display())];
        for flag in flags {
            let (name, value) = flag.as_str().unwrap().split_once('=').unwrap();
            let ours = given.iter().find(|(flag, _)| *flag == name);
            let value = ours.map_or(value, |(_, value)| value);
            args.push(format!("{name}={}", value.replace("$(POD_IP)", POD_IP)));
        }
        self.control.set_args(args);
        self.control.env("POD_NAME", "hyperion-control-0");
        self.control.env("NODE_NAME", "node-0");
    }

    pub fn object(&self, kind: &str) -> &Value {
        let found = self.manifest.iter().find(|object| object["kind"] == kind);
        found.unwrap()
    }

    pub fn kubectl(&self) -> &Kubectl {
        self.server.kubectl()
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub async fn admin(&self) -> kube::Client {
        hyperion_lab::watch::client(self.kubectl().kubeconfig())
            .await
            .unwrap()
    }

    /// A second install changes nothing, and the server's own validation has nothing to say.
    pub fn takes_it_again(&self) {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        for file in ["hyperion", "workload-cluster"] {
            let file = format!("{root}/images/chart/manifests/{file}.yaml");
            apply(self.kubectl(), &file, &["--dry-run=server"]);
        }
    }

    /// The namespace asks for restricted pod security, and enforces it.
    pub fn lets_its_pod_in(&self) {
        let template = &self.object("Deployment")["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "probe", "namespace": SYSTEM },
            "spec": template["spec"],
        });
        let create = ["create", "--dry-run=server", "--filename=-"];
        let made = self
            .kubectl()
            .output(&create, Some(&pod.to_string()))
            .unwrap();
        assert!(made.success, "{made:?}");
        pod["spec"]["hostNetwork"] = json!(true);
        let made = self
            .kubectl()
            .output(&create, Some(&pod.to_string()))
            .unwrap();
        assert!(
            !made.success && made.stderr.contains("PodSecurity"),
            "{made:?}"
        );
    }

    /// Where the audit ends now.
    pub fn audited(&self) -> usize {
        self.audit().len()
    }

    /// The requests that the control plane had no right to, from `begin` of the audit on.
    pub fn refused(&self, begin: usize) -> Vec<String> {
        let mut refused = Vec::new();
        for line in self.audit()[begin..].split(|b| *b == b'\n') {
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

    fn audit(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("audit.log")).unwrap_or_default()
    }
}

fn apply(kubectl: &Kubectl, path: &str, flags: &[&str]) {
    let apply = ["apply", "--server-side", "--validate=strict", "-f", path];
    kubectl.run(&[&apply, flags].concat()).unwrap();
}
