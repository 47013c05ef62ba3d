//! A cluster as the struct sees it: no API server, and the time is made up.

use super::replicas::CreateError;
use super::*;
use hyperion_gateway::notices::NoticeKind;
use hyperion_placement::model::Provider;
use serde_json::{Value, json};

const NODE: &str = "c.n1";

struct World {
    state: State,
    now: Instant,
    workload: Arc<HyperionWorkload>,
}

fn node(name: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "kubernetes.io/arch": "amd64",
            "topology.kubernetes.io/region": "us-east-1", "node.kubernetes.io/instance-type": "m5.2xlarge" } },
        "spec": { "providerID": "aws:///us-east-1a/i-1" },
        "status": { "allocatable": { "cpu": "8", "memory": "32Gi", "pods": "3" },
            "conditions": [{ "type": "Ready", "status": "True" }] } })
}

fn object(value: Value) -> Node {
    serde_json::from_value(value).unwrap()
}

fn key() -> ReplicaKey {
    ReplicaKey {
        namespace: "ns".to_owned(),
        workload: "web".to_owned(),
        uid: "w".to_owned(),
        index: 0,
    }
}

fn at() -> At {
    (NODE.to_owned(), key())
}

/// What was done, in words.
fn words(effects: &[Effect]) -> Vec<String> {
    let report = |r: &hyperion_proto::domain::Report| {
        let reason = if r.reason.is_empty() {
            String::new()
        } else {
            format!(" {}", r.reason)
        };
        format!("{:?} {}{reason}", r.phase, r.generation)
    };
    let word = |e: &Effect| match e {
        Effect::Tell(Event::Up { problem, .. }) => format!("up {problem}"),
        Effect::Tell(Event::Facts { facts, .. }) => {
            format!("facts {} {}", facts.allocatable["cpu"], facts.cordoned)
        }
        Effect::Tell(Event::Heard) => "heard".to_owned(),
        Effect::Tell(Event::Said(said)) => match &**said {
            GatewayEvent::NodeDown { silent_for, .. } => format!("down {}", silent_for.as_secs()),
            GatewayEvent::Runtime { problem, .. } => format!("runtime {problem}"),
            GatewayEvent::Report { report: r, .. } => report(r),
            GatewayEvent::Event { event, .. } => format!("event {}", event.reason),
            other => format!("{other:?}"),
        },
        Effect::Create { ticket, pod, .. } => format!("create {ticket} {}", generation(pod)),
        Effect::Bind { machine, .. } => format!("bind to {machine}"),
        Effect::Delete { grace, .. } => match grace {
            Some(grace) => format!("delete within {grace}"),
            None => "delete".to_owned(),
        },
        Effect::Object { status, .. } => {
            format!("object {} {}", status.ready, status.conditions[0].reason)
        }
        Effect::Tell(Event::Machines(cluster, _)) => format!("machines {cluster}"),
        Effect::Forget { .. } => "forget".to_owned(),
    };
    effects
        .iter()
        .map(word)
        .map(|w| w.trim().to_owned())
        .collect()
}

fn generation(pod: &Pod) -> &str {
    &pod.labels()["hyperion.io/generation"]
}

fn created(effects: &[Effect]) -> Pod {
    let found = effects.iter().find_map(|e| match e {
        Effect::Create { pod, .. } => Some((**pod).clone()),
        _ => None,
    });
    let mut pod = found.expect("a Pod is made");
    pod.metadata.uid = Some(format!("pod-{}", generation(&pod)));
    pod
}

fn with(pod: &Pod, status: Value) -> Pod {
    let mut pod = pod.clone();
    pod.status = serde_json::from_value(status).unwrap();
    pod
}

fn running(pod: &Pod) -> Pod {
    with(
        pod,
        json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] }),
    )
}

impl World {
    /// With one node, and all lists read.
    fn new() -> Self {
        let mut world = Self::unread();
        world.state.reset_nodes(vec![object(node("n1"))], world.now);
        world.state.reset_ours(&[], world.now);
        world.state.reset_others(&[]);
        world.state.connected(world.now);
        assert_eq!(world.words(), ["object True NodeReady", "up"]);
        world
    }

