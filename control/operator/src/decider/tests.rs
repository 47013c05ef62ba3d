//! Who decides, and what is said of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyperion_placement::PolicyScorer;
use hyperion_placement::features::{FIT_LEN, FitSlot, NODE_LEN, PAIR_LEN, PairSlot};
use hyperion_placement::fleet::Fleet;
use hyperion_placement::model::{
    CapacityType, Goal, Location, Node, Provider, Request, Resources, Supply, Tier,
};
use hyperion_placement::policy::Network;
use hyperion_placement::reward::RewardWeights;
use hyperion_policy::{Card, Guard, Limits, PolicyFile, SlotStats, Statistics, TrainingData};

use super::source::{Asked, Held, choose, for_devices};
use super::*;

/// Statistics of slots between these bounds.
fn statistics(most: f32) -> Statistics {
    let slot = SlotStats {
        mean: 0.0,
        deviation: 0.0,
        min: -most,
        max: most,
    };
    Statistics {
        request: vec![slot; REQUEST_LEN],
        node: vec![slot; NODE_LEN],
        pair: vec![slot; PAIR_LEN],
        fit: vec![slot; FIT_LEN],
    }
}

/// A network whose score is this slot of the pair times `weight`, and `here` for where the replica
/// runs.
fn network(slot: PairSlot, weight: f32, here: f32) -> Network {
    let mut network = Network::zeros();
    network.direct.bias[slot as usize] = weight;
    network.direct.bias[PAIR_LEN + FitSlot::Here as usize] = here;
    network
}

fn file(network: &Network) -> Vec<u8> {
    let card = Card {
        data: TrainingData::default(),
        seed: 1,
        steps: 1,
        reward: RewardWeights::default(),
        statistics: statistics(1e6),
        evaluation: serde_json::Value::Null,
    };
    PolicyFile::write_safetensors(&card, network).unwrap()
}

/// A policy that likes what costs much, and likes to stay by `here`.
pub(crate) fn spendthrift(here: f32) -> Policy {
    Policy::read(&file(&network(PairSlot::Cost, 10.0, here))).unwrap()
}

fn node(id: &str, price: f64) -> Node {
    let all = Resources {
        cpu_millis: 4000,
        memory_bytes: 8 << 30,
    };
    Node {
        id: id.to_owned(),
        location: Location {
            tier: Tier::Cloud,
            provider: Provider::Aws,
            region: "us-east-1".to_owned(),
            zone: String::new(),
            site: String::new(),
            geography: None,
        },
        arch: "amd64".to_owned(),
        capacity_type: CapacityType::OnDemand,
        instance_type: String::new(),
        allocatable: all,
        free: all,
        gpus: Vec::new(),
        labels: BTreeMap::new(),
        taints: Vec::new(),
        schedulable: true,
        ready: true,
        price_per_hour: price,
        cpu_utilization: 0.0,
        images: Vec::new(),
        supply: Supply::default(),
    }
}

fn fleet(decider: &Decider) -> Fleet {
    let mut fleet = Fleet::new();
    for (id, price) in [("cheap", 0.1), ("dear", 4.0), ("middling", 1.0)] {
        fleet.upsert_node(node(id, price));
    }
    fleet.set_network(decider.policy().map(Policy::network));
    fleet
}

fn request() -> Request {
    Request {
        goal: Goal::Cost,
        resources: Resources {
            cpu_millis: 1000,
            memory_bytes: 1 << 30,
        },
        ..Request::new("d/w/0")
    }
}

fn with(policy: Policy, shadow: bool) -> Decider {
    let mut decider = Decider::new(shadow);
    decider.set_policy(Some(policy));
    decider
}

fn decide(decider: &mut Decider, request: &Request) -> Verdict {
    let fleet = fleet(decider);
    decider.decide(View::Fleet(&fleet), request, Chance::Never)
}

fn chosen(choice: Option<&Choice>) -> Option<&str> {
    choice.map(|choice| choice.candidate.id())
}

#[test]
fn the_policy_decides_and_what_rules_would_have_chosen_is_beside_it() {
    let mut decider = with(spendthrift(0.0), false);
    let verdict = decide(&mut decider, &request());
    assert_eq!(chosen(verdict.decision.choice.as_ref()), Some("dear"));
    assert_eq!(chosen(verdict.rules.as_ref()), Some("cheap"));
    let why = &verdict.decision.explanation;
    assert_eq!((why.scorer.as_str(), why.top.len()), ("ppo", 3));
    assert!(why.top.iter().all(|r| !r.terms.is_empty()));
    assert_eq!(verdict.policy.len(), 12);
    let sums = decider.sums;
    assert_eq!((sums.by_policy, sums.beside.decisions), (1, 1));
    assert!(sums.beside.policy_regret > 0.0, "{sums:?}");
    let memory = verdict.memory.unwrap();
    assert_eq!(memory.candidates.len(), 3);
    assert_eq!((memory.chosen, memory.log_probability), (0, 0.0));
}

