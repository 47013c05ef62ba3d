//! Answers as the clouds document them, and answers that no cloud gives.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use hyperion_proto::agent_v1::InterruptionKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::ask::Client;
use super::aws::Aws;
use super::azure::Azure;
use super::feed::{State, now_ms};
use super::gcp::{Gcp, Value};
use super::*;

/// What a request is answered with: bytes, or nothing ever.
type Reply = Option<String>;

/// Serves on loopback; `answer` gets the head of a request.
async fn serve(answer: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Base {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut byte).await {
                        Ok(1) => head.push(byte[0]),
                        _ => return,
                    }
                }
                match answer(&String::from_utf8(head).unwrap().to_lowercase()) {
                    Some(reply) => drop(stream.write_all(reply.as_bytes()).await),
                    // Until the client goes.
                    None => while matches!(stream.read(&mut byte).await, Ok(1)) {},
                }
            });
        }
    });
    base.parse().unwrap()
}

fn reply(status: &str, headers: &str, body: &str) -> Reply {
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    ))
}

fn ok(body: &str) -> Reply {
    reply("200 OK", "", body)
}

fn missing() -> Reply {
    reply(
        "404 Not Found",
        "content-type: text/html\r\n",
        "<html>404</html>",
    )
}

fn kinds(said: &[Interruption]) -> Vec<InterruptionKind> {
    said.iter().map(Interruption::kind).collect()
}

fn ms(text: &str) -> i64 {
    let time = humantime::parse_rfc3339(text).unwrap();
    let time = time.duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(time.as_millis()).unwrap()
}

#[test]
fn firmware_tells_the_cloud_and_an_edge_device_has_none() {
    let tag = "7783-7084-3265-9085-8269-3286-77";
    for (files, cloud) in [
        (vec![("sys_vendor", "Amazon EC2\n")], Some(Cloud::Aws)),
        (vec![("bios_version", "4.11.amazon\n")], Some(Cloud::Aws)),
        (
            vec![("product_name", "Google Compute Engine")],
            Some(Cloud::Gcp),
        ),
        (
            vec![
                ("sys_vendor", "Microsoft Corporation"),
                ("chassis_asset_tag", tag),
            ],
            Some(Cloud::Azure),
        ),
        // Hyper-V in an office.
        (vec![("sys_vendor", "Microsoft Corporation")], None),
        (vec![("sys_vendor", "NVIDIA")], None),
        (vec![], None),
    ] {
        let root = tempfile::tempdir().unwrap();
        let dmi = root.path().join("sys/class/dmi/id");
        std::fs::create_dir_all(&dmi).unwrap();
        for (name, text) in &files {
            std::fs::write(dmi.join(name), text).unwrap();
        }
        assert_eq!(detect(root.path()), cloud, "{files:?}");
    }
}

