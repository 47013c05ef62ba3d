//! The program as people start it: exit codes, sentences, signals.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{eventually, free_port, get};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use tokio::process::{Child, Command};

fn program(args: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperion-control"));
    command
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a program that is expected to end by itself: exit code and last line of standard error.
async fn ends(args: &[String]) -> (Option<i32>, String) {
    let run = program(args).spawn().unwrap().wait_with_output();
    let output = tokio::time::timeout(common::DEADLINE, run)
        .await
        .expect("ends")
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    (
        output.status.code(),
        text.lines().last().unwrap_or_default().to_owned(),
    )
}

struct Addresses {
    dir: tempfile::TempDir,
    api: String,
    link: String,
    http: std::net::SocketAddr,
}

impl Addresses {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            api: free_port(false).to_string(),
            link: free_port(true).to_string(),
            http: free_port(false),
        }
    }

    fn args(&self) -> Vec<String> {
        vec![
            "--embedded".to_owned(),
            format!("--data-dir={}", self.dir.path().display()),
            format!(
                "--kubeconfig-out={}",
                self.dir.path().join("kubeconfig").display()
            ),
            format!("--api-addr={}", self.api),
            format!("--link-addr={}", self.link),
            format!("--http-addr={}", self.http),
            "--log-format=json".to_owned(),
        ]
    }

    async fn serving(&self) {
        let http = self.http;
        eventually("serving", || async move {
            let (status, text) = get(http, "/readyz").await.map_err(|e| e.to_string())?;
            if status == 200 && text.contains("serving") {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
    }
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let taken = [tcp.local_addr().unwrap(), udp.local_addr().unwrap()];
    for (flag, address) in [
        ("--http-addr", taken[0]),
        ("--api-addr", taken[0]),
        ("--link-addr", taken[1]),
    ] {
        let addresses = Addresses::new();
        let mut args = addresses.args();
        args.retain(|a| !a.starts_with(flag));
        args.push(format!("{flag}={address}"));
        let (code, line) = ends(&args).await;
        assert_eq!(code, Some(1), "{flag}: {line}");
        assert!(
            line.starts_with("hyperion-control: ") && line.contains(&address.to_string()),
            "{flag}: {line}"
        );
    }
}

#[tokio::test]
async fn a_bad_file_of_credential_plugins_is_named() {
    let addresses = Addresses::new();
    let file = addresses.dir.path().join("providers.json");
    let flag = format!("--cluster-profile-providers={}", file.display());
    for (text, why) in [
        (None, "No such file"),
        (Some("{ \"providers\": ["), "did not find expected"),
        (Some("{ \"providers\": [] }"), "there is none"),
    ] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let mut args = addresses.args();
        args.push(flag.clone());
        let (code, line) = ends(&args).await;
        assert_eq!(code, Some(1), "{line}");
        let begin = format!(
            "hyperion-control: --cluster-profile-providers {}: ",
            file.display()
        );
        assert!(line.starts_with(&begin) && line.contains(why), "{line}");
    }
}

#[tokio::test]
async fn a_bad_kubeconfig_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    let http = format!("--http-addr={}", free_port(false));
    let flag = format!("--kubeconfig={}", file.display());
    for text in [None, Some("][")] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let (code, line) = ends(&[flag.clone(), http.clone()]).await;
        assert_eq!(code, Some(1));
        assert!(line.contains(&file.display().to_string()), "{line}");
    }
}

#[tokio::test]
async fn sigterm_ends_it_with_exit_code_0() {
    let addresses = Addresses::new();
    let mut child = program(&addresses.args()).spawn().unwrap();
    addresses.serving().await;
    let began = Instant::now();
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn after_kill_9_the_next_start_leads_at_once() {
    let addresses = Addresses::new();
    let mut child = program(&addresses.args()).spawn().unwrap();
    addresses.serving().await;
    signal(&child, rustix::process::Signal::KILL);
    child.wait().await.unwrap();
    let began = Instant::now();
    let _second = program(&addresses.args()).spawn().unwrap();
    addresses.serving().await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn where_agents_find_it_is_published_and_follows_the_flags() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let addresses = Addresses::new();
    let port = addresses.link.rsplit(':').next().unwrap().to_owned();
    for (flag, expected) in [
        (
            Some("--link-advertise=edge.example:9000"),
            "edge.example:9000",
        ),
        (None, &*format!(":{port}")),
    ] {
        let mut args = addresses.args();
        args.extend(flag.map(str::to_owned));
        let mut child = program(&args).spawn().unwrap();
        addresses.serving().await;
        let file = addresses.dir.path().join("kubeconfig");
        let read = kube::config::Kubeconfig::read_from(file).unwrap();
        let config = kube::Config::from_custom_kubeconfig(read, &Default::default())
            .await
            .unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client, "hyperion-system");
        let data = maps.get("hyperion-ca").await.unwrap().data.unwrap();
        assert_eq!(data["link-address"], expected);
        assert!(data["fingerprint"].starts_with("sha256:"));
        signal(&child, rustix::process::Signal::TERM);
        child.wait().await.unwrap();
    }
}
