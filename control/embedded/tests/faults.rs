//! Bad input, bad files, restarts: each has its own words, and everything else runs on.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::Server;
use http::{Method, Request, StatusCode};
use hyperion_embedded::{EmbeddedConfig, EmbeddedError, start};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::client::Body;
use serde_json::{Value, json};

/// Sends a request as it is; gives code and body.
async fn raw(
    client: &Client,
    method: Method,
    path: &str,
    kind: &str,
    body: Vec<u8>,
) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(Body::from(body))
        .unwrap();
    let reply = client.send(request).await.unwrap();
    let code = reply.status();
    let bytes = reply.into_body().collect_bytes().await.unwrap();
    (
        code,
        serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())),
    )
}

fn config(folder: &Path, api_addr: SocketAddr) -> EmbeddedConfig {
    EmbeddedConfig {
        data_dir: folder.to_owned(),
        api_addr,
        kubeconfig_out: None,
        service_proxies: BTreeMap::new(),
    }
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

#[test]
fn bad_requests_get_a_status_that_names_the_problem() {
    let server = Server::start();
    server.block_on(async {
        let client = server.client().await;
        let maps = "/api/v1/namespaces/default/configmaps";
        let map = |name: &str| {
            json!({ "metadata": { "name": name } })
                .to_string()
                .into_bytes()
        };
        let bomb = (0..30).fold("a0: &a0 [x]\n".to_owned(), |text, i| {
            let next = i + 1;
            format!("{text}a{next}: &a{next} [*a{i}, *a{i}, *a{i}]\n")
        });
        let layers = format!("{{\"data\":{}1{}}}", "[".repeat(110), "]".repeat(110)).into_bytes();
        let deep = format!("{{\"a\":{}", "[".repeat(5000)).into_bytes();
        for (method, path, kind, body, code, words) in [
            (
                Method::POST,
                maps,
                "application/json",
                b"{".to_vec(),
                400,
                "not valid JSON",
            ),
            (
                Method::POST,
                maps,
                "application/yaml",
                b"a: [".to_vec(),
                400,
                "not valid YAML",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                deep,
                400,
                "not valid JSON",
            ),
            (
                Method::POST,
                maps,
                "application/yaml",
                bomb.into_bytes(),
                400,
                "not valid YAML",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                layers,
                400,
                "levels deep",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                b"[1]".to_vec(),
                400,
                "not an object",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                br#"{"kind":"Pod","apiVersion":"v1"}"#.to_vec(),
                400,
                "do not match the expected ones",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                br#"{"metadata":7}"#.to_vec(),
                400,
                "metadata must be an object",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                br#"{"metadata":{}}"#.to_vec(),
                422,
                "name or generateName is required",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                br#"{"metadata":{"name":"x"},"data":{"a":1}}"#.to_vec(),
                400,
                "data.a in body must be of type string",
            ),
            (
                Method::POST,
                maps,
                "text/plain",
                map("x"),
                415,
                "unknown format",
            ),
            (
                Method::POST,
                maps,
                "application/vnd.kubernetes.protobuf",
                b"k8s\0\xff\xff".to_vec(),
                400,
                "not valid protobuf",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                vec![b' '; (3 << 20) + 1],
                413,
                "too large",
            ),
            (
                Method::PUT,
                maps,
                "application/json",
                map("x"),
                405,
                "does not allow this method",
            ),
            (
                Method::POST,
                &format!("{maps}?dryRun=Some"),
                "application/json",
                map("x"),
                422,
                "dryRun",
            ),
            (
                Method::GET,
                "/nothing/here",
                "",
                vec![],
                404,
                "could not find the requested resource",
            ),
            (
                Method::GET,
                "/api/v1/nothings",
                "",
                vec![],
                404,
                "could not find the requested resource",
            ),
            (
                Method::GET,
                "/apis/x.y/v1/z",
                "",
                vec![],
                404,
                "could not find the requested resource",
            ),
            (
                Method::GET,
                "/api/v1/pods/%zz",
                "",
                vec![],
                404,
                "could not find the requested resource",
            ),
            (
                Method::GET,
                &format!("{maps}?labelSelector=a%20in%201"),
                "",
                vec![],
                400,
                "unable to parse requirement",
            ),
            (
                Method::GET,
                &format!("{maps}?limit=many"),
                "",
                vec![],
                400,
                "limit",
            ),
            (
                Method::GET,
                &format!("{maps}?continue=zzz"),
                "",
                vec![],
                400,
                "continue key is not valid",
            ),
            (
                Method::GET,
                &format!("{maps}?watch=1&resourceVersion=x"),
                "",
                vec![],
                400,
                "resourceVersion",
            ),
            (
                Method::PATCH,
                &format!("{maps}/x"),
                "application/apply-patch+yaml",
                b"a: b".to_vec(),
                422,
                "fieldManager: Required value",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                br#"{"metadata":{"name":"x"},"data":{"a b":""}}"#.to_vec(),
                422,
                "a valid config key",
            ),
            (
                Method::POST,
                maps,
                "application/json",
                br#"{"metadata":{"name":"x","resourceVersion":"1"}}"#.to_vec(),
                500,
                "resourceVersion should not be set",
            ),
            (
                Method::GET,
                &format!("{maps}?fieldSelector=data.x%3D1"),
                "",
                vec![],
                400,
                "is not a known field selector",
            ),
            (
                Method::GET,
                &format!("{maps}?resourceVersion=x"),
                "",
                vec![],
                400,
                "resourceVersion",
            ),
            (
                Method::PATCH,
                &format!("{maps}/x?fieldManager=one"),
                "application/apply-patch+yaml",
                b"{apiVersion: v1, kind: ConfigMap}".to_vec(),
                400,
                "name must be provided",
            ),
            (
                Method::PATCH,
                &format!("{maps}/x?fieldManager=one"),
                "application/apply-patch+yaml",
                b"{data: {a: b}}".to_vec(),
                400,
                "has no kind",
            ),
            (
                Method::PATCH,
                &format!("{maps}/x?force=true"),
                "application/merge-patch+json",
                map("x"),
                422,
                "may not be specified for non-apply patch",
            ),
            (
                Method::DELETE,
                &format!("{maps}/nope"),
                "",
                vec![],
                404,
                "configmaps \\\"nope\\\" not found",
            ),
        ] {
            let (found, status) = raw(&client, method.clone(), path, kind, body).await;
            let text = status.to_string();
            assert_eq!(found.as_u16(), code, "{method} {path}: {text}");
            assert_eq!(status["kind"], "Status", "{text}");
            assert!(text.contains(words), "{method} {path}: {text}");
        }
        let (code, _) = raw(&client, Method::POST, maps, "application/json", map("good")).await;
        assert_eq!(code, StatusCode::CREATED, "it still works");
    });
}

#[test]
fn strangers_see_nothing_but_health() {
    let server = Server::start();
    server.block_on(async {
        for token in [None, Some("wrong")] {
            let mut config = server.config().await;
            config.auth_info.token = token.map(|t: &str| t.to_owned().into());
            let client = Client::try_from(config).unwrap();
            let (code, status) = raw(&client, Method::GET, "/api/v1/secrets", "", vec![]).await;
            assert_eq!(code, StatusCode::UNAUTHORIZED);
            assert_eq!(status["reason"], "Unauthorized");
            for open in ["/healthz", "/livez", "/readyz", "/version"] {
                let (code, _) = raw(&client, Method::GET, open, "", vec![]).await;
                assert_eq!(code, StatusCode::OK, "{open}");
            }
        }
    });
}

#[test]
fn a_flood_of_strange_connections_does_no_harm() {
    let server = Server::start();
    let mut open: Vec<TcpStream> = (0..300)
        .map(|_| TcpStream::connect(server.address()).unwrap())
        .collect();
    for stream in &mut open {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n\0\xff\xff");
    }
    server.block_on(async {
        let client = server.client().await;
        let (code, _) = raw(&client, Method::GET, "/readyz", "", vec![]).await;
        assert_eq!(code, StatusCode::OK);
    });
}

#[test]
fn objects_identity_and_revisions_survive_a_restart() {
    let mut server = Server::start();
    let before = std::fs::read_to_string(server.kubeconfig()).unwrap();
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&server.kubeconfig()), 0o600);
    assert_eq!(mode(&server.folder.path().join("data/api.redb")), 0o600);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kept" },
        "data": { "a": "b" } });
    let apply = |client: Client| {
        let map = map.clone();
        async move {
            let api: Api<ConfigMap> = Api::default_namespaced(client);
            let params = PatchParams::apply("test");
            api.patch("kept", &params, &Patch::Apply(map))
                .await
                .unwrap()
        }
    };
    let first = server.block_on(async { apply(server.client().await).await });
    server.block_on(async {
        let api: Api<ConfigMap> = Api::default_namespaced(server.client().await);
        let gone =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "gone" } });
        api.patch("gone", &PatchParams::apply("test"), &Patch::Apply(gone))
            .await
            .unwrap();
        api.delete("gone", &Default::default()).await.unwrap();
    });
    server.restart();
    assert_eq!(
        std::fs::read_to_string(server.kubeconfig()).unwrap(),
        before
    );
    server.block_on(async {
        let client = server.client().await;
        let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
        assert_eq!(api.get("kept").await.unwrap(), first);
        assert!(api.get_opt("gone").await.unwrap().is_none());
        let list = api.list(&Default::default()).await.unwrap();
        let revision: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
        let own: u64 = first.metadata.resource_version.unwrap().parse().unwrap();
        assert!(
            revision >= own + 2,
            "the deletion counts: {revision} after {own}"
        );
    });
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let address = taken.local_addr().unwrap();
    let error = start(config(folder.path(), address)).await.err().unwrap();
    assert!(matches!(error, EmbeddedError::Listen { .. }));
    let text = error.to_string();
    assert!(
        text.contains(&address.to_string()) && text.contains("in use"),
        "{text}"
    );
}