#[tokio::test]
async fn aws_has_both_notices_and_wants_a_token() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = asked.clone();
    let base = serve(move |head| {
        if head.starts_with("put /latest/api/token ") {
            assert!(head.contains("x-aws-ec2-metadata-token-ttl-seconds: 21600"));
            let n = count.fetch_add(1, Ordering::Relaxed);
            return ok(&format!("token{n}"));
        }
        // The first token is taken back once.
        if !head.contains("x-aws-ec2-metadata-token: token1") {
            return reply("401 Unauthorized", "", "");
        }
        if head.contains("/spot/instance-action") {
            ok(r#"{"action": "terminate", "time": "2026-01-02T03:04:05Z"}"#)
        } else {
            ok(r#"{"noticeTime": "2026-01-02T03:00:00Z"}"#)
        }
    })
    .await;
    let mut aws = Aws::new(Client::new(&base, "x"));
    assert!(aws.ask().await.is_err());
    let said = aws.ask().await.unwrap();
    assert_eq!(
        kinds(&said),
        [InterruptionKind::Spot, InterruptionKind::Rebalance]
    );
    assert_eq!(said[0].deadline_unix_ms, ms("2026-01-02T03:04:05Z"));
    assert_eq!(said[1].deadline_unix_ms, 0);
    assert_eq!(said, aws.ask().await.unwrap());
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn aws_has_none_while_there_is_none() {
    let base = serve(|head| {
        if head.starts_with("put") {
            ok("token")
        } else {
            missing()
        }
    })
    .await;
    let mut aws = Aws::new(Client::new(&base, "x"));
    assert_eq!(aws.ask().await.unwrap(), []);
}

#[tokio::test]
async fn gcp_is_believed_only_with_its_own_header_and_is_waited_for() {
    let base = serve(|head| {
        assert!(head.contains("metadata-flavor: google"));
        if head.contains("maintenance-event") {
            return ok("TERMINATE_ON_HOST_MAINTENANCE");
        }
        let flavor = "metadata-flavor: Google\r\netag: abc1\r\n";
        match head.contains("wait_for_change=true&timeout_sec=50&last_etag=abc1") {
            false => reply("200 OK", flavor, "FALSE"),
            true => reply("200 OK", flavor, "TRUE"),
        }
    })
    .await;
    let client = Client::new(&base, "metadata.google.internal");
    let mut portal = Gcp::new(client.clone(), Value::Maintenance);
    let error = portal.ask().await.unwrap_err().to_string();
    assert!(error.contains("not the metadata server's"), "{error}");
    let mut gcp = Gcp::new(client, Value::Preempted);
    assert_eq!(gcp.ask().await.unwrap(), []);
    let before = now_ms();
    let said = gcp.ask().await.unwrap();
    assert_eq!(kinds(&said), [InterruptionKind::Spot]);
    let lead = said[0].deadline_unix_ms - before;
    assert!((30_000..60_000).contains(&lead), "{lead}");
    // The deadline counts from the first word.
    assert_eq!(said, gcp.ask().await.unwrap());
    gcp.ask_at_once();
    assert_eq!(gcp.ask().await.unwrap(), []);
}

#[tokio::test]
async fn azure_has_what_concerns_this_machine() {
    let turn = Arc::new(AtomicU32::new(0));
    let turns = turn.clone();
    let base = serve(move |head| {
        assert!(head.contains("metadata: true"));
        if head.contains("/compute/name") {
            return ok("pool_1");
        }
        assert!(head.contains("api-version=2020-07-01"));
        let event = |id: &str, type_: &str, of: &str, status: &str, at: &str| {
            format!(
                r#"{{"EventId":"{id}","EventType":"{type_}","ResourceType":"VirtualMachine",
                "Resources":[{of}],"EventStatus":"{status}","NotBefore":"{at}",
                "Description":"d","EventSource":"Platform","DurationInSeconds":-1}}"#
            )
        };
        let at = "Fri, 02 Jan 2026 03:04:05 GMT";
        let (status, time) = match turns.fetch_add(1, Ordering::Relaxed) {
            0 => ("Scheduled", at),
            1 => ("Started", ""),
            _ => ("Completed", ""),
        };
        let events = [
            event("e1", "Preempt", r#""pool_0","POOL_1""#, status, time),
            event("e2", "Preempt", r#""pool_0""#, "Scheduled", at),
            event("e3", "Freeze", r#""pool_1""#, "Scheduled", at),
            event("e4", "Redeploy", r#""pool_1""#, "Scheduled", at),
        ];
        ok(&format!(
            r#"{{"DocumentIncarnation":7,"Events":[{}]}}"#,
            events.join(",")
        ))
    })
    .await;
    let mut azure = Azure::new(Client::new(&base, "x"));
    let said = azure.ask().await.unwrap();
    assert_eq!(
        kinds(&said),
        [InterruptionKind::Spot, InterruptionKind::Maintenance]
    );
    assert_eq!(said[0].deadline_unix_ms, ms("2026-01-02T03:04:05Z"));
    assert_eq!(said[0].id, "e1");
    let started = azure.ask().await.unwrap();
    assert_eq!(started[0].deadline_unix_ms, said[0].deadline_unix_ms);
    assert_eq!(
        kinds(&azure.ask().await.unwrap()),
        [InterruptionKind::Maintenance]
    );
}

/// Each of these is no answer, of any cloud.
#[tokio::test]
async fn nonsense_is_no_notice() {
    let huge = "x".repeat(1 << 20);
    let location = "location: http://127.0.0.1:1/\r\n";
    let flavor = "metadata-flavor: Google\r\n";
    for bad in [
        reply("200 OK", flavor, "<html>sign in</html>"),
        reply("200 OK", flavor, ""),
        reply("200 OK", flavor, "{\"action\": \"terminate\""),
        reply(
            "200 OK",
            flavor,
            "{\"action\": \"terminate\", \"time\": \"soon\"}",
        ),
        reply(
            "200 OK",
            flavor,
            "{\"action\": 1, \"time\": \"9999-01-01T00:00:00Z\"}",
        ),
        reply("200 OK", flavor, "{\"Events\": 3}"),
        reply("200 OK", flavor, &huge),
        reply("302 Found", location, ""),
        reply("500 Internal Server Error", "", ""),
        reply("403 Forbidden", "", ""),
        Some("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_owned()),
        Some("nonsense\r\n\r\n".to_owned()),
        Some(String::new()),
    ] {
        let shown = bad.clone().unwrap().chars().take(60).collect::<String>();
        let base = serve(move |head| match head {
            _ if head.starts_with("put") => ok("token"),
            _ if head.contains("/compute/name") => ok("me"),
            _ => bad.clone(),
        })
        .await;
        let client = Client::new(&base, "x");
        assert!(
            Aws::new(client.clone()).ask().await.is_err(),
            "aws: {shown}"
        );
        assert!(
            Azure::new(client.clone()).ask().await.is_err(),
            "azure: {shown}"
        );
        let gcp = Gcp::new(client, Value::Preempted).ask().await;
        assert!(gcp.is_err(), "gcp: {shown}");
    }
}

#[tokio::test]
async fn a_service_that_hangs_costs_its_time_and_no_more() {
    let base = serve(|_| None).await;
    let patience = Duration::from_millis(50);
    let client = Client::new(&base, "x");
    let answer = client.ask(Method::GET, "/", &[], patience).await;
    assert!(answer.unwrap_err().to_string().contains("50ms"));
    // Nobody there at all.
    let gone: Base = "http://127.0.0.1:1".parse().unwrap();
    let answer = Client::new(&gone, "x").get("/", &[], patience).await;
    assert!(answer.is_err());
}

fn notice(id: &str) -> Interruption {
    Interruption {
        kind: InterruptionKind::Spot.into(),
        id: id.to_owned(),
        ..Interruption::default()
    }
}

fn trouble() -> ask::Trouble {
    ask::Trouble::Network("refused".to_owned())
}

#[test]
fn what_was_said_stands_until_its_end_is_said_twice() {
    let (all, notices) = watch::channel(None);
    let whole = Whole {
        cloud: Cloud::Aws,
        all,
        parts: Arc::default(),
    };
    let mut source = feed::sources(Cloud::Aws, &Base::default()).remove(0);
    let mut state = State::default();
    let said = |notices: &Notices| notices.borrow().clone();
    // Never heard: asked again ever more rarely, and nothing is known.
    let waits: Vec<_> = (0..12)
        .map(|_| state.take(&mut source, Err(trouble()), &whole))
        .collect();
    assert!(
        waits.is_sorted() && waits[11] == Duration::from_secs(300),
        "{waits:?}"
    );
    assert_eq!(said(&notices), None);
    let wait = state.take(&mut source, Ok(Vec::new()), &whole);
    assert_eq!(
        (wait, said(&notices)),
        (Duration::from_secs(5), Some(Vec::new()))
    );
    state.take(&mut source, Ok(vec![notice("a")]), &whole);
    // Heard before: asked again soon.
    for _ in 0..10 {
        let wait = state.take(&mut source, Err(trouble()), &whole);
        assert!(wait <= Duration::from_secs(10), "{wait:?}");
    }
    assert_eq!(said(&notices), Some(vec![notice("a")]));
    state.take(&mut source, Ok(Vec::new()), &whole);
    assert_eq!(said(&notices), Some(vec![notice("a")]));
    state.take(&mut source, Ok(Vec::new()), &whole);
    assert_eq!(said(&notices), Some(Vec::new()));
}

#[tokio::test]
async fn a_machine_of_no_cloud_asks_nobody() {
    let root = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let base = serve(|_| panic!("asked")).await;
    for whose in [CloudMetadata::Auto, CloudMetadata::None] {
        let mut notices = start(whose, Some(base.clone()), root.path(), &stop);
        assert!(notices.changed().await.is_err());
    }
}

#[tokio::test]
async fn a_notice_is_heard_from_end_to_end() {
    let began = Instant::now();
    let base = serve(|head| match head {
        _ if head.starts_with("put") => ok("token"),
        _ if head.contains("/spot/") => ok(r#"{"action":"stop","time":"2026-01-02T03:04:05Z"}"#),
        _ => missing(),
    })
    .await;
    let stop = CancellationToken::new();
    let whose = CloudMetadata::Of(Cloud::Aws);
    let mut notices = start(whose, Some(base), Path::new("/"), &stop);
    let heard = notices.wait_for(Option::is_some);
    let heard = tokio::time::timeout(Duration::from_secs(20), heard).await;
    let heard = heard.unwrap_or_else(|_| panic!("nothing in {:?}", began.elapsed()));
    assert_eq!(
        kinds(heard.unwrap().as_ref().unwrap()),
        [InterruptionKind::Spot]
    );
    drop(stop.drop_guard());
    assert!(notices.wait_for(Option::is_none).await.is_err());
}