    fn unread() -> Self {
        let spec =
            json!({ "template": { "spec": { "containers": [{ "name": "c", "image": "i" }] } } });
        let workload = HyperionWorkload::new("web", serde_json::from_value(spec).unwrap());
        Self {
            state: State::new(Identity {
                name: "c".to_owned(),
                uid: "owner".to_owned(),
                provider: Provider::Aws,
                region: "us-east-1".to_owned(),
                selector: BTreeMap::new(),
            }),
            now: Instant::now(),
            workload: Arc::new(workload),
        }
    }

    fn words(&mut self) -> Vec<String> {
        words(&self.state.take())
    }

    fn start(&mut self, generation: u64) {
        let order = Order::Start {
            node: NODE.to_owned(),
            key: key(),
            generation,
            workload: self.workload.clone(),
            ended: false,
        };
        self.state.order(order, self.now);
    }

    fn stop(&mut self, generation: u64, within: Option<Duration>) {
        let order = Order::Stop {
            node: NODE.to_owned(),
            key: key(),
            generation,
            within,
        };
        self.state.order(order, self.now);
    }

    fn shows(&mut self, pod: &Pod) -> Vec<String> {
        self.state.apply_ours(pod, self.now);
        self.words()
    }

    fn gone(&mut self, pod: &Pod) -> Vec<String> {
        self.state.delete_ours(&place(pod), self.now);
        self.words()
    }

    /// A replica that runs.
    fn running(&mut self, generation: u64) -> Pod {
        self.start(generation);
        let effects = self.state.take();
        let pod = running(&created(&effects));
        self.state.apply_ours(&pod, self.now);
        self.words();
        pod
    }
}

#[test]
fn an_order_makes_a_pod_once_and_its_end_is_told() {
    let mut w = World::new();
    w.start(1);
    w.start(1);
    let effects = w.state.take();
    assert_eq!(words(&effects), ["create 1 1"]);
    let pod = created(&effects);
    assert_eq!(w.shows(&pod), ["Starting 1 Pending"]);
    // The answer comes after the watch.
    w.state.created(1, &at(), Ok(()), w.now);
    assert_eq!(w.shows(&running(&pod)), ["Running 1"]);
    assert_eq!(w.shows(&running(&pod)), Vec::<String>::new(), "nothing new");
    w.stop(1, None);
    assert_eq!(w.words(), ["delete"]);
    let mut ending = running(&pod);
    ending.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-03-01T00:00:00Z")).unwrap();
    assert_eq!(w.shows(&ending), ["Stopping 1 Terminating"]);
    assert_eq!(w.gone(&ending), ["Stopped 1"]);
    w.stop(1, None);
    assert_eq!(w.words(), ["Stopped 1"], "what is not there has stopped");
}

#[test]
fn a_higher_generation_takes_the_place_of_the_lower_and_never_the_reverse() {
    let mut w = World::new();
    let old = w.running(2);
    w.start(1);
    assert_eq!(w.words(), Vec::<String>::new());
    w.start(3);
    assert_eq!(
        w.words(),
        ["delete"],
        "not beside each other: the node may have no room"
    );
    assert_eq!(w.gone(&old), ["create 2 3"]);
    w.stop(2, None);
    assert_eq!(w.words(), Vec::<String>::new(), "an old order");
}

