//! The program itself: what it says and how it ends when it can't start, and that it drains.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

mod support;

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use hyperion_proto::agent_v1::stream_message::Body;
use support::{Control, TOKEN, until};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const FINGERPRINT: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

fn agent(dir: &std::path::Path) -> Command {
    agent_of("127.0.0.1:9", dir)
}

fn agent_of(control: &str, dir: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hyperion-agent"));
    command
        .env_remove("HYPERION_TOKEN")
        .args(["--control", control, "--http-addr", "off"])
        .arg("--data-dir")
        .arg(dir)
        .arg("--containerd-socket")
        .arg(dir.join("no-containerd.sock"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Runs to its end; an agent that goes on is a failure.
fn fails(command: &mut Command) -> (Option<i32>, String) {
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("goes on: {}", stderr(&output));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), stderr(&output))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn terminate(child: &Child) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn without_identity_and_token_it_says_what_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = fails(&mut agent(dir.path()));
    assert_eq!(code, Some(1));
    assert!(text.contains("--ca-fingerprint"), "{text}");
    let (code, text) = fails(agent(dir.path()).args(["--ca-fingerprint", FINGERPRINT]));
    assert_eq!(code, Some(1));
    assert!(text.contains("--token"), "{text}");
    let (code, text) = fails(
        agent(dir.path())
            .args(["--ca-fingerprint", FINGERPRINT])
            .args(["--token-file", "/nowhere/token"]),
    );
    assert_eq!(code, Some(1));
    assert!(text.contains("--token-file /nowhere/token"), "{text}");
}

#[test]
fn a_wrong_flag_is_named_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = fails(agent(dir.path()).args(["--label", "nonsense"]));
    assert_eq!(code, Some(2));
    assert!(text.contains("--label"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, text) = fails(
        Command::new(env!("CARGO_BIN_EXE_hyperion-agent"))
            .args(["--control", "127.0.0.1:9", "--ca-fingerprint", FINGERPRINT])
            .args(["--token", TOKEN, "--http-addr", &address, "--data-dir"])
            .arg(dir.path())
            .stderr(Stdio::piped()),
    );
    assert_eq!(code, Some(1));
    assert!(text.contains(&format!("--http-addr {address}")), "{text}");
}

#[test]
fn a_data_directory_that_is_a_file_is_named() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"x").unwrap();
    let (code, text) = fails(agent(file.path()).args(["--ca-fingerprint", FINGERPRINT]));
    assert_eq!(code, Some(1));
    let name = format!("--data-dir {}", file.path().display());
    assert!(text.contains(&name), "{text}");
}

/// The command with `dir` mounted read-only; none where this test may not mount.
fn read_only(dir: &std::path::Path, command: &Command) -> Option<Command> {
    let mount = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@""#;
    let outer = || {
        let mut outer = Command::new("unshare");
        outer.args(["--mount", "sh", "-c", mount]).arg(dir);
        outer.stdout(Stdio::null()).stderr(Stdio::piped());
        outer
    };
    let output = outer().arg("true").output().ok()?;
    output.status.success().then(|| {
        let mut outer = outer();
        outer.env_remove("HYPERION_TOKEN");
        outer.arg(command.get_program()).args(command.get_args());
        outer
    })
}

#[test]
fn a_disk_that_turned_read_only_does_not_stop_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_, before) = fails(&mut agent(dir.path()));
    assert!(before.contains("--ca-fingerprint"), "{before}");
    let Some(mut command) = read_only(dir.path(), &agent(dir.path())) else {
        writeln!(std::io::stderr(), "SKIPPED: mounting is not allowed").unwrap();
        return;
    };
    let (_, text) = fails(&mut command);
    assert!(text.contains("going on in memory"), "{text}");
    assert!(text.contains("--ca-fingerprint"), "{text}");
}

#[test]
fn a_broken_identity_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("identity.json"), "{}").unwrap();
    let (code, text) = fails(agent(dir.path()).args(["--ca-fingerprint", FINGERPRINT]));
    assert_eq!(code, Some(1));
    assert!(text.contains("identity.json: not an identity"), "{text}");
}