#[tokio::test]
async fn a_damaged_store_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.redb");
    let server = start(config(folder.path(), any())).await.unwrap();
    server.shutdown().await;
    let good = std::fs::read(&path).unwrap();
    for bad in [
        b"this is no store".to_vec(),
        good[..good.len() / 3].to_vec(),
        vec![0; 100],
    ] {
        std::fs::write(&path, &bad).unwrap();
        let error = start(config(folder.path(), any())).await.err().unwrap();
        let text = error.to_string();
        assert!(
            text.contains("api.redb") && text.contains("restore the file"),
            "{text}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), bad, "not touched");
    }
    std::fs::write(&path, &good).unwrap();
    start(config(folder.path(), any()))
        .await
        .unwrap()
        .shutdown()
        .await;
}

#[tokio::test]
async fn a_store_of_a_newer_release_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    start(config(folder.path(), any()))
        .await
        .unwrap()
        .shutdown()
        .await;
    {
        let database = redb::Database::open(folder.path().join("api.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        let table = redb::TableDefinition::<&str, u64>::new("meta");
        transaction
            .open_table(table)
            .unwrap()
            .insert("version", 99)
            .unwrap();
        transaction.commit().unwrap();
    }
    let error = start(config(folder.path(), any()))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("version 99") && error.contains("newer release"),
        "{error}"
    );
}