#[test]
fn pods_of_before_are_adopted_and_unwanted_ones_end_when_lists_are_complete() {
    let mut first = World::new();
    let wanted = first.running(4);
    let mut stray = wanted.clone();
    let other = ReplicaKey { index: 1, ..key() };
    stray.metadata.name = Some(super::super::pod::pod_name(&other, 4));
    stray
        .labels_mut()
        .insert("hyperion.io/replica".to_owned(), "1".to_owned());

    let mut w = World::unread();
    w.state.reset_nodes(vec![object(node("n1"))], w.now);
    w.state.reset_ours(&[wanted, stray.clone()], w.now);
    w.state.reset_others(&[]);
    w.start(4);
    assert_eq!(w.words(), Vec::<String>::new(), "not before all is known");
    w.state.connected(w.now);
    let seen = w.words();
    assert_eq!(
        seen,
        ["object True NodeReady", "up", "Running 4", "Running 4"]
    );
    w.state
        .order(Order::HoldBack(BTreeSet::from([NODE.to_owned()])), w.now);
    w.state.order(Order::Complete, w.now);
    assert_eq!(w.words(), Vec::<String>::new(), "its list is not complete");
    w.state.order(Order::HoldBack(BTreeSet::new()), w.now);
    assert_eq!(w.words(), ["delete"]);
    assert_eq!(w.gone(&stray), ["Stopped 4"]);
}

#[test]
fn a_pod_that_others_delete_is_made_again_later_each_time() {
    let mut w = World::new();
    let pod = w.running(1);
    assert_eq!(
        w.gone(&pod),
        ["event PodDeleted", "Starting 1 PodDeleted", "create 2 1"]
    );
    w.state.apply_ours(&pod, w.now);
    w.words();
    // Ready in between: it is as if it had never happened.
    assert_eq!(w.gone(&pod).last().unwrap(), "create 3 1");
    let starting = with(&pod, json!({ "phase": "Pending" }));
    w.state.apply_ours(&starting, w.now);
    w.words();
    assert_eq!(
        w.gone(&starting),
        ["event PodDeleted", "Starting 1 PodDeleted"]
    );
    let due = w.state.next_due().expect("it is tried again");
    assert!(due > w.now);
    w.now = due;
    w.state.due(due);
    assert_eq!(w.words(), ["create 4 1"]);
}

#[test]
fn what_has_ended_is_not_made_again() {
    for phase in ["Succeeded", "Failed"] {
        let mut w = World::new();
        let pod = w.running(1);
        let ended = with(&pod, json!({ "phase": phase }));
        w.shows(&ended);
        assert_eq!(w.gone(&ended), Vec::<String>::new(), "{phase}");
        w.start(2);
        assert_eq!(w.words(), ["create 2 2"], "another decision");
    }
    let mut w = World::new();
    let order = Order::Start {
        node: NODE.to_owned(),
        key: key(),
        generation: 3,
        workload: w.workload.clone(),
        ended: true,
    };
    w.state.order(order, w.now);
    assert_eq!(w.words(), Vec::<String>::new());
}

#[test]
fn a_drained_node_gets_nothing_back() {
    let mut w = World::new();
    let pod = w.running(1);
    let mut cordoned = node("n1");
    cordoned["spec"]["unschedulable"] = json!(true);
    w.state.apply_node(&object(cordoned), w.now);
    w.words();
    assert_eq!(w.gone(&pod), ["Failed 1 Evicted"]);
}

#[test]
fn other_images_and_other_marks_are_found() {
    let mut w = World::new();
    let pod = w.running(1);
    let mut changed = pod.clone();
    changed.spec.as_mut().unwrap().containers[0].image = Some("evil".to_owned());
    assert_eq!(w.shows(&changed), ["event PodChanged", "delete"]);
    assert_eq!(w.gone(&changed), ["create 2 1"]);
    w.shows(&pod);
    let mut foreign = pod.clone();
    foreign
        .labels_mut()
        .insert("hyperion.io/generation".to_owned(), "9".to_owned());
    assert_eq!(
        w.shows(&foreign),
        ["event PodDeleted", "Starting 1 PodDeleted", "create 3 1"]
    );
    let taken = CreateError::Taken("Pod is there".to_owned());
    w.state.created(3, &at(), Err(taken), w.now);
    assert_eq!(w.words(), ["Failed 1 NameTaken"]);
}

