//! The commands against a scripted agent on a unix socket.

use std::path::Path;
use std::sync::{Arc, Mutex};

use hyperion_wire::peer_v1::Apply;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use super::*;
use crate::cli::output::Format;
use crate::text::width;

/// Written by the agent's tests: both sides agree on it.
const SAMPLE: &str = include_str!("../../../../../agent/src/local/sample.json");

/// Status and body of an answer.
type Script = Vec<(u16, Value)>;

/// Request lines and bodies.
type Asked = Vec<(String, Vec<u8>)>;

struct Agent {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Asked>>,
}

impl Agent {
    /// Answers with the script, one connection after the other.
    fn start(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("a.sock")).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        tokio::spawn(async move {
            for (code, body) in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut bytes = Vec::new();
                let (head, length) = loop {
                    let mut buffer = [0; 4096];
                    let n = stream.read(&mut buffer).await.unwrap();
                    assert!(n > 0, "request ended early");
                    bytes.extend_from_slice(&buffer[..n]);
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    let Some((head, _)) = text.split_once("\r\n\r\n") else {
                        continue;
                    };
                    let length = head
                        .lines()
                        .find_map(|l| l.strip_prefix("content-length: "))
                        .map_or(0, |l| l.parse().unwrap());
                    break (head.to_owned(), length);
                };
                let mut body_in = bytes.split_off(head.len() + 4);
                while body_in.len() < length {
                    let mut buffer = [0; 4096];
                    let n = stream.read(&mut buffer).await.unwrap();
                    body_in.extend_from_slice(&buffer[..n]);
                }
                let line = head.lines().next().unwrap().to_owned();
                seen.lock().unwrap().push((line, body_in));
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {code} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { dir, asked }
    }

    fn socket(&self) -> Socket {
        Socket {
            socket: self.dir.path().join("a.sock"),
        }
    }

    fn file(&self, yaml: &str) -> Vec<PathBuf> {
        let path = self.dir.path().join("w.yaml");
        std::fs::write(&path, yaml).unwrap();
        vec![path]
    }

    async fn apply(&self, yaml: &str, out: &Out) -> Result<(), CliError> {
        let args = ApplyArgs {
            socket: self.socket(),
            filename: self.file(yaml),
            dry_run: false,
        };
        run(&Command::Apply(args), None, out).await
    }

    fn lines(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(|(line, _)| line.clone()).collect()
    }
}

fn captured() -> (Out, impl Fn() -> String) {
    let sink = Arc::new(Mutex::new(Vec::new()));
    let out = Out {
        captured: Some(sink.clone()),
        ..Out::default()
    };
    (out, move || {
        String::from_utf8(sink.lock().unwrap().clone()).unwrap()
    })
}

fn sample() -> Value {
    serde_json::from_str(SAMPLE).unwrap()
}

fn in_mode(mode: &str) -> Value {
    let mut site = sample();
    site["mode"] = json!(mode);
    site
}

fn yaml(name: &str, kind: &str) -> String {
    format!(
        "apiVersion: hyperion.io/v1alpha1\nkind: HyperionWorkload\nmetadata: {{name: {name}}}\n\
         spec: {{type: {kind}, template: {{spec: {{containers: [{{name: a, image: i}}]}}}}}}\n---\n"
    )
}

async fn status(answer: Value, format: Option<Format>) -> Result<String, CliError> {
    let agent = Agent::start(vec![(200, answer)]);
    let (out, text) = captured();
    let args = StatusArgs {
        socket: agent.socket(),
        output: OutputArgs { output: format },
    };
    run(&Command::Status(args), None, &out).await?;
    assert_eq!(agent.lines(), ["GET /v1/site HTTP/1.1"]);
    Ok(text())
}

#[tokio::test]
async fn the_status_screen_is_golden() {
    let screen = status(sample(), None).await.unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/site/status.golden");
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(screen, golden, "{screen}");
}

#[tokio::test]
async fn a_terminal_gets_lines_that_fit_and_a_program_gets_all() {
    let mut site: SiteStatus = serde_json::from_value(sample()).unwrap();
    site.prepare();
    for columns in [40_u16, 80, 120, 200] {
        let out = Out {
            width: Some(columns),
            ..Out::default()
        };
        let screen = show::status(&site, &out);
        let tables = screen.lines().skip_while(|line| !line.is_empty());
        for line in tables {
            assert!(width(line) <= usize::from(columns), "{columns}: {line}");
        }
    }
    let printed = status(sample(), Some(Format::Json)).await.unwrap();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed, sample());
}

#[tokio::test]
async fn nothing_from_the_agent_drives_the_terminal_and_holes_are_filled() {
    let nasty = json!({ "mode": "auto\u{1b}[2J", "members": [{ "node": "a\u{1b}]0;x\u{7}" }],
        "replicas": [{ "cause": "\u{1b}c", "rejected": { "\u{1b}[1m": 1 } }], "new": {} });
    let screen = status(nasty, None).await.unwrap();
    assert!(!screen.contains('\u{1b}') && !screen.contains('\u{7}'));
    assert!(status(json!({}), None).await.is_ok());
    let error = status(json!({ "members": 3 }), None).await.unwrap_err();
    assert!(error.message.contains("could not be understood"), "{error}");
}

