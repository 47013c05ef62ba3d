//! An unmodified kubectl does with custom resources what it does on a cluster.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::fs::File;
use std::process::Stdio;

use common::{CRD, Server, WORK, no_kubectl, read, until};

/// Each test says SKIPPED where there is no kubectl.
macro_rules! with_kubectl {
    ($name:ident, $server:ident => $body:block) => {
        #[test]
        fn $name() {
            if no_kubectl() {
                return;
            }
            let $server = Server::with_work();
            $body
        }
    };
}

with_kubectl!(get_prints_the_definitions_columns, server => {
    let table = server.kubectl("get works").ok();
    let mut lines = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap(), ["NAME", "GOAL", "PHASE", "AGE"]);
    let row = lines.next().unwrap();
    assert_eq!(&row[..2], ["llm", "latency"]);
    assert!(server.kubectl("get wk -o wide").ok().contains("COST/H"));
    assert!(server.kubectl("get example").ok().contains("llm"), "by category");
    assert_eq!(server.kubectl("get works -o name").ok(), "work.example.com/llm\n");
    assert_eq!(
        server.kubectl("get work llm -o jsonpath={.spec.replicas}{.spec.type}").ok(),
        "1service",
        "defaults of the schema"
    );
    server.kubectl("create secret generic s --from-literal=a=b").ok();
    let all = server.kubectl("get works,secrets,ns").ok();
    for part in ["work.example.com/llm", "secret/s", "namespace/default"] {
        assert!(all.contains(part), "{all}");
    }
});

