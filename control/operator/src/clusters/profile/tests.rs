//! Profiles and plugins as the documentation has them, joined.

use kube::config::KubeConfigOptions;

use super::*;

/// A certificate as far as PEM goes; TLS would refuse it.
const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

fn base64(bytes: &[u8]) -> Value {
    serde_json::to_value(ByteString(bytes.to_vec())).unwrap()
}

/// A profile with what its status has.
fn profile(status: &Value) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ClusterProfile",
        "metadata": { "namespace": "fleet", "name": "east" },
        "spec": { "displayName": "east", "clusterManager": { "name": "manager" } },
        "status": status,
    })
}

fn offering(offers: &Value) -> Value {
    profile(&json!({
        "version": { "kubernetes": "1.33.1" },
        "conditions": [{ "type": "ControlPlaneHealthy", "status": "True", "reason": "Up",
            "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z" }],
        "accessProviders": offers,
    }))
}

/// One offer of `gke-fleet`, with a cluster that has this as well.
fn with(more: &Value) -> Value {
    let mut cluster = json!({ "server": "https://east.example:6443" });
    cluster
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    offering(&json!([{ "name": "gke-fleet", "cluster": cluster }]))
}

fn provider(name: &str, more: &Value) -> Value {
    let mut provider = json!({ "name": name, "execConfig": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": format!("/plugins/{name}"),
        "args": ["token"], "env": [{ "name": "HOME", "value": "/home" }],
        "provideClusterInfo": true } });
    provider
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    provider
}

fn plugins(providers: &[Value]) -> Plugins {
    serde_json::from_value(json!({ "providers": providers })).unwrap()
}

fn plain(names: &[&str]) -> Plugins {
    let providers: Vec<Value> = names.iter().map(|n| provider(n, &json!({}))).collect();
    plugins(&providers)
}

fn refused(profile: &Value) -> String {
    access(profile, &plain(&["gke-fleet"])).unwrap_err()
}

fn exec_of(profile: &Value, plugins: &Plugins) -> ExecConfig {
    let mut access = access(profile, plugins).unwrap();
    let user = access.kubeconfig.auth_infos.remove(0);
    user.auth_info.unwrap().exec.unwrap()
}

fn variables(exec: &ExecConfig) -> Vec<(&str, &str)> {
    let all = exec.env.iter().flatten();
    all.map(|v| (v["name"].as_str(), v["value"].as_str()))
        .collect()
}

#[tokio::test]
async fn the_plugin_is_told_the_cluster_that_the_client_goes_to() {
    let profile = with(&json!({
        "certificate-authority-data": base64(PEM),
        "tls-server-name": "inside.example",
        "extensions": [{ "name": "client.authentication.k8s.io/exec",
            "extension": { "clusterName": "east" } }],
    }));
    let access = access(&profile, &plain(&["gke-fleet"])).unwrap();
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(access.kubeconfig, &options)
        .await
        .unwrap();
    assert_eq!(config.cluster_url, "https://east.example:6443/");
    assert_eq!(config.tls_server_name.as_deref(), Some("inside.example"));
    assert_eq!(config.root_cert, Some(vec![vec![0, 0, 0]]));
    assert!(!config.accept_invalid_certs);
    let exec = config.auth_info.exec.unwrap();
    assert_eq!(exec.command.as_deref(), Some("/plugins/gke-fleet"));
    assert_eq!(exec.args, Some(vec!["token".to_owned()]));
    assert_eq!(exec.interactive_mode, Some(ExecInteractiveMode::Never));
    assert_eq!(variables(&exec), [("HOME", "/home")]);
    let told = exec.cluster.unwrap();
    assert_eq!(told.server.as_deref(), Some("https://east.example:6443"));
    assert_eq!(told.certificate_authority_data.as_deref(), Some(PEM));
    assert_eq!(told.tls_server_name.as_deref(), Some("inside.example"));
    assert_eq!(told.config, Some(json!({ "clusterName": "east" })));
}

#[test]
fn the_first_plugin_of_the_file_that_fits_is_taken() {
    let offers = |order: [&str; 2]| {
        offering(&json!(order.map(|name| json!({ "name": name,
            "cluster": { "server": format!("https://{name}.example") } }))))
    };
    let file = plain(&["none", "second", "first"]);
    for order in [["first", "second"], ["second", "first"]] {
        let exec = exec_of(&offers(order), &file);
        assert_eq!(exec.command.as_deref(), Some("/plugins/second"));
    }
    // By the field's first name; the second one counts where both are there.
    let old = json!([{ "name": "first", "cluster": { "server": "https://old.example" } }]);
    let server = |status: &Value| {
        let access = access(&profile(status), &file).unwrap();
        let cluster = access.kubeconfig.clusters[0].cluster.clone().unwrap();
        cluster.server.unwrap()
    };
    assert_eq!(
        server(&json!({ "credentialProviders": old })),
        "https://old.example"
    );
    let new = json!([{ "name": "first", "cluster": { "server": "https://new.example" } }]);
    assert_eq!(
        server(&json!({ "accessProviders": new, "credentialProviders": old })),
        "https://new.example"
    );
}

