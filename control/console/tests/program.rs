//! The program as a shell sees it: exit status, standard error, closed pipes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::io::Read as _;
use std::process::{Command, Output, Stdio};

fn hyperion(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperion"));
    command.args(arguments).env_remove("KUBECONFIG");
    // Nobody's own kubeconfig.
    command.env("HOME", "/nonexistent");
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = hyperion(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn wrong_use_is_2_and_a_missing_kubeconfig_is_1() {
    let (code, _, said) = run(&["nodse"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("nodes"), "{said}");
    let (code, out, said) = run(&["nodes", "--kubeconfig", "/nonexistent/kc"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(
        said.starts_with("error: kubeconfig /nonexistent/kc: "),
        "{said}"
    );
    assert!(!said.contains('\x1b'), "{said}");
}

#[test]
fn a_control_plane_that_is_away_is_one_sentence_and_a_hint() {
    let dir = std::env::temp_dir().join(format!("hyperion-console-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("kubeconfig");
    // Port 1 of loopback: nobody listens there.
    let config = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
        clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
        users: [{name: u, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n";
    std::fs::write(&path, config).unwrap();
    let (code, _, said) = run(&["workloads", "--kubeconfig", path.to_str().unwrap()]);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(code, Some(1));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("error: cannot list workloads: the API server cannot be reached"));
    assert!(lines[1].starts_with("hint: "));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = hyperion(&["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn top_without_a_terminal_says_so() {
    let (code, _, said) = run(&["top", "--simulate", "5"]);
    assert_eq!(code, Some(2));
    assert!(said.contains("needs a terminal"), "{said}");
}

#[test]
fn apply_checks_all_files_before_it_connects() {
    let (code, _, said) = run(&["apply", "-f", "/nonexistent/w.yaml"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with("error: /nonexistent/w.yaml: "), "{said}");
}