#[test]
fn in_shadow_rules_decide_and_the_policy_is_compared() {
    let mut decider = with(spendthrift(0.0), true);
    let verdict = decide(&mut decider, &request());
    assert_eq!(chosen(verdict.decision.choice.as_ref()), Some("cheap"));
    assert_eq!(chosen(verdict.watching.as_ref()), Some("dear"));
    assert_eq!(verdict.rules, None);
    assert_eq!(verdict.decision.explanation.scorer, "rules");
    let beside = decider.sums.beside;
    assert_eq!(
        (beside.decisions, beside.agreed, beside.rules_better),
        (1, 0, 1)
    );
    assert_eq!(decider.sums.by_policy, 0);
    let status = decider.status("built-in", "");
    assert!(status.shadow && status.decides == "rules");
}

#[test]
fn a_score_that_is_no_number_leaves_the_decision_to_rules() {
    let mut policy = spendthrift(0.0);
    let odd = network(PairSlot::Cost, f32::NAN, 0.0);
    policy.scorer = PolicyScorer::new(Arc::new(odd));
    left_to_rules(policy, Duration::ZERO, Reason::NotFinite);
}

#[test]
fn what_is_known_of_a_fleet_that_is_silent_leaves_the_decision_to_rules() {
    left_to_rules(spendthrift(0.0), Duration::from_secs(61), Reason::Stale);
}

#[test]
fn what_training_has_never_seen_leaves_the_decision_to_rules() {
    let mut policy = spendthrift(0.0);
    policy.guard = Guard::new(&statistics(1e-9), Limits::default());
    left_to_rules(policy, Duration::ZERO, Reason::Unfamiliar);
}

fn left_to_rules(policy: Policy, age: Duration, reason: Reason) {
    let hash = policy.hash.clone();
    let mut decider = with(policy, false);
    decider.age = age;
    let verdict = decide(&mut decider, &request());
    assert_eq!(chosen(verdict.decision.choice.as_ref()), Some("cheap"));
    assert_eq!(verdict.decision.explanation.scorer, "rules");
    let (found, text) = verdict.fallback.unwrap();
    assert_eq!(found, reason);
    assert!(!text.is_empty());
    assert_eq!(verdict.policy, hash);
    assert_eq!(decider.sums.fallbacks[reason as usize], 1);
    assert_eq!(decider.status("built-in", "").fallbacks, 1);
}

#[test]
fn with_no_node_that_fits_nobody_is_blamed() {
    let mut decider = with(spendthrift(0.0), false);
    let mut request = request();
    request.resources.cpu_millis = 1 << 40;
    let verdict = decide(&mut decider, &request);
    assert_eq!(verdict.decision.choice, None);
    assert_eq!((verdict.fallback, verdict.memory), (None, None));
    assert_eq!(decider.sums.fallbacks, [0; 3]);
}

#[test]
fn staying_is_scored_where_the_best_do_not_name_it() {
    let mut decider = with(spendthrift(0.0), false);
    let mut fleet = fleet(&decider);
    for i in 0..8 {
        fleet.upsert_node(node(&format!("dearer-{i}"), 5.0));
    }
    let mut request = request();
    request.current = Some("cheap".to_owned());
    let verdict = decider.decide(View::Fleet(&fleet), &request, Chance::Never);
    let best = verdict.decision.choice.clone().unwrap().score;
    let staying = decider.score_of_staying(&fleet, &request, &verdict);
    assert!(staying.unwrap() < best - POLICY_MARGIN);
    assert_eq!(decider.margin(&verdict), POLICY_MARGIN);
}

// Now and then another choice.

/// 400 decisions, of which `explore` are left to chance, and how often each node was chosen.
fn chosen_of_400(explore: f64, chance: Chance) -> (Decider, BTreeMap<String, u32>) {
    let mut decider = with(spendthrift(0.0), false);
    decider.explore = explore;
    decider.dice = Xoshiro256PlusPlus::seed_from_u64(7);
    let mut fleet = fleet(&decider);
    // Not much worse than the dearest, by the policy.
    fleet.upsert_node(node("second", 3.5));
    let mut counts = BTreeMap::new();
    for _ in 0..400 {
        let verdict = decider.decide(View::Fleet(&fleet), &request(), chance);
        let memory = verdict.memory.unwrap();
        let top = &verdict.decision.explanation.top;
        let choice = verdict.decision.choice.unwrap();
        assert_eq!(top[memory.chosen].candidate, choice.candidate);
        assert_eq!(top[memory.chosen].score, choice.score);
        // What it costs is the price of the place that was drawn.
        let price = fleet.node(chosen(Some(&choice)).unwrap()).unwrap();
        assert!((choice.hourly_cost - price.price_per_hour / 4.0).abs() < 1e-9);
        assert_eq!(verdict.tried.is_some(), memory.chosen > 0);
        let scores: Vec<f32> = top.iter().map(|r| r.score as f32).collect();
        let drawn = hyperion_policy::log_probability(&scores, memory.chosen).unwrap();
        let best = if memory.chosen == 0 {
            1.0 - explore
        } else {
            0.0
        };
        let expected = if chance == Chance::Never {
            1.0
        } else {
            best + explore * drawn.exp()
        };
        assert!((memory.log_probability.exp() - expected).abs() < 1e-6);
        *counts
            .entry(chosen(Some(&choice)).unwrap().to_owned())
            .or_insert(0) += 1;
    }
    (decider, counts)
}

