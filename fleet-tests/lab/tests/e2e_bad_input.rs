//! Bad input: each gets an error that names the field, the file or the peer, and everything else
//! runs on. In every test a service runs beside what goes wrong, and must not notice.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hyperion_lab::agent::Agent;
use hyperion_lab::control::{Control, Token};
use hyperion_lab::process::run;
use hyperion_lab::scene::{SOON, service, set};
use hyperion_lab::{AgentSpec, Fleet, FleetOptions, needs, wait};
use serde_json::{Value, json};

/// A fleet of one node with a service that must not notice anything.
struct Scene {
    fleet: Fleet,
    pids: BTreeSet<u32>,
}

impl Scene {
    fn new(name: &str) -> Option<Self> {
        if needs::skip(name) {
            return None;
        }
        let mut fleet = Fleet::start(&FleetOptions::new(name)).unwrap();
        fleet.add(&AgentSpec::edge("good")).unwrap();
        fleet.apply(&service("web", 1, None)).unwrap();
        fleet.wait_running("web-0", SOON).unwrap();
        let pids = fleet.wait_containers(None, 1).unwrap();
        Some(Self { fleet, pids })
    }

    /// The service runs as before, the control plane takes orders, nothing panicked.
    fn everything_else_runs_on(&mut self) {
        let node = self.fleet.node(0);
        let now = self.fleet.containerd.running(Some(&node)).unwrap();
        assert!(
            self.pids.iter().all(|p| now.contains(p)),
            "{:?} {now:?}",
            self.pids
        );
        assert!(self.fleet.control.process().ended().is_none());
        // Nodes that a test has lost are not waited for.
        let names = ["get", "hyperionnodes", "-o", "name"];
        let names = self.fleet.kubectl().run(&names).unwrap();
        for name in names.lines().filter_map(|l| l.rsplit('/').next()) {
            if name != node {
                self.fleet
                    .kubectl()
                    .hyperion(&["node", "cordon", name])
                    .unwrap();
            }
        }
        self.fleet.apply(&service("after", 1, None)).unwrap();
        self.fleet.wait_running("after-0", SOON).unwrap();
        self.fleet.no_panics().unwrap();
    }

    /// An agent with given data folder and token, not started.
    fn agent(&self, name: &str, token: Option<&Token>) -> Agent {
        let spec = AgentSpec::edge(name);
        let socket = self.fleet.containerd.socket();
        Agent::prepare(
            &self.fleet.dir,
            &self.fleet.control.link,
            &socket,
            token,
            &spec,
            None,
        )
    }
}