/// A tar file with one file in it.
fn tar(path: &std::path::Path, name: &str, content: &str) {
    let mut bytes = vec![0; 512];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    bytes[156] = b'0';
    bytes[257..262].copy_from_slice(b"ustar");
    bytes.extend(content.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn an_image_that_cant_be_imported_is_named_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (text, other, image) = (
        dir.path().join("text"),
        dir.path().join("other.tar"),
        dir.path().join("image.tar"),
    );
    std::fs::write(&text, "x".repeat(4096)).unwrap();
    tar(&other, "readme", "no image");
    let index = format!(
        r#"{{"manifests": [{{"digest": "sha256:{}", "size": 2}}]}}"#,
        "0".repeat(64)
    );
    tar(&image, "index.json", &index);
    let socket = dir.path().join("no-containerd.sock");
    for (file, culprit, reason) in [
        (&dir.path().join("gone"), "gone", "No such file"),
        (&dir.path().to_owned(), "", "directory"),
        (&text, "text", "not an OCI image archive"),
        (&other, "other.tar", "not an OCI image layout"),
        (&image, "no-containerd.sock", "No such file"),
    ] {
        let (code, said) = fails(
            Command::new(env!("CARGO_BIN_EXE_hyperion-agent"))
                .env("HYPERION_TOKEN", TOKEN)
                .args(["image", "import"])
                .arg(file)
                .arg("--containerd-socket")
                .arg(&socket)
                .stdout(Stdio::null())
                .stderr(Stdio::piped()),
        );
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(culprit) && said.contains(reason), "{said}");
    }
}

#[tokio::test]
async fn a_refused_token_ends_it_and_a_good_one_runs_until_sigterm() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let address = control.addr.to_string();
    let with = |token: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hyperion-agent"));
        command
            .env_remove("HYPERION_TOKEN")
            .args(["--control", &address, "--http-addr", "off", "--site", "lab"])
            .args(["--ca-fingerprint", &control.fingerprint, "--token", token])
            .args(["--log-format", "json", "--telemetry-interval", "100ms"])
            .arg("--data-dir")
            .arg(dir.path())
            .arg("--containerd-socket")
            .arg(dir.path().join("no-containerd.sock"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    };
    let mut refused = with("no.token");
    let (code, text) = tokio::task::spawn_blocking(move || fails(&mut refused))
        .await
        .unwrap();
    assert_eq!(code, Some(1));
    assert!(text.contains("join token is not known"), "{text}");

    let child = with(TOKEN).spawn().unwrap();
    until("connected", || control.hellos() == 1).await;
    let mut second = with(TOKEN);
    let (code, text) = tokio::task::spawn_blocking(move || fails(&mut second))
        .await
        .unwrap();
    assert_eq!(code, Some(1));
    assert!(text.contains("in use by another agent"), "{text}");
    terminate(&child);
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap())
        .await
        .unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(!text.contains("\"ERROR\""), "{text}");

    // The identity is kept: no token, and no fingerprint either.
    let mut child = Command::new(env!("CARGO_BIN_EXE_hyperion-agent"))
        .env_remove("HYPERION_TOKEN")
        .args(["--control", &address, "--http-addr", "127.0.0.1:0"])
        .args(["--token-file", "/nowhere/token"])
        .arg("--data-dir")
        .arg(dir.path())
        .arg("--containerd-socket")
        .arg(dir.path().join("no-containerd.sock"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("connected again", || control.hellos() == 2).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let boots: Vec<String> = {
        let hellos = control.state.hellos.lock().unwrap();
        hellos.iter().map(|h| h.boot_id.clone()).collect()
    };
    assert_ne!(boots[0], boots[1]);
}

/// What an HTTP server says to a GET.
async fn get(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn an_agent_that_was_updated_alone_tells_its_bundles_version_everywhere() {
    const VERSION: &str = "2.1.0-rc.1";
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let socket = dir.path().join("agent.sock");
    let mut child = Command::new(env!("CARGO_BIN_EXE_hyperion-agent"))
        .env_remove("HYPERION_TOKEN")
        .env("HYPERION_AGENT_VERSION", VERSION)
        .args(["--control", &control.addr.to_string()])
        .args(["--ca-fingerprint", &control.fingerprint, "--token", TOKEN])
        .args(["--http-addr", "127.0.0.1:0", "--log-format", "json"])
        .arg("--data-dir")
        .arg(dir.path())
        .arg("--local-socket")
        .arg(&socket)
        .arg("--containerd-socket")
        .arg(dir.path().join("no-containerd.sock"))
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    until("connected", || control.hellos() == 1).await;
    assert_eq!(control.last_hello().agent_version, VERSION);
    let enrolment = control.state.enrolments.lock().unwrap()[0].clone();
    assert_eq!(enrolment.agent_version, VERSION);

    let said = std::fs::read_to_string(&log).unwrap();
    let http = said.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let fields = &line["fields"];
        let serves = fields["message"].as_str()?.contains("/healthz");
        serves.then(|| fields["address"].as_str().map(str::to_owned))?
    });
    let http = TcpStream::connect(http.unwrap_or_else(|| panic!("{said}"))).await;
    let health = get(http.unwrap(), "/healthz").await;
    assert!(
        health.contains(&format!("\"version\":\"{VERSION}\"")),
        "{health}"
    );
    let site = get(UnixStream::connect(&socket).await.unwrap(), "/v1/site").await;
    let told = site
        .matches(&format!("\"agentVersion\":\"{VERSION}\""))
        .count();
    assert_eq!(
        told, 2,
        "of the agent, and of this node among the members: {site}"
    );
    terminate(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn a_node_whose_key_does_not_open_says_so_and_is_itself_again_later() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let (secret, socket) = (dir.path().join("secret"), dir.path().join("agent.sock"));
    let log = dir.path().join("log");
    let identity = dir.path().join("identity.json");
    let start = || {
        agent_of(&control.addr.to_string(), dir.path())
            .args(["--ca-fingerprint", &control.fingerprint, "--token", TOKEN])
            .env("HYPERION_KEY_SECRET", &secret)
            .arg("--local-socket")
            .arg(&socket)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap()
    };
    let end = |mut child: Child| {
        terminate(&child);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    };
    std::fs::write(&secret, "7".repeat(64)).unwrap();
    let child = start();
    until("connected", || control.hellos() == 1).await;
    end(child);
    let kept = std::fs::read_to_string(&identity).unwrap();
    assert!(kept.contains("\"version\": 2"), "{kept}");

    // Its token would enrol it again: it does not become another node by itself.
    for bad in [Some("8".repeat(64)), None] {
        match bad {
            Some(other) => std::fs::write(&secret, other).unwrap(),
            None => std::fs::remove_file(&secret).unwrap(),
        }
        let child = start();
        let says = |words: &str| std::fs::read_to_string(&log).is_ok_and(|l| l.contains(words));
        until("told", || says("kept out of the fleet")).await;
        assert!(says("can't be opened") && says("factory reset"));
        let site = get(UnixStream::connect(&socket).await.unwrap(), "/v1/site").await;
        let why = "kept out of the fleet: the key of this node can't be opened";
        assert!(site.contains(why), "{site}");
        end(child);
        assert_eq!(std::fs::read_to_string(&identity).unwrap(), kept);
    }
    assert_eq!(control.hellos(), 1);
    assert_eq!(control.state.enrolments.lock().unwrap().len(), 1);

    std::fs::write(&secret, "7".repeat(64)).unwrap();
    let child = start();
    until("connected again", || control.hellos() == 2).await;
    end(child);
}

#[test]
fn systemd_hears_of_the_start_the_watchdog_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let wait_for = |wanted: &str| {
        let mut buffer = [0; 512];
        loop {
            let n = socket
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("{wanted}: {e}"));
            if std::str::from_utf8(&buffer[..n])
                .unwrap()
                .lines()
                .any(|l| l == wanted)
            {
                return;
            }
        }
    };
    let mut child = agent(dir.path())
        .args(["--ca-fingerprint", FINGERPRINT, "--token", TOKEN])
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "400000")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("READY=1");
    wait_for("WATCHDOG=1");
    wait_for("WATCHDOG=1");
    terminate(&child);
    wait_for("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A figure in kilobytes of /proc/PID/status.
fn status_kib(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    let number = line.trim_start_matches(':').split_whitespace().next();
    number.unwrap().parse().unwrap()
}

/// CPU time of all threads that are there now.
fn cpu_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("schedstat")).ok())
        .filter_map(|t| t.split_whitespace().next()?.parse().ok())
        .map(Duration::from_nanos)
        .sum()
}