with_kubectl!(apply_again_changes_and_then_leaves_alone, server => {
    let changed = WORK.replace("goal: latency", "goal: cost").replace("    args:", "    noargs:");
    let refused = server.kubectl_in("apply -f -", &changed).fails();
    assert!(refused.contains(r#"strict decoding error: unknown field "spec.template.noargs""#), "{refused}");
    let changed = WORK.replace("goal: latency", "goal: cost");
    assert_eq!(server.kubectl_in("apply -f -", &changed).ok(), "work.example.com/llm configured\n");
    assert_eq!(server.kubectl_in("apply -f -", &changed).ok(), "work.example.com/llm unchanged\n");
    let without = changed.replace("    geographies: [US, EU]\n", "");
    server.kubectl_in("apply -f -", &without).ok();
    assert_eq!(server.kubectl("get work llm -o jsonpath={.spec.policy}").ok(), r#"{"goal":"cost"}"#);
    assert_eq!(server.kubectl("get work llm -o jsonpath={.metadata.generation}").ok(), "3");
});

with_kubectl!(bad_objects_are_refused_with_the_field, server => {
    let bad = WORK.replace("name: llm", "name: bad");
    for (from, to, expected) in [
        ("goal: latency", "goal: fast", r#"spec.policy.goal: Unsupported value: "fast": supported values: "cost", "latency", "default""#),
        ("image: registry.example/llm:1", "args2: []", r#"unknown field "spec.template.args2""#),
        ("image: registry.example/llm:1", "image: 7", r#"spec.template.image: Invalid value: "integer": spec.template.image in body must be of type string: "integer""#),
        ("[US, EU]", "[Mars]", r#"spec.policy.geographies[0]: Unsupported value: "Mars""#),
        ("  policy:", "  exclusive: true\n  replicas: 2\n  policy:", r#"spec: Invalid value: an exclusive workload has one replica"#),
        ("  policy:", "  replicas: -1\n  policy:", "spec.replicas: Invalid value: -1: spec.replicas in body should be greater than or equal to 0"),
        ("name: bad", "name: Bad_Name", "metadata.name: Invalid value: \"Bad_Name\": a lowercase RFC 1123 subdomain"),
        ("{ app: llm }", "{ app: 'a b' }", "metadata.labels: Invalid value: \"a b\""),
    ] {
        let text = bad.replace(from, to);
        assert_ne!(text, bad, "{from}");
        let error = server.kubectl_in("apply -f -", &text).fails();
        assert!(error.contains(expected), "{expected}\n{error}");
    }
    let changed = WORK.replace("  policy:", "  type: job\n  policy:");
    let error = server.kubectl_in("apply -f -", &changed).fails();
    assert!(error.contains("the type is fixed"), "{error}");
    let error = server.kubectl_in("apply -n nowhere -f -", &bad).fails();
    assert!(error.contains(r#"namespaces "nowhere" not found"#), "{error}");
    let error = server.kubectl_in("create -f -", WORK).fails();
    assert!(error.contains(r#"works.example.com "llm" already exists"#), "{error}");
    assert_eq!(server.kubectl("get works -o name").ok(), "work.example.com/llm\n");
});

with_kubectl!(describe_shows_the_events_of_the_object, server => {
    let uid = server.kubectl("get work llm -o jsonpath={.metadata.uid}").ok();
    let event = format!(r#"
apiVersion: v1
kind: Event
metadata: {{ name: llm.1, namespace: default }}
involvedObject: {{ apiVersion: example.com/v1alpha1, kind: Work, name: llm, namespace: default, uid: {uid} }}
reason: Placed
message: placed on edge-1
type: Normal
count: 1
firstTimestamp: "2026-01-02T03:04:05Z"
lastTimestamp: "2026-01-02T03:04:05Z"
source: {{ component: scheduler }}
"#);
    server.kubectl_in("create -f -", &event).ok();
    let other = event.replace("llm.1", "other.1").replace("name: llm,", "name: other,").replace(&uid, "other");
    server.kubectl_in("create -f -", &other.replace("edge-1", "edge-2")).ok();
    let text = server.kubectl("describe work llm").ok();
    assert!(text.contains("placed on edge-1") && !text.contains("edge-2"), "{text}");
    assert!(text.contains("Goal:    latency"), "{text}");
    let events = server.kubectl("events --for=work/llm").ok();
    assert!(events.contains("/llm") && events.contains("Placed"), "{events}");
    let other_group = server.kubectl("get events.events.k8s.io llm.1 -o jsonpath={.note}/{.regarding.name}").ok();
    assert_eq!(other_group, "placed on edge-1/llm");
});

with_kubectl!(explain_knows_the_schema, server => {
    let text = server.kubectl("explain work.spec.policy").ok();
    for part in ["Goal and constraints.", "goal\t<string>", "enum: cost, latency, default"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(server.kubectl("explain work").ok().contains("Standard object's metadata"));
    assert!(server.kubectl("explain pod.spec.containers.image").ok().contains("Container image name"));
    assert!(server.kubectl("explain work.metadata.labels").ok().contains("FIELD: labels"));
    let error = server.kubectl("explain work.spec.nothing").fails();
    assert!(error.contains("does not exist"), "{error}");
});

with_kubectl!(scale_label_annotate_and_edit_change_it, server => {
    server.kubectl("scale work llm --replicas=3").ok();
    assert_eq!(server.kubectl("get work llm -o jsonpath={.spec.replicas}").ok(), "3");
    let error = server.kubectl("scale work llm --current-replicas=9 --replicas=4").fails();
    assert!(error.contains("Expected replicas to be 9"), "{error}");
    server.kubectl("label work llm tier=gold").ok();
    server.kubectl("annotate work llm note=hi").ok();
    assert_eq!(server.kubectl("get works -l tier=gold,app -o name").ok(), "work.example.com/llm\n");
    assert_eq!(server.kubectl("get works -l tier!=gold -o name").ok(), "");
    assert_eq!(server.kubectl("get works --field-selector metadata.name=llm -o name").ok(), "work.example.com/llm\n");
    let error = server.kubectl("get works --field-selector spec.x=1").fails();
    assert!(error.contains("field label not supported: spec.x"), "{error}");
    server.kubectl("label work llm tier-").ok();
    assert_eq!(server.kubectl("get works -l tier -o name").ok(), "");
    let mut edit = server.command("edit work llm");
    edit.env("KUBE_EDITOR", "sed -i s/latency/cost/");
    assert_eq!(common::run(edit, "").ok(), "work.example.com/llm edited\n");
    assert_eq!(server.kubectl("get work llm -o jsonpath={.spec.policy.goal}").ok(), "cost");
});

with_kubectl!(status_is_apart_and_wait_sees_conditions, server => {
    server.kubectl_in("patch work llm --type=merge --patch-file=/dev/stdin", r#"{"status":{"phase":"Lost"}}"#).ok();
    assert_eq!(server.kubectl("get work llm -o jsonpath={.status.phase}").ok(), "");
    let waiting = server
        .command("wait --for=condition=Ready work/llm --timeout=20s")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = r#"{"spec":{"replicas":9},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}"#;
    server.kubectl_in("patch work llm --type=merge --subresource=status --patch-file=/dev/stdin", status).ok();
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        server.kubectl("get work llm -o jsonpath={.spec.replicas}/{.status.phase}/{.metadata.generation}").ok(),
        "1/Running/1"
    );
});

with_kubectl!(watch_prints_rows_as_they_change, server => {
    let path = server.folder.path().join("watch");
    let mut child = server
        .command("get works -w")
        .stdout(File::create(&path).unwrap())
        .spawn()
        .unwrap();
    until("first row", || read(&path).contains("latency"));
    server.kubectl_in("apply -f -", &WORK.replace("goal: latency", "goal: cost")).ok();
    until("changed row", || read(&path).contains("cost"));
    server.kubectl_in("apply -f -", &WORK.replace("name: llm", "name: second")).ok();
    until("new row", || read(&path).contains("second"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(read(&path).matches("NAME").count(), 1, "one heading: {}", read(&path));
});

with_kubectl!(server_side_apply_keeps_fields_apart, server => {
    let own = "apiVersion: example.com/v1alpha1\nkind: Work\nmetadata: { name: two }\nspec:\n  template: { image: a }\n";
    server.kubectl_in("apply --server-side --field-manager=one -f -", own).ok();
    let other = own.replace("template: { image: a }", "replicas: 2");
    server.kubectl_in("apply --server-side --field-manager=two -f -", &other).ok();
    let path = "-o jsonpath={.spec.template.image}/{.spec.replicas}";
    assert_eq!(server.kubectl(&format!("get work two {path}")).ok(), "a/2");
    let clash = own.replace("image: a", "image: b");
    let error = server.kubectl_in("apply --server-side --field-manager=two -f -", &clash).fails();
    assert!(error.contains(r#"Apply failed with 1 conflict: conflict with "one": .spec.template.image"#), "{error}");
    server.kubectl_in("apply --server-side --field-manager=two --force-conflicts -f -", &clash).ok();
    // What "two" applies no more goes back to its default.
    assert_eq!(server.kubectl(&format!("get work two {path}")).ok(), "b/1");
    let unknown = own.replace("image: a", "image: a, nope: 1");
    let error = server.kubectl_in("apply --server-side --field-manager=one -f -", &unknown).fails();
    assert!(error.contains(".spec.template.nope: field not declared in schema"), "{error}");
    // An object made by client-side apply migrates.
    assert_eq!(server.kubectl_in("apply --server-side -f -", WORK).ok(), "work.example.com/llm serverside-applied\n");
});

with_kubectl!(dry_run_and_diff_store_nothing, server => {
    server.kubectl_in("apply --dry-run=server -f -", &WORK.replace("name: llm", "name: dry")).ok();
    assert_eq!(server.kubectl("get works -o name").ok(), "work.example.com/llm\n");
    server.kubectl_in("diff -f -", WORK).ok();
    let diff = server.kubectl_in("diff -f -", &WORK.replace("goal: latency", "goal: cost"));
    assert!(diff.out.contains("+    goal: cost"), "{diff:?}");
    server.kubectl("delete work llm --dry-run=server").ok();
    assert_eq!(server.kubectl("get works -o name").ok(), "work.example.com/llm\n");
});

with_kubectl!(delete_waits_for_finalizers_and_collects_dependents, server => {
    let uid = server.kubectl("get work llm -o jsonpath={.metadata.uid}").ok();
    let child = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: child\n  ownerReferences: [{{ apiVersion: example.com/v1alpha1, kind: Work, name: llm, uid: {uid} }}]\n"
    );
    server.kubectl_in("apply -f -", &child).ok();
    server.kubectl_in("patch work llm --type=merge --patch-file=/dev/stdin", r#"{"metadata":{"finalizers":["example.com/f"]}}"#).ok();
    let deleting = server.command("delete work llm").stdout(Stdio::piped()).spawn().unwrap();
    until("deletion mark", || !server.kubectl("get work llm -o jsonpath={.metadata.deletionTimestamp}").ok().is_empty());
    assert!(server.kubectl("get cm child").success, "the owner is still there");
    server.kubectl_in("patch work llm --type=json --patch-file=/dev/stdin", r#"[{"op":"remove","path":"/metadata/finalizers"}]"#).ok();
    assert!(deleting.wait_with_output().unwrap().status.success());
    until("dependent gone", || !server.kubectl("get cm child").success);
    let error = server.kubectl("get work llm").fails();
    assert!(error.contains(r#"works.example.com "llm" not found"#), "{error}");
});

with_kubectl!(namespaces_and_definitions_go_with_their_content, server => {
    server.kubectl("create ns lab").ok();
    server.kubectl_in("apply -n lab -f -", WORK).ok();
    server.kubectl("delete ns lab").ok();
    assert_eq!(server.kubectl("get works -A -o name").ok(), "work.example.com/llm\n");
    let foreground = server.kubectl("delete work llm --cascade=foreground");
    assert!(foreground.success, "{foreground:?}");
    server.kubectl_in("apply -f -", WORK).ok();
    server.kubectl("delete crd works.example.com").ok();
    let error = server.kubectl("get works").fails();
    assert!(error.contains("works") || error.contains("could not find"), "{error}");
    // And comes back empty.
    server.kubectl_in("apply -f -", CRD).ok();
    until("served again", || server.kubectl("get works").success);
    assert_eq!(server.kubectl("get works -o name").ok(), "");
});

with_kubectl!(typed_commands_work, server => {
    server.kubectl("create configmap c --from-literal=a=b").ok();
    server.kubectl("create secret generic s --from-literal=a=b").ok();
    assert_eq!(server.kubectl("get secret s -o jsonpath={.data.a}").ok(), "Yg==");
    server.kubectl("create sa x").ok();
    server.kubectl("create service clusterip web --tcp=80:8080").ok();
    assert!(server.kubectl("get svc web").ok().contains("80/TCP"));
    assert_eq!(server.kubectl("auth can-i create works").ok(), "yes\n");
    assert!(server.kubectl("auth whoami").ok().contains("admin"));
    assert!(server.kubectl("cluster-info").ok().contains("is running at"));
    let resources = server.kubectl("api-resources").ok();
    for part in ["works", "wk", "example.com/v1alpha1", "leases", "customresourcedefinitions"] {
        assert!(resources.contains(part), "{resources}");
    }
    // It warns of servers that are much newer than itself.
    let version = server.kubectl("version");
    assert!(version.success && version.out.contains("Server Version: v1."), "{version:?}");
    server.kubectl("run p --image=x --env=A=1").ok();
    server.kubectl_in("patch pod p --patch-file=/dev/stdin", r#"{"spec":{"containers":[{"name":"p","image":"y"}]}}"#).ok();
    assert_eq!(server.kubectl("get pod p -o jsonpath={.spec.containers[0].image}{.spec.containers[0].env[0].value}").ok(), "y1");
    server.kubectl("replace --raw /api/v1/namespaces/default/pods/p -f /dev/null").fails();
    server.kubectl("get --raw /readyz").ok();
    server.kubectl("delete pods --all").ok();
    assert_eq!(server.kubectl("get pods -o name").ok(), "");
});