#[test]
fn what_is_refused_is_told_and_tried_again() {
    let mut w = World::new();
    w.start(1);
    w.words();
    let refused = CreateError::Refused {
        reason: "Forbidden".to_owned(),
        message: "exceeded quota".to_owned(),
    };
    w.state.created(1, &at(), Err(refused), w.now);
    assert_eq!(w.words(), ["Backoff 1 Forbidden"]);
    for ticket in 2..6 {
        w.now = w.state.next_due().unwrap();
        w.state.due(w.now);
        assert_eq!(w.words()[0], format!("create {ticket} 1"));
        let busy = CreateError::Busy("no answer".to_owned());
        w.state.created(ticket, &at(), Err(busy), w.now);
        // Once or twice is nothing to speak of.
        assert_eq!(w.words().is_empty(), ticket < 4, "{ticket}");
    }
    w.stop(1, None);
    assert_eq!(w.words(), ["Stopped 1"]);
}

#[test]
fn a_stop_while_a_pod_is_being_made_deletes_it() {
    let mut w = World::new();
    w.start(1);
    let pod = created(&w.state.take());
    w.stop(1, Some(Duration::from_secs(20)));
    assert_eq!(
        w.words(),
        Vec::<String>::new(),
        "it may be there in a moment"
    );
    w.state.created(1, &at(), Ok(()), w.now);
    assert_eq!(w.shows(&pod), ["Starting 1 Pending", "delete within 20"]);
    w.state.not_done(&at(), &pod.name_any(), w.now);
    w.now = w.state.next_due().unwrap();
    w.state.due(w.now);
    assert_eq!(w.words(), ["delete within 20"]);
    assert_eq!(w.gone(&pod), ["Stopped 1"]);
}

#[test]
fn a_silent_kubelet_and_one_that_is_not_ready() {
    let mut w = World::new();
    let pod = w.running(1);
    let mut sick = node("n1");
    sick["status"]["conditions"][0] = json!({ "type": "Ready", "status": "False", "reason": "KubeletNotReady", "message": "PLEG" });
    w.state.apply_node(&object(sick), w.now);
    assert_eq!(
        w.words(),
        [
            "object False KubeletNotReady",
            "runtime KubeletNotReady: PLEG"
        ]
    );
    let mut silent = node("n1");
    silent["status"]["conditions"][0]["status"] = json!("Unknown");
    w.state.apply_node(&object(silent), w.now);
    assert_eq!(w.words(), ["object False KubeletSilent", "down 40"]);
    w.stop(1, None);
    assert_eq!(w.words(), ["delete"]);
    w.state.apply_node(&object(node("n1")), w.now);
    assert_eq!(w.words(), ["object True NodeReady", "up", "Running 1"]);
    assert_eq!(w.gone(&pod), ["Stopped 1"]);
}

#[test]
fn a_node_that_is_gone_is_told_and_its_pods_are_not_waited_for() {
    let mut w = World::new();
    let pod = w.running(1);
    w.state.delete_node("n1", w.now);
    assert_eq!(w.words(), ["down 0", "forget", "delete within 0"]);
    assert_eq!(w.gone(&pod), Vec::<String>::new());
    // A machine of the same name is another one.
    w.state.apply_node(&object(node("n1")), w.now);
    assert_eq!(w.words(), ["object True NodeReady", "up", "create 2 1"]);
}

#[test]
fn a_cluster_out_of_reach_is_down_and_is_read_anew() {
    let mut w = World::new();
    let pod = w.running(1);
    w.state
        .disconnected("no answer", Duration::from_secs(11), w.now);
    assert_eq!(w.words(), ["object False ClusterUnreachable", "down 11"]);
    w.state
        .disconnected("no answer", Duration::from_secs(15), w.now);
    assert_eq!(w.words(), Vec::<String>::new(), "said once");
    w.stop(1, None);
    w.start(2);
    assert_eq!(w.words(), Vec::<String>::new());
    w.state.reset_nodes(vec![object(node("n1"))], w.now);
    w.state.reset_ours(std::slice::from_ref(&pod), w.now);
    w.state.connected(w.now);
    assert_eq!(
        w.words(),
        ["object True NodeReady", "up", "Running 1", "delete"]
    );
    assert_eq!(w.gone(&pod), ["create 2 2"]);
}