#[tokio::test]
async fn a_second_server_on_the_same_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(config(folder.path(), any())).await.unwrap();
    let error = start(config(folder.path(), any()))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("api.redb"), "{error}");
    first.shutdown().await;
}

/// A file system of a given size, unmounted at the end.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(path: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        mount(path, options).then(|| Self(path.to_owned()))
    }
}

fn mount(path: &Path, options: &str) -> bool {
    let done = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", options, "tmpfs"])
        .arg(path)
        .status();
    done.is_ok_and(|s| s.success())
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let Some(_small) = Small::mount(&data, "size=6m") else {
        println!("SKIPPED: can't mount a small tmpfs");
        return;
    };
    let server = start(config(&data, any())).await.unwrap();
    let kubeconfig = kube::config::Kubeconfig::from_yaml(&server.kubeconfig_yaml()).unwrap();
    let options = Default::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options);
    let client = Client::try_from(config.await.unwrap()).unwrap();
    let path = "/api/v1/namespaces/default/configmaps";
    let text = "x".repeat(700_000);
    let create = |name: String| {
        let map = json!({ "metadata": { "name": name }, "data": { "a": text } }).to_string();
        let client = client.clone();
        async move {
            raw(
                &client,
                Method::POST,
                path,
                "application/json",
                map.into_bytes(),
            )
            .await
        }
    };
    let mut kept = 0;
    let full = loop {
        assert!(kept < 20, "the disk never filled");
        let (code, status) = create(format!("m{kept}")).await;
        if code != StatusCode::CREATED {
            break (code, status);
        }
        kept += 1;
    };
    assert_eq!(full.0, StatusCode::INSUFFICIENT_STORAGE, "{}", full.1);
    assert!(full.1.to_string().contains("No space left"), "{}", full.1);
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    assert_eq!(
        api.list(&Default::default()).await.unwrap().items.len(),
        kept
    );
    assert!(mount(&data, "remount,size=64m"));
    let (code, status) = create("after".to_owned()).await;
    assert_eq!(code, StatusCode::CREATED, "{status}");
    server.shutdown().await;
}

#[test]
fn the_service_proxy_hands_requests_on_without_the_token() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        let body = "hello";
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let key = |name: &str| ("kube-system".to_owned(), name.to_owned());
    let server = Server::with_proxies(BTreeMap::from([
        (key("web:http"), address),
        (key("dead:http"), closed),
    ]));
    server.block_on(async {
        let mut config = server.config().await;
        // A client that tries 503 again and again is right, but slow to watch.
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        let base = "/api/v1/namespaces/kube-system/services";
        let path = format!("{base}/web:http/proxy/a/b?c=d%20e");
        let (code, body) = raw(&client, Method::GET, &path, "", vec![]).await;
        assert_eq!((code, body), (StatusCode::OK, json!("hello")));
        for (name, words) in [
            ("dead:http", "error trying to reach service"),
            ("none:http", "no endpoints available"),
        ] {
            let path = format!("{base}/{name}/proxy/");
            let (code, status) = raw(&client, Method::GET, &path, "", vec![]).await;
            assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
            assert!(status.to_string().contains(words), "{status}");
        }
    });
    let request = served.join().unwrap();
    assert!(
        request.starts_with("GET /a/b?c=d%20e HTTP/1.1"),
        "{request}"
    );
    assert!(
        !request.to_lowercase().contains("authorization"),
        "{request}"
    );
}