/// Runs an agent that must give up by itself; gives all it said.
fn gives_up(agent: &mut Agent) -> String {
    // It may end before its process can be looked at: that is what is wanted.
    let _early = agent.start();
    wait::until("the agent gives up", SOON, || {
        match agent.process().ended() {
            Some(status) if !status.success() => Ok(()),
            other => Err(format!("{other:?}: {}", agent.process().log_tail(3))),
        }
    })
    .unwrap();
    agent.log()
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn objects_that_make_no_sense_are_refused_and_name_the_field() {
    let Some(mut scene) = Scene::new("bad_objects") else {
        return;
    };
    let containers = "/spec/template/spec/containers";
    let limits = "/spec/template/spec/containers/0/resources/limits";
    let cases: &[(&str, Value, &[&str])] = &[
        (
            "/spec/policy/goal",
            json!("speed"),
            &["spec.policy.goal", "speed", "latency"],
        ),
        (
            "/spec/policy/constraints",
            json!({ "geographies": ["EU", "Atlantis"] }),
            &["spec.policy.constraints.geographies[1]", "Atlantis"],
        ),
        (
            "/spec/policy/constraints",
            json!({ "clouds": ["ovh"] }),
            &["spec.policy.constraints.clouds[0]", "ovh"],
        ),
        ("/spec/replicas", json!(-1), &["spec.replicas", "-1"]),
        ("/spec/replicas", json!(2_000_000_000), &["spec.replicas"]),
        ("/spec/replicas", json!("many"), &["spec.replicas"]),
        (limits, json!({ "cpu": "-1" }), &["cpu", "-1"]),
        (
            limits,
            json!({ "memory": "12 elephants" }),
            &["memory", "12 elephants"],
        ),
        (containers, json!([]), &["containers"]),
        ("/spec/template/spec", json!({}), &["containers"]),
        (
            "/spec/policy/maxHourlyCost",
            json!(-2.5),
            &["maxHourlyCost", "-2.5"],
        ),
        (
            "/spec/policy/disconnect",
            json!({ "replaceAfter": "soon" }),
            &["replaceAfter", "soon"],
        ),
    ];
    let mut wrong = Vec::new();
    for (path, value, words) in cases {
        let mut object = service("bad", 1, None);
        set(&mut object, path, value.clone());
        match scene.fleet.kubectl().refused(&object.to_string()) {
            Ok(complaint) => {
                let missing: Vec<_> = words.iter().filter(|w| !complaint.contains(**w)).collect();
                if !missing.is_empty() {
                    wrong.push(format!("{path}={value}: {missing:?} not in: {complaint}"));
                }
            }
            Err(e) => wrong.push(format!("{path}={value}: {e:#}")),
        }
    }
    // A quantity that is one, but absurd, passes the schema; the status refuses it by name.
    let mut absurd = service("absurd", 1, None);
    set(&mut absurd, limits, json!({ "memory": "999999999999Ei" }));
    scene.fleet.apply(&absurd).unwrap();
    wait::until("the status names the field", SOON, || {
        let object = scene
            .fleet
            .kubectl()
            .get(&["hyperionworkload", "absurd"])
            .unwrap();
        let status = object["status"].to_string();
        let named = ["containers[0].resources.limits.memory", "999999999999Ei"];
        if named.iter().all(|w| status.contains(w)) {
            Ok(())
        } else {
            Err(status)
        }
    })
    .unwrap();
    let complaint = scene.fleet.kubectl().refused("kind: [").unwrap();
    has(&complaint, &["yaml"]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    scene.everything_else_runs_on();
}

#[test]
fn a_missing_image_is_named_and_others_run() {
    let Some(mut scene) = Scene::new("missing_image") else {
        return;
    };
    let mut object = service("lost", 1, None);
    let image = "/spec/template/spec/containers/0/image";
    set(&mut object, image, json!("localhost/no-such-image:9"));
    scene.fleet.apply(&object).unwrap();
    let placement = scene
        .fleet
        .wait_placement("lost-0", SOON, |p| {
            // Before that it is being pulled, which names it too.
            p.reason.contains("Image") && p.message.contains("no-such-image")
        })
        .unwrap();
    assert_ne!(placement.phase, "Running", "{placement:?}");
    scene.everything_else_runs_on();
}

#[test]
fn a_template_larger_than_any_node_stays_pending_with_counts() {
    let Some(mut scene) = Scene::new("too_large") else {
        return;
    };
    let mut object = service("huge", 1, None);
    let requests = "/spec/template/spec/containers/0/resources/requests";
    set(
        &mut object,
        requests,
        json!({ "cpu": "900", "memory": "16Mi" }),
    );
    scene.fleet.apply(&object).unwrap();
    let status = wait::until("the reason", SOON, || {
        let object = scene
            .fleet
            .kubectl()
            .get(&["hyperionworkload", "huge"])
            .unwrap();
        let rejected = object["status"]["rejected"].as_array().map_or(0, Vec::len);
        if rejected > 0 {
            Ok(object["status"].clone())
        } else {
            Err(object.to_string())
        }
    })
    .unwrap();
    assert_eq!(status["phase"], "Pending", "{status}");
    assert_eq!(status["rejected"][0]["constraint"], "cpu", "{status}");
    assert_eq!(status["rejected"][0]["count"], 1, "{status}");
    scene.everything_else_runs_on();
}

#[test]
fn tokens_that_are_wrong_expired_used_or_revoked_are_refused_by_name() {
    let Some(mut scene) = Scene::new("bad_tokens") else {
        return;
    };
    let good = scene.fleet.control.token("lab", 1).unwrap();

    let wrong = Token {
        token: format!("{}.{}", good.id(), "x".repeat(26)),
        ..good.clone()
    };
    let said = gives_up(&mut scene.agent("wrong", Some(&wrong)));
    has(&said, &[good.id(), "wrong"]);
    assert!(
        !said.contains(&wrong.token),
        "the secret is in the log: {said}"
    );

    let mut first = scene.agent("first", Some(&good));
    first.start().unwrap();
    first.wait_ready(&scene.fleet.control).unwrap();
    let said = gives_up(&mut scene.agent("second", Some(&good)));
    has(&said, &[good.id(), "used"]);

    let short = ["--site", "lab", "--ttl", "1s"];
    let expired = scene.fleet.control.token_with(&short).unwrap();
    wait::holds("the token runs out", Duration::from_secs(2), || Ok(())).unwrap();
    let said = gives_up(&mut scene.agent("late", Some(&expired)));
    has(&said, &[expired.id(), "expired"]);

    let revoked = scene.fleet.control.token("lab", 1).unwrap();
    let revoke = ["token", "revoke", revoked.id()];
    scene.fleet.kubectl().hyperion(&revoke).unwrap();
    let said = gives_up(&mut scene.agent("revoked", Some(&revoked)));
    has(&said, &[revoked.id(), "revoked"]);

    let elsewhere = scene.fleet.control.token("other-site", 1).unwrap();
    let said = gives_up(&mut scene.agent("elsewhere", Some(&elsewhere)));
    has(&said, &["other-site", "lab"]);

    first.kill();
    scene.everything_else_runs_on();
}

#[test]
fn another_fleets_ca_and_certificate_are_refused() {
    if needs::skip_on_given("other_ca") {
        return;
    }
    let Some(mut scene) = Scene::new("other_ca") else {
        return;
    };
    // The agent does not enrol with a control plane whose CA is not the one it was told.
    let token = scene.fleet.control.token("lab", 1).unwrap();
    let wrong = Token {
        fingerprint: format!("sha256:{}", "ab".repeat(32)),
        ..token
    };
    let mut misled = scene.agent("misled", Some(&wrong));
    misled.start().unwrap();
    wait::until("a complaint about the CA", SOON, || {
        let log = misled.log();
        if log.contains("fingerprint") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .unwrap();
    misled.kill();

    // A second fleet; its node comes to the first with the second's certificate.
    let other = scene.fleet.dir.join("other");
    std::fs::create_dir_all(other.join("logs")).unwrap();
    let mut second = Control::prepare(&other, "127.0.0.1", "127.0.0.1", &[]).unwrap();
    second.start().unwrap();
    let token = second.token("lab", 1).unwrap();
    let socket = scene.fleet.containerd.socket();
    let spec = AgentSpec::edge("stranger");
    let mut stranger = Agent::prepare(&other, &second.link, &socket, Some(&token), &spec, None);
    stranger.start().unwrap();
    stranger.wait_ready(&second).unwrap();
    stranger.kill();
    let link = scene.fleet.control.link.clone();
    let args: Vec<String> = stranger
        .process()
        .args()
        .iter()
        .map(|a| {
            if a == &second.link {
                link.clone()
            } else {
                a.clone()
            }
        })
        .collect();
    stranger.process().set_args(args);
    stranger.start().unwrap();
    wait::until("a complaint about the certificate", SOON, || {
        let log = stranger.process().log_tail(3).to_lowercase();
        if log.contains("certificate") || log.contains("fingerprint") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .unwrap();
    let nodes = scene
        .fleet
        .kubectl()
        .run(&["get", "hyperionnodes"])
        .unwrap();
    assert!(!nodes.contains(&stranger.node), "{nodes}");
    stranger.kill();
    drop(second);
    scene.everything_else_runs_on();
}

#[test]
fn a_revoked_node_is_turned_away() {
    let Some(mut scene) = Scene::new("revoked_node") else {
        return;
    };
    let at = scene.fleet.add(&AgentSpec::edge("thief")).unwrap();
    let node = scene.fleet.node(at);
    scene
        .fleet
        .kubectl()
        .hyperion(&["node", "revoke", &node])
        .unwrap();
    scene.fleet.wait_node(&node, "False").unwrap();
    scene.fleet.wait_log(at, "revoked").unwrap();
    scene.fleet.agent(at).unwrap().kill();
    scene.everything_else_runs_on();
}

#[test]
fn two_devices_with_one_identity_do_not_take_turns() {
    let Some(mut scene) = Scene::new("cloned_device") else {
        return;
    };
    let node = scene.fleet.node(0);
    let original = scene.fleet.agent(0).unwrap().data.clone();
    let mut clone = scene.agent("clone", None);
    copy_folder(&original, &clone.data);
    clone.start().unwrap();
    wait::until("the clone is refused", SOON, || {
        let log = clone.log();
        if log.contains("already") || log.contains("another") || log.contains("two") {
            Ok(())
        } else {
            Err(clone.process().log_tail(3))
        }
    })
    .unwrap();
    let object = scene.fleet.kubectl().get(&["hyperionnode", &node]).unwrap();
    assert_eq!(object["status"]["ready"], "True", "{object}");
    let label = &object["status"]["labels"]["lab.hyperion.io/agent"];
    assert_eq!(label, "good", "the clone took the node over");
    clone.kill();
    scene.everything_else_runs_on();
}

#[test]
fn a_truncated_store_is_moved_aside_and_containers_are_adopted() {
    let Some(mut scene) = Scene::new("truncated_store") else {
        return;
    };
    scene.fleet.agent(0).unwrap().kill();
    let data = scene.fleet.agent(0).unwrap().data.clone();
    let store = data.join("store.redb");
    let bytes = std::fs::read(&store).unwrap();
    std::fs::write(&store, &bytes[..bytes.len() / 3]).unwrap();
    scene.fleet.start_agent(0).unwrap();
    scene.fleet.wait_agent(0).unwrap();
    scene.fleet.wait_log(0, "store.redb").unwrap();
    let aside = std::fs::read_dir(&data)
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("store.redb"))
        .count();
    assert!(aside >= 2, "the torn file was not kept");
    scene
        .fleet
        .containers_stay(&scene.pids, Duration::from_secs(3))
        .unwrap();
    scene.everything_else_runs_on();
}

#[test]
fn a_store_of_a_newer_version_is_left_alone_and_named() {
    let Some(mut scene) = Scene::new("newer_store") else {
        return;
    };
    let at = scene.fleet.add(&AgentSpec::edge("newer")).unwrap();
    scene.fleet.agent(at).unwrap().kill();
    let store = scene.fleet.agent(at).unwrap().data.join("store.redb");
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    {
        let db = redb::Database::create(&store).unwrap();
        let tx = db.begin_write().unwrap();
        tx.open_table(meta).unwrap().insert("schema", 99).unwrap();
        tx.commit().unwrap();
    }
    let all = |db: &redb::Database| -> Vec<(String, u64)> {
        let tx = redb::ReadableDatabase::begin_read(db).unwrap();
        let table = tx.open_table(meta).unwrap();
        let rows = redb::ReadableTable::iter(&table).unwrap();
        rows.map(|row| row.map(|(k, v)| (k.value().to_owned(), v.value())).unwrap())
            .collect()
    };
    let before = all(&redb::Database::create(&store).unwrap());
    let said = gives_up(scene.fleet.agent(at).unwrap());
    has(&said, &["store.redb", "99"]);
    assert_eq!(all(&redb::Database::create(&store).unwrap()), before);
    scene.everything_else_runs_on();
}

#[test]
fn an_absent_containerd_is_named_and_used_when_it_comes() {
    if needs::skip("absent_containerd") {
        return;
    }
    let mut fleet = Fleet::prepare(&FleetOptions::new("absent_containerd")).unwrap();
    fleet.start_control().unwrap();
    let at = fleet.add_only(&AgentSpec::edge("early")).unwrap();
    fleet.wait_log(at, "containerd.sock").unwrap();
    assert!(fleet.agent(at).unwrap().process().ended().is_none());
    fleet.start_containerd().unwrap();
    fleet.wait_agent(at).unwrap();
    fleet.apply(&service("web", 1, None)).unwrap();
    fleet.wait_running("web-0", SOON).unwrap();
    fleet.no_panics().unwrap();
}

#[test]
fn a_device_that_starts_before_its_network_joins_when_it_is_there() {
    if needs::skip_devices("before_the_network") {
        return;
    }
    let options = FleetOptions::new("before_the_network").devices();
    let mut fleet = Fleet::start(&options).unwrap();
    let at = fleet.prepare_agent(&AgentSpec::edge("early")).unwrap();
    let device = fleet.agent(at).unwrap().device.clone().unwrap();
    device.unplug().unwrap();
    fleet.start_agent(at).unwrap();
    fleet.wait_log(at, "Network is unreachable").unwrap();
    device.plug().unwrap();
    fleet.wait_agent(at).unwrap();
    // The same for a device that is of the fleet already.
    fleet.agent(at).unwrap().kill();
    device.unplug().unwrap();
    fleet.start_agent(at).unwrap();
    fleet.wait_log(at, "no connection").unwrap();
    device.plug().unwrap();
    fleet.apply(&service("web", 1, None)).unwrap();
    fleet.wait_running("web-0", SOON).unwrap();
    fleet.no_panics().unwrap();
}

#[test]
fn a_taken_port_is_named() {
    if needs::skip_on_given("taken_port") {
        return;
    }
    let Some(mut scene) = Scene::new("taken_port") else {
        return;
    };
    let taken = [
        ("--api-addr", scene.fleet.control.api.clone()),
        ("--link-addr", scene.fleet.control.link.clone()),
        ("--http-addr", scene.fleet.control.http.clone()),
    ];
    for (n, (flag, address)) in taken.into_iter().enumerate() {
        let dir = scene.fleet.dir.join(format!("second-{n}"));
        std::fs::create_dir_all(dir.join("logs")).unwrap();
        let mut second = Control::prepare(&dir, "127.0.0.1", "127.0.0.1", &[]).unwrap();
        let mut args = second.process().args().to_vec();
        let Some(at) = args.iter().position(|a| a == flag) else {
            // A real API server has its own port.
            continue;
        };
        args[at + 1].clone_from(&address);
        second.process().set_args(args);
        second.start_cluster_only().unwrap();
        second.wait_cluster().unwrap();
        let _early = second.start_only();
        let status = wait::until("it gives up", SOON, || {
            second
                .process()
                .ended()
                .ok_or_else(|| second.process().log_tail(3))
        })
        .unwrap();
        assert!(!status.success());
        has(&second.process().log(), &[&address]);
    }
    let http = scene.fleet.control.http.clone();
    let token = scene.fleet.control.token("lab", 1).unwrap();
    let spec = AgentSpec::edge("port").flag("--http-addr", &http);
    let socket = scene.fleet.containerd.socket();
    let link = scene.fleet.control.link.clone();
    let mut agent = Agent::prepare(&scene.fleet.dir, &link, &socket, Some(&token), &spec, None);
    has(&gives_up(&mut agent), &[&http]);
    scene.everything_else_runs_on();
}

#[test]
fn an_agent_on_a_full_disk_says_so_and_keeps_its_containers() {
    let Some(mut scene) = Scene::new("full_disk_agent") else {
        return;
    };
    let data = scene.fleet.dir.join("agents/small");
    std::fs::create_dir_all(&data).unwrap();
    let mount = data.display().to_string();
    run("mount", &["-t", "tmpfs", "-o", "size=8m", "tmpfs", &mount]).unwrap();
    let at = scene
        .fleet
        .add(&AgentSpec::edge("small").label("disk", "small"))
        .unwrap();
    let node = scene.fleet.node(at);
    // The other node takes nothing new, so that what follows lands on the small one.
    let good = scene.fleet.node(0);
    scene
        .fleet
        .kubectl()
        .hyperion(&["node", "cordon", &good])
        .unwrap();
    scene.fleet.apply(&service("first", 1, None)).unwrap();
    scene.fleet.wait_running("first-0", SOON).unwrap();
    let first = scene.fleet.wait_containers(Some(&node), 1).unwrap();

    fill(&data);
    // More than what may be free within the store's file, where a small one just fits now and then.
    let padding = json!([
        { "name": "PADDING_A", "value": "x".repeat(100 << 10) },
        { "name": "PADDING_B", "value": "x".repeat(100 << 10) },
    ]);
    for n in 0..4 {
        let mut large = service(&format!("large-{n}"), 1, None);
        set(
            &mut large,
            "/spec/template/spec/containers/0/env",
            padding.clone(),
        );
        scene.fleet.apply(&large).unwrap();
    }
    scene.fleet.wait_log(at, "No space left on device").unwrap();
    assert!(scene.fleet.agent(at).unwrap().process().ended().is_none());
    let now = scene.fleet.containerd.running(Some(&node)).unwrap();
    assert!(first.iter().all(|p| now.contains(p)));

    std::fs::remove_file(data.join("filler")).unwrap();
    for n in 0..4 {
        scene
            .fleet
            .wait_running(&format!("large-{n}-0"), SOON)
            .unwrap();
    }
    scene
        .fleet
        .kubectl()
        .hyperion(&["node", "uncordon", &good])
        .unwrap();
    scene.everything_else_runs_on();
    scene.fleet.agent(at).unwrap().kill();
}

#[test]
fn a_control_plane_on_a_full_disk_refuses_writes_and_recovers() {
    if needs::skip("full_disk_control") || needs::skip_unless_embedded("full_disk_control") {
        return;
    }
    let mut fleet = Fleet::prepare(&FleetOptions::new("full_disk_control")).unwrap();
    let data = fleet.dir.join("control");
    std::fs::create_dir_all(&data).unwrap();
    let mount = data.display().to_string();
    run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", &mount]).unwrap();
    fleet.start_containerd().unwrap();
    fleet.start_control().unwrap();
    fleet.add(&AgentSpec::edge("edge-1")).unwrap();
    fleet.apply(&service("web", 1, None)).unwrap();
    fleet.wait_running("web-0", SOON).unwrap();
    let pids = fleet.wait_containers(None, 1).unwrap();

    fill(&data);
    // Room that the store already has may be used up first.
    let padding = "x".repeat(500_000);
    let refused = wait::until("a refused write", SOON, || {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "generateName": "filler-", "namespace": "default" },
            "data": { "padding": padding },
        });
        let args = ["create", "-f", "-"];
        let out = fleet
            .kubectl()
            .output(&args, Some(&object.to_string()))
            .unwrap();
        if out.success {
            Err("accepted".to_owned())
        } else {
            Ok(out.stderr)
        }
    })
    .unwrap();
    assert!(
        refused.contains("space") || refused.contains("disk") || refused.contains("storage"),
        "{refused}"
    );
    assert!(fleet.control.process().ended().is_none());
    fleet.kubectl().run(&["get", "hyperionworkloads"]).unwrap();
    fleet
        .containers_stay(&pids, Duration::from_secs(2))
        .unwrap();

    std::fs::remove_file(data.join("filler")).unwrap();
    wait::until("writes work again", SOON, || {
        let out = fleet.apply(&service("again", 1, None));
        out.map(|_| ()).map_err(|e| e.to_string())
    })
    .unwrap();
    fleet.wait_running("again-0", SOON).unwrap();
    fleet.no_panics().unwrap();
}

/// Takes all the room that is left in a folder's file system.
fn fill(dir: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(dir.join("filler")).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0_u8; size];
        while file.write_all(&block).is_ok() {}
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_folder(&entry.path(), &target);
        } else if kind.is_file() {
            // Sockets stay where they are.
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