#[tokio::test]
async fn a_new_workload_gets_a_uid_and_a_known_one_keeps_its() {
    let done = json!({ "replicas": 1 });
    let agent = Agent::start(vec![(200, sample()), (200, done.clone()), (200, done)]);
    let (out, text) = captured();
    let both = yaml("fresh", "service") + &yaml("big", "service");
    agent.apply(&both, &out).await.unwrap();
    assert_eq!(
        text(),
        "hyperionworkload/fresh applied: 1 replica in namespace default\n\
         hyperionworkload/big changed: 1 replica in namespace default\n"
    );
    let asked = agent.asked.lock().unwrap();
    let uid = |at: usize| {
        let (line, body) = &asked[at];
        assert_eq!(line, "POST /v1/apply HTTP/1.1");
        let apply = Apply::decode(body.as_slice()).unwrap();
        apply.records[0].key.clone().unwrap().workload_uid
    };
    assert!(uid(1).starts_with("site-") && uid(1).len() == 37);
    assert_eq!(uid(2), "site-0a1b");
}

#[tokio::test]
async fn workloads_of_the_control_plane_and_other_types_are_left_alone() {
    let agent = Agent::start(vec![(200, sample())]);
    let error = agent.apply(&yaml("shop", "service"), &Out::default()).await;
    let said = error.unwrap_err().message;
    assert!(said.contains("w.yaml, document 1: HyperionWorkload shop: the control plane"));
    let agent = Agent::start(vec![(200, sample())]);
    let error = agent.apply(&yaml("big", "job"), &Out::default()).await;
    assert!(error.unwrap_err().message.contains("field spec.type: "));
    assert_eq!(agent.lines().len(), 1, "nothing was sent");
}

#[tokio::test]
async fn one_refusal_does_not_stop_the_others() {
    let refused = json!({ "error": "records[0].pod: too \u{1b}[1mlarge", "field": "x" });
    let agent = Agent::start(vec![
        (200, sample()),
        (422, refused),
        (200, json!({ "replicas": 1 })),
    ]);
    let (out, text) = captured();
    let both = yaml("first", "service") + &yaml("second", "service");
    let error = agent.apply(&both, &out).await.unwrap_err();
    assert!(
        error
            .message
            .ends_with("HyperionWorkload first: records[0].pod: too [1mlarge")
    );
    assert!(text().starts_with("hyperionworkload/second applied"));
}

#[tokio::test]
async fn a_site_in_contact_sends_people_to_kubectl() {
    for (mode, hint) in [
        ("connected", "kubectl"),
        ("reconciling", "kubectl"),
        ("suspect", "try again"),
    ] {
        let agent = Agent::start(vec![(200, in_mode(mode))]);
        let result = agent.apply(&yaml("web", "service"), &Out::default()).await;
        let error = result.unwrap_err();
        assert!(error.message.contains(mode), "{error}");
        assert!(error.hint.unwrap().contains(hint));
        assert_eq!(agent.lines(), ["GET /v1/site HTTP/1.1"]);
    }
    let screen = status(in_mode("connected"), None).await.unwrap();
    assert!(screen.contains("the control plane is in reach"), "{screen}");
}

#[tokio::test]
async fn delete_takes_names_and_nothing_else() {
    let agent = Agent::start(vec![
        (200, sample()),
        (200, json!({})),
        (
            404,
            json!({ "error": "this site knows no workload shop/x" }),
        ),
    ]);
    let (out, text) = captured();
    let args = DeleteArgs {
        socket: agent.socket(),
        workloads: vec!["big".to_owned(), "shop/x".to_owned(), "../x".to_owned()],
    };
    let error = run(&Command::Delete(args), None, &out).await.unwrap_err();
    assert_eq!(error.message, "2 of 3 workloads were refused");
    assert_eq!(text(), "hyperionworkload/big deleted at the site\n");
    assert_eq!(
        agent.lines()[1..],
        [
            "DELETE /v1/workloads/default/big HTTP/1.1",
            "DELETE /v1/workloads/shop/x HTTP/1.1"
        ]
    );
}

#[tokio::test]
async fn bad_files_are_refused_before_anybody_is_asked() {
    let agent = Agent::start(Vec::new());
    let bad = yaml("ok", "service") + &yaml("bad", "daemon");
    let error = agent.apply(&bad, &Out::default()).await.unwrap_err();
    assert!(
        error
            .message
            .contains("document 2: HyperionWorkload bad: field spec.type")
    );
    assert!(agent.lines().is_empty());
    let (out, text) = captured();
    let args = ApplyArgs {
        socket: Socket {
            socket: PathBuf::from("/nonexistent/a.sock"),
        },
        filename: agent.file(&yaml("ok", "service")),
        dry_run: true,
    };
    run(&Command::Apply(args), Some("shop"), &out)
        .await
        .unwrap();
    assert_eq!(
        text(),
        "hyperionworkload/ok checked (dry run): 1 replica in namespace shop\n"
    );
}

#[tokio::test]
async fn a_device_without_an_agent_says_where_it_looked() {
    let args = StatusArgs {
        socket: Socket {
            socket: PathBuf::from("/nonexistent/a.sock"),
        },
        output: OutputArgs::default(),
    };
    let error = run(&Command::Status(args), None, &Out::default()).await;
    let error = error.unwrap_err();
    assert!(error.message.contains("/nonexistent/a.sock"), "{error}");
    assert!(error.hint.unwrap().contains("--local-socket"));
}