#[test]
fn lists_that_are_read_anew_tell_what_changed_and_nothing_else() {
    let mut w = World::new();
    let pod = w.running(1);
    w.state.pause();
    w.state.reset_nodes(vec![object(node("n1"))], w.now);
    w.state.reset_ours(std::slice::from_ref(&pod), w.now);
    w.state.reset_others(&[]);
    w.state.connected(w.now);
    assert_eq!(w.words(), ["Running 1"], "no node was ever down");
    w.state.pause();
    w.state.reset_ours(&[], w.now);
    w.state.connected(w.now);
    assert_eq!(w.words(), ["create 2 1"]);
}

#[test]
fn what_pods_of_others_take_is_told_in_one_go() {
    let mut w = World::new();
    let other = |name: &str, cpu: &str, phase: &str| -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "x" },
            "spec": { "nodeName": "n1", "containers": [{ "name": "c",
                "resources": { "requests": { "cpu": cpu } } }] }, "status": { "phase": phase } }))
        .unwrap()
    };
    w.state.apply_other(&other("a", "1", "Running"));
    w.state.apply_other(&other("b", "500m", "Pending"));
    w.state.apply_other(&other("c", "5", "Succeeded"));
    assert_eq!(w.words(), Vec::<String>::new());
    w.state.flush(w.now);
    assert_eq!(w.words(), ["facts 6500m false"]);
    w.state.flush(w.now);
    assert_eq!(w.words(), Vec::<String>::new());
    w.state.apply_other(&other("a", "1", "Failed"));
    w.state.delete_other(&("x".to_owned(), "b".to_owned()));
    w.state.flush(w.now);
    assert_eq!(w.words(), ["facts 8000m false"]);
    // It has three Pods' room.
    for name in ["d", "e", "f"] {
        w.state.apply_other(&other(name, "0", "Running"));
    }
    w.state.flush(w.now);
    assert_eq!(w.words(), ["facts 8000m true"]);
}

#[test]
fn a_node_that_can_no_longer_be_read_keeps_what_it_runs_and_takes_nothing() {
    let mut w = World::new();
    w.running(1);
    let mut bare = node("n1");
    bare["spec"] = json!({});
    w.state.apply_node(&object(bare), w.now);
    assert_eq!(
        w.words(),
        [
            "event ProviderMissing",
            "object False ProviderMissing",
            "facts 8000m true"
        ]
    );
    assert_eq!(w.state.nodes(), (0, 1));
}

#[test]
fn leaving_ends_everything_and_takes_nothing_new() {
    let mut w = World::new();
    let pod = w.running(1);
    assert_eq!(w.state.occupied(), BTreeSet::from([NODE.to_owned()]));
    w.state.leave(w.now);
    assert_eq!(w.words(), ["down 0", "forget", "delete"], "with its grace");
    w.start(2);
    w.state.apply_node(&object(node("n1")), w.now);
    assert_eq!(w.words(), Vec::<String>::new());
    w.gone(&pod);
    assert_eq!(w.state.pods(), Vec::<String>::new());
}

#[test]
fn a_selector_that_changes_gives_nodes_back() {
    let mut w = World::new();
    w.running(1);
    let mut other = w.state.of.clone();
    other.selector.insert("ours".to_owned(), "yes".to_owned());
    w.state.describe(other);
    w.state.pause();
    w.state.reset_nodes(vec![object(node("n1"))], w.now);
    w.state.connected(w.now);
    assert_eq!(w.words(), ["down 0", "forget"]);
    w.stop(1, None);
    assert_eq!(w.words(), ["delete"], "it runs there, and has its grace");
}