#[tokio::test]
async fn an_idle_agent_is_small() {
    let control = Control::start();
    let dir = tempfile::tempdir().unwrap();
    let mut child = agent_of(&control.addr.to_string(), dir.path())
        .args(["--ca-fingerprint", &control.fingerprint, "--token", TOKEN])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let messages = || {
        control
            .received(|body| matches!(body, Body::Telemetry(_)).then_some(()))
            .len()
    };
    until("telemetry flows", || messages() >= 2).await;
    let (cpu, at) = (cpu_time(child.id()), Instant::now());
    until("six seconds of it", || messages() >= 8).await;
    let share = (cpu_time(child.id()) - cpu).as_secs_f64() / at.elapsed().as_secs_f64() * 100.0;
    // What the allocator holds does not depend on how the program was built, other than the pages
    // of the program itself.
    let anonymous = status_kib(child.id(), "RssAnon");
    let resident = status_kib(child.id(), "VmRSS");
    let threads = status_kib(child.id(), "Threads");
    child.kill().unwrap();
    child.wait().unwrap();
    let figures = format!(
        "{anonymous} KiB anonymous, {resident} KiB resident, {threads} threads, {share:.2} % of a core"
    );
    assert!(anonymous <= 6 * 1024, "{figures}");
    assert!(threads <= 3, "{figures}");
    // An unoptimised program needs several times what the one for devices does.
    assert!(share < 5.0, "{figures}");
    writeln!(std::io::stderr(), "idle: {figures}").unwrap();
}