#[test]
fn what_is_left_to_chance_is_drawn_by_the_scores_and_noted() {
    let (decider, counts) = chosen_of_400(0.5, Chance::Sometimes);
    let second = counts["second"];
    assert_eq!(decider.sums.by_policy, 400);
    assert_eq!(u64::from(400 - counts["dear"]), decider.sums.tried);
    assert!((4..200).contains(&second), "{counts:?}");
    // What the policy likes least is hardly ever tried.
    assert!(
        counts.get("cheap").copied().unwrap_or(0) < second / 2,
        "{counts:?}"
    );
}

#[test]
fn nothing_is_left_to_chance_where_that_was_not_asked_for() {
    let all_best = BTreeMap::from([("dear".to_owned(), 400)]);
    assert_eq!(chosen_of_400(0.0, Chance::Sometimes).1, all_best);
    assert_eq!(chosen_of_400(1.0, Chance::Never).1, all_best);
}

// Where policies come from.

#[test]
fn the_config_map_counts_before_the_file_and_rules_before_all() {
    let bytes = file(&network(PairSlot::Cost, 1.0, 0.0));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let asked = Asked::File(path.clone());
    let of_file = choose(&asked, &None);
    assert!(of_file.policy.is_some() && of_file.refused.is_none());
    assert_eq!(of_file.source, format!("file {}", path.display()));
    let other = file(&network(PairSlot::Cost, 2.0, 0.0));
    let held = |policy: Option<Vec<u8>>, device: Option<Vec<u8>>| Some(Held { policy, device });
    let of_map = choose(&asked, &held(Some(other.clone()), None));
    assert_eq!(of_map.source, "configmap hyperion-system/hyperion-policy");
    assert_ne!(of_map.policy.unwrap().hash, of_file.policy.unwrap().hash);
    let only_devices = choose(&asked, &held(None, Some(other.clone())));
    assert!(
        only_devices.source.starts_with("file"),
        "{}",
        only_devices.source
    );
    let rules = choose(&Asked::Rules, &held(Some(other), None));
    assert!(rules.policy.is_none() && rules.refused.is_none());
    assert_eq!(rules.source, "rules");
}

#[test]
fn policies_that_are_not_ours_are_refused_with_the_reason() {
    let good = file(&network(PairSlot::Cost, 1.0, 0.0));
    let cut = good[..good.len() / 2].to_vec();
    let features = features::table_hash();
    let other = String::from_utf8_lossy(&good).contains(&features);
    assert!(other, "the file names its feature table");
    let mut schema = good.clone();
    let at = find(&schema, features.as_bytes());
    schema[at] = if schema[at] == b'0' { b'1' } else { b'0' };
    for (bytes, expected) in [
        (Some(cut), "truncated"),
        (Some(schema), "feature table"),
        (Some(b"hello".to_vec()), "not a policy file"),
        (Some(Vec::new()), "not a policy file"),
        (None, "no key `policy`"),
    ] {
        let held = Held {
            policy: bytes,
            device: None,
        };
        let chosen = choose(&Asked::BuiltIn, &Some(held));
        assert!(chosen.policy.is_none());
        let text = chosen.refused.unwrap().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_file_that_cant_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().join("none"), dir.path().to_owned()] {
        let chosen = choose(&Asked::File(path.clone()), &None);
        let text = chosen.refused.unwrap().to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
}

fn find(bytes: &[u8], text: &[u8]) -> usize {
    let mut windows = bytes.windows(text.len());
    windows.position(|window| window == text).unwrap()
}

#[test]
fn devices_get_a_quantised_policy_or_keep_what_they_have() {
    let held = |device: &[u8]| {
        Some(Held {
            policy: None,
            device: Some(device.to_vec()),
        })
    };
    let built_in = hyperion_policy::BUILT_IN_QUANTISED;
    assert_eq!(for_devices(&Asked::BuiltIn, &None), Ok(Some(built_in)));
    assert_eq!(for_devices(&Asked::Rules, &held(built_in)), Ok(None));
    let map = held(built_in);
    assert_eq!(for_devices(&Asked::BuiltIn, &map), Ok(Some(built_in)));
    let full = file(&network(PairSlot::Cost, 1.0, 0.0));
    for (bytes, expected) in [
        (&full[..], "full precision"),
        (b"junk", "not a policy file"),
    ] {
        let map = held(bytes);
        let refused = for_devices(&Asked::BuiltIn, &map).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
}