#[test]
fn what_a_node_s_agent_hears_of_its_cloud_is_said_of_the_node() {
    let said = |w: &mut World, notices: &[Notice]| {
        let (node, notices) = (NODE.to_owned(), notices.to_vec());
        w.state.order(Order::Notices { node, notices }, w.now);
    };
    let shown = |w: &mut World| -> Vec<(String, Vec<String>)> {
        let objects = w.state.take().into_iter().filter_map(|e| match e {
            Effect::Object { status, .. } => Some(status),
            _ => None,
        });
        let reasons =
            |s: &HyperionNodeStatus| s.conditions.iter().map(|c| c.reason.clone()).collect();
        objects.map(|s| (s.ready.clone(), reasons(&s))).collect()
    };
    let with = |ready: &str, reasons: &[&str]| {
        let reasons = reasons.iter().map(|&r| r.to_owned()).collect();
        vec![(ready.to_owned(), reasons)]
    };
    let notice = [Notice {
        kind: NoticeKind::Spot,
        deadline: None,
        id: "i-1".to_owned(),
        detail: "terminate".to_owned(),
    }];
    let mut w = World::new();
    said(&mut w, &notice);
    // It is up all the same: that is its kubelet's word.
    assert_eq!(
        shown(&mut w),
        with("True", &["NodeReady", "SpotInterruption"])
    );
    said(&mut w, &notice);
    assert_eq!(shown(&mut w), []);
    let mut silent = node("n1");
    silent["status"]["conditions"][0]["status"] = json!("Unknown");
    w.state.apply_node(&object(silent), w.now);
    assert_eq!(
        shown(&mut w),
        with("False", &["KubeletSilent", "SpotInterruption"])
    );
    w.state.apply_node(&object(node("n1")), w.now);
    said(&mut w, &[]);
    assert_eq!(
        shown(&mut w)
            .last()
            .cloned()
            .into_iter()
            .collect::<Vec<_>>(),
        with("True", &["NodeReady"])
    );

    // Said before the node was read; a machine that comes later under its name is another one.
    let mut w = World::unread();
    said(&mut w, &notice);
    assert_eq!(shown(&mut w), []);
    w.state.reset_nodes(vec![object(node("n1"))], w.now);
    w.state.reset_ours(&[], w.now);
    w.state.reset_others(&[]);
    w.state.connected(w.now);
    assert_eq!(
        shown(&mut w),
        with("True", &["NodeReady", "SpotInterruption"])
    );
    w.state.delete_node("n1", w.now);
    w.state.apply_node(&object(node("n1")), w.now);
    assert_eq!(shown(&mut w), with("True", &["NodeReady"]));
}

#[test]
fn a_pod_of_a_queue_is_bound_when_nothing_holds_it_back() {
    let mut w = World::new();
    let mut workload = (*w.workload).clone();
    let queue = ("kueue.x-k8s.io/queue-name".to_owned(), "team".to_owned());
    workload.metadata.labels = Some(BTreeMap::from([queue]));
    w.workload = Arc::new(workload);
    w.start(1);
    let effects = w.state.take();
    let pod = created(&effects);
    let spec = pod.spec.clone().unwrap();
    assert_eq!(spec.node_name, None);
    // Not the cluster's own scheduler, which would choose another node.
    assert_eq!(spec.scheduler_name.as_deref(), Some("hyperion"));
    assert_eq!(pod.labels()["kueue.x-k8s.io/queue-name"], "team");

    // Kueue gates it when it is made.
    let mut gated = pod.clone();
    let gates = json!([{ "name": "kueue.x-k8s.io/admission" }]);
    gated.spec.as_mut().unwrap().scheduling_gates = serde_json::from_value(gates).unwrap();
    assert_eq!(w.shows(&gated), ["Starting 1 SchedulingGated"]);
    assert_eq!(w.shows(&pod), ["Starting 1 Pending", "bind to n1"]);
    assert_eq!(w.shows(&pod), Vec::<String>::new());
    // It is tried again where that fails, and is what it is once it is bound.
    let name = pod.name_any();
    w.state.not_done(&at(), &name, w.now);
    w.now = w.state.next_due().unwrap();
    w.state.due(w.now);
    assert_eq!(w.words(), ["bind to n1"]);
    let mut bound = pod.clone();
    bound.spec.as_mut().unwrap().node_name = Some("n1".to_owned());
    assert_eq!(w.shows(&running(&bound)), ["Running 1"]);
    // A stop of one that waits is a deletion.
    w.stop(1, None);
    assert_eq!(w.words(), ["delete"]);
}
