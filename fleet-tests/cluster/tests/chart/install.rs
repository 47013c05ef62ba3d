//! A management cluster and a workload cluster with their manifests, and a control plane that has no
//! rights but those.

use std::net::SocketAddr;
use std::path::PathBuf;

use hyperion_lab::needs;
use hyperion_lab::process::Process;
use serde_json::json;

use super::agent::free_port;
use super::server::{SYSTEM, Server};

/// Not of loopback, which no Endpoints may lead to. Nobody goes there.
const POD_IP: &str = "192.0.2.7";

pub struct Installed {
    // Before the folder: programs end first.
    pub control: Process,
    pub home: Server,
    pub cloud: Server,
    pub link: SocketAddr,
    pub http: SocketAddr,
    dir: tempfile::TempDir,
}

impl Installed {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Server::start(dir.path(), "home", "hyperion", "hyperion-control");
        let cloud = Server::start(
            dir.path(),
            "cloud",
            "workload-cluster",
            "hyperion-workloads",
        );
        let program = needs::programs().join("hyperion-control");
        let mut installed = Self {
            control: Process::new("control", &program, Vec::new(), dir.path()),
            home,
            cloud,
            link: free_port(true),
            http: free_port(false),
            dir,
        };
        installed.set_flags();
        installed
    }

    /// The control plane runs with the flags of the Deployment, as its service account.
    fn set_flags(&mut self) {
        let kubeconfig = self.dir.path().join("account");
        std::fs::write(&kubeconfig, self.home.kubeconfig()).unwrap();
        let given = [
            ("--data-dir", self.data().display().to_string()),
            ("--link-addr", self.link.to_string()),
            ("--http-addr", self.http.to_string()),
        ];
        let deployment = self.home.object("Deployment");
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

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The namespace asks for restricted pod security, and enforces it.
    pub fn lets_its_pod_in(&self) {
        let template = &self.home.object("Deployment")["spec"]["template"];
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "probe", "namespace": SYSTEM },
            "spec": template["spec"],
        });
        let create = ["create", "--dry-run=server", "--filename=-"];
        let make = |pod: &serde_json::Value| {
            let kubectl = self.home.kubectl();
            kubectl.output(&create, Some(&pod.to_string())).unwrap()
        };
        let made = make(&pod);
        assert!(made.success, "{made:?}");
        pod["spec"]["hostNetwork"] = json!(true);
        let made = make(&pod);
        assert!(
            !made.success && made.stderr.contains("PodSecurity"),
            "{made:?}"
        );
    }
}