#[test]
fn it_is_another_source_where_the_access_is_another() {
    let file = plain(&["gke-fleet"]);
    let source = |profile: &Value| access(profile, &file).unwrap().source;
    let before = with(&json!({}));
    let mut observed = before.clone();
    observed["metadata"]["resourceVersion"] = json!("7");
    observed["status"]["version"]["kubernetes"] = json!("1.33.2");
    observed["status"]["accessProviders"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "name": "other", "cluster": {} }));
    assert_eq!(source(&observed), source(&before));
    for more in [
        json!({ "server": "https://west.example:6443" }),
        json!({ "certificate-authority-data": base64(PEM) }),
        json!({ "extensions": [{ "name": "client.authentication.k8s.io/exec", "extension": {} }] }),
    ] {
        assert_ne!(source(&with(&more)), source(&before), "{more}");
    }
}

#[test]
fn what_is_wrong_with_a_profile_is_named() {
    for status in [
        Value::Null,
        json!({}),
        json!({ "accessProviders": [] }),
        json!({ "accessProviders": "all" }),
    ] {
        assert_eq!(
            refused(&profile(&status)),
            "it offers no access (status.accessProviders)"
        );
    }
    let others: Vec<Value> = (0..10)
        .map(|n| json!({ "name": format!("p{n}"), "cluster": {} }))
        .collect();
    assert_eq!(
        refused(&offering(&json!(others))),
        "it offers access by \"p0\", \"p1\", \"p2\", \"p3\", \"p4\", \"p5\", \"p6\", \"p7\" and 2 more, \
         and the control plane has plugins for \"gke-fleet\""
    );
    assert_eq!(
        refused(&offering(&json!([{ "name": "gke-fleet" }]))),
        "access provider \"gke-fleet\": it has no cluster"
    );
    for (more, said) in [
        (json!({ "server": null }), "its cluster has no server"),
        (json!({ "server": "" }), "its cluster has no server"),
        (
            json!({ "server": "east.example:6443" }),
            "its server \"east.example:6443\" is no URL of an API server (https://HOST)",
        ),
        (
            json!({ "server": "ftp://east.example" }),
            "its server \"ftp://east.example\" is no URL of an API server (https://HOST)",
        ),
        (
            json!({ "server": 7 }),
            "its cluster is not of the documented form",
        ),
        (
            json!({ "certificate-authority-data": "no base64!" }),
            "its certificate-authority-data is no base64",
        ),
        (
            json!({ "certificate-authority-data": base64(b"-----BEGIN CERTIFICATE-----\n") }),
            "its certificate-authority-data is no PEM",
        ),
        (
            json!({ "certificate-authority-data": base64(b"certificate") }),
            "its certificate-authority-data has no certificate in it",
        ),
        (
            json!({ "proxy-url": "socks5://proxy.example" }),
            "it is behind a proxy (proxy-url), which is not supported",
        ),
    ] {
        assert_eq!(
            refused(&with(&more)),
            format!("access provider \"gke-fleet\": {said}"),
            "{more}"
        );
    }
    // Nothing of a profile is a file of ours.
    let file = with(&json!({ "certificate-authority": "/etc/passwd", "proxy-url": "" }));
    let access = access(&file, &plain(&["gke-fleet"])).unwrap();
    let cluster = access.kubeconfig.clusters[0].cluster.clone().unwrap();
    assert_eq!(
        (cluster.certificate_authority, cluster.proxy_url),
        (None, None)
    );
}

#[test]
fn arguments_and_variables_of_a_profile_are_taken_where_the_file_says_so() {
    let profile = |args: Value, envs: Value| {
        with(&json!({ "extensions": [
            { "name": ARGS, "extension": args }, { "name": ENVS, "extension": envs } ] }))
    };
    let good = profile(
        json!(["--tenant", "t"]),
        json!({ "HOME": "/theirs", "TENANT": "t" }),
    );
    let by = |args: &str, envs: &str| {
        plugins(&[provider(
            "gke-fleet",
            &json!({ "profileSourcedCLIArgsPolicy": args, "profileSourcedEnvVarsPolicy": envs }),
        )])
    };
    let exec = exec_of(&good, &plain(&["gke-fleet"]));
    assert_eq!(exec.args.as_ref().unwrap(), &["token"]);
    assert_eq!(variables(&exec), [("HOME", "/home")]);
    let exec = exec_of(&good, &by("Append", "AppendIfNotExists"));
    assert_eq!(exec.args.as_ref().unwrap(), &["token", "--tenant", "t"]);
    assert_eq!(variables(&exec), [("HOME", "/home"), ("TENANT", "t")]);
    let exec = exec_of(&good, &by("Ignore", "Replace"));
    assert_eq!(variables(&exec), [("HOME", "/theirs"), ("TENANT", "t")]);

    let bad = profile(json!({ "tenant": 7 }), json!(["TENANT"]));
    exec_of(&bad, &plain(&["gke-fleet"]));
    for (plugins, name) in [
        (by("Append", "Ignore"), ARGS),
        (by("Ignore", "Replace"), ENVS),
    ] {
        let said = access(&bad, &plugins).unwrap_err();
        assert!(said.contains(name), "{said}");
    }
}
