//! Policies come to a node, or are refused.

use hyperion_policy::{BUILT_IN, BUILT_IN_QUANTISED};
use hyperion_proto::agent_v1::{FetchPolicy, PolicyChunk, PolicyOffer};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SigningKey};
use sha2::{Digest, Sha256};

use super::*;
use crate::decider::hash;

struct Ca {
    key: KeyPair,
    der: Vec<u8>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { key, der }
    }

    fn offer(&self, file: &[u8]) -> PolicyOffer {
        PolicyOffer {
            sha256: hash(file),
            bytes: file.len() as u64,
            signature: self.key.sign(&Sha256::digest(file)).unwrap(),
        }
    }
}

fn node_of(ca: &Ca, disk: &Disk) -> Alone {
    let config = NodeConfig {
        ca_der: ca.der.clone(),
        ..config("edge-1")
    };
    Alone::new(config, disk.store())
}

fn asked(alone: &Alone) -> Vec<FetchPolicy> {
    let sent = alone.out.take().into_iter();
    sent.filter_map(|body| match body {
        Body::FetchPolicy(asked) => Some(asked),
        _ => None,
    })
    .collect()
}

/// Answers as the control plane does; gives the number of pieces.
fn serve(alone: &mut Alone, file: &[u8]) -> usize {
    let mut pieces = 0;
    while let Some(ask) = asked(alone).pop() {
        let from = usize::try_from(ask.offset).unwrap();
        let data = &file[from..file.len().min(from + 10_000)];
        pieces += 1;
        alone.hear(Body::PolicyChunk(PolicyChunk {
            sha256: ask.sha256,
            offset: ask.offset,
            data: data.to_vec(),
            end: from + data.len() == file.len(),
            error: String::new(),
        }));
    }
    pieces
}

fn events_about_policies(alone: &Alone) -> Vec<(String, String)> {
    let events = alone.node.store().events_after(0, 1000).into_iter();
    events
        .filter(|e| e.reason.starts_with("Policy"))
        .map(|e| (e.reason, e.message))
        .collect()
}

#[test]
fn a_signed_policy_is_fetched_tried_kept_and_decides_also_after_a_restart() {
    let (ca, disk) = (Ca::new(), Disk::default());
    let mut alone = node_of(&ca, &disk);
    assert_eq!(alone.node.policy_hash(), hash(BUILT_IN_QUANTISED));
    let mut with = welcome(Vec::new(), &["edge-1"]);
    let offer = ca.offer(BUILT_IN);
    with.policy = Some(offer.clone());
    alone.connect(&with);
    let pieces = serve(&mut alone, BUILT_IN);
    assert!(pieces > 3, "{pieces}");
    assert_eq!(alone.node.policy_hash(), hash(BUILT_IN));
    assert_eq!(alone.node.decider().name(), "ppo");
    assert_eq!(events_about_policies(&alone)[0].0, "PolicySwitched");
    let (file, signature) = alone.node.policy_file(&hash(BUILT_IN)).unwrap();
    assert!(file.as_ref() == BUILT_IN && signature == offer.signature);
    assert_eq!(alone.node.hello().policy_hash, hash(BUILT_IN));

    drop(alone);
    let mut alone = node_of(&ca, &disk);
    assert_eq!(alone.node.policy_hash(), hash(BUILT_IN));
    // Offered again: nothing is fetched.
    alone.connect(&with);
    assert!(asked(&alone).is_empty());
}

#[test]
fn the_rest_of_a_policy_is_asked_for_after_a_break() {
    let (ca, disk) = (Ca::new(), Disk::default());
    let mut alone = node_of(&ca, &disk);
    let mut with = welcome(Vec::new(), &["edge-1"]);
    with.policy = Some(ca.offer(BUILT_IN));
    alone.connect(&with);
    let first = asked(&alone).remove(0);
    alone.hear(Body::PolicyChunk(PolicyChunk {
        sha256: first.sha256,
        offset: 0,
        data: BUILT_IN[..5000].to_vec(),
        ..PolicyChunk::default()
    }));
    alone.disconnect();
    alone.connect(&with);
    let again = asked(&alone);
    assert_eq!(again.last().unwrap().offset, 5000);
    // A piece that does not follow is not taken.
    alone.hear(Body::PolicyChunk(PolicyChunk {
        sha256: hash(BUILT_IN),
        offset: 9000,
        data: vec![0; 10],
        ..PolicyChunk::default()
    }));
    alone.pass(Duration::from_secs(10));
    let waiting = asked(&alone);
    assert!(waiting.iter().all(|ask| ask.offset == 5000), "{waiting:?}");
    assert!(!waiting.is_empty(), "it asks again where nothing comes");
}

#[test]
fn bad_policies_are_refused_by_name_once_and_change_nothing() {
    let (ca, disk) = (Ca::new(), Disk::default());
    let stranger = Ca::new();
    let mut alone = node_of(&ca, &disk);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    let before = alone.node.policy_hash().to_owned();
    let text = b"not a policy at all".as_slice();
    let mut cut = ca.offer(BUILT_IN);
    cut.bytes = 100;
    let mut huge = ca.offer(BUILT_IN);
    huge.bytes = 1 << 40;
    let mut upper = ca.offer(BUILT_IN);
    upper.sha256 = upper.sha256.to_uppercase();
    let mut other = ca.offer(text);
    other.sha256 = hash(BUILT_IN);
    let cases: [(&str, PolicyOffer, &[u8], &str); 7] = [
        (
            "of a stranger",
            stranger.offer(BUILT_IN),
            BUILT_IN,
            "signature",
        ),
        ("signed for another file", other, BUILT_IN, "signature"),
        ("no policy", ca.offer(text), text, "policy"),
        ("longer than offered", cut, BUILT_IN, "100 bytes"),
        ("too large", huge, BUILT_IN, "policy_offer.bytes"),
        ("bad hash", upper, BUILT_IN, "policy_offer.sha256"),
        (
            "unsigned",
            PolicyOffer {
                signature: Vec::new(),
                ..ca.offer(BUILT_IN)
            },
            BUILT_IN,
            "signature",
        ),
    ];
    for (n, (name, offer, file, why)) in cases.into_iter().enumerate() {
        // Each as if it were the first: one that was refused is not looked at again.
        alone.node.rollout.refused.clear();
        alone.hear(Body::PolicyOffer(offer.clone()));
        serve(&mut alone, file);
        assert_eq!(alone.node.policy_hash(), before, "{name}");
        let events = events_about_policies(&alone);
        assert_eq!(events.len(), n + 1, "{name}: {events:?}");
        let (reason, message) = events.last().unwrap();
        assert_eq!(reason, "PolicyRefused", "{name}");
        assert!(message.contains(why), "{name}: {message}");
        // The same again is not told again.
        alone.hear(Body::PolicyOffer(offer));
        serve(&mut alone, file);
        assert_eq!(events_about_policies(&alone).len(), n + 1, "{name}");
    }
    assert!(alone.node.store().policy().is_none());
    assert_eq!(alone.node.counts().policies_refused, 7);
}

#[test]
fn a_file_that_is_not_the_offered_one_is_refused() {
    let (ca, disk) = (Ca::new(), Disk::default());
    let mut alone = node_of(&ca, &disk);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    alone.hear(Body::PolicyOffer(ca.offer(BUILT_IN)));
    let mut other = BUILT_IN.to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    serve(&mut alone, &other);
    assert!(events_about_policies(&alone)[0].1.contains("SHA-256"));
    assert!(alone.node.store().policy().is_none());
}

#[test]
fn without_a_known_ca_no_policy_is_taken() {
    let ca = Ca::new();
    let mut alone = Alone::fresh("edge-1");
    let mut with = welcome(Vec::new(), &["edge-1"]);
    with.policy = Some(ca.offer(BUILT_IN));
    alone.connect(&with);
    assert!(asked(&alone).is_empty());
    assert!(events_about_policies(&alone)[0].1.contains("signature"));
}

#[test]
fn a_policy_that_is_taken_back_leaves_rules_also_after_a_restart() {
    let (ca, disk) = (Ca::new(), Disk::default());
    let mut alone = node_of(&ca, &disk);
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    alone.hear(Body::PolicyOffer(ca.offer(BUILT_IN)));
    serve(&mut alone, BUILT_IN);
    alone.hear(Body::PolicyOffer(PolicyOffer::default()));
    assert_eq!(alone.node.policy_hash(), "");
    assert_eq!(alone.node.decider().name(), "rules");
    drop(alone);
    let mut alone = node_of(&ca, &disk);
    assert_eq!(alone.node.decider().name(), "rules");
    // And offered again, it is still there.
    alone.connect(&welcome(Vec::new(), &["edge-1"]));
    alone.hear(Body::PolicyOffer(ca.offer(BUILT_IN)));
    assert_eq!(alone.node.policy_hash(), hash(BUILT_IN));
}

#[test]
fn a_stored_policy_that_no_longer_loads_leaves_the_one_before() {
    let (ca, disk) = (Ca::new(), Disk::default());
    let mut store = disk.store();
    store.set_policy(ca.offer(BUILT_IN), Bytes::from_static(BUILT_IN));
    let damaged = b"damaged".as_slice();
    store.set_policy(ca.offer(damaged), Bytes::from_static(b"damaged"));
    drop(store);
    let alone = node_of(&ca, &disk);
    assert_eq!(alone.node.policy_hash(), hash(BUILT_IN));
    assert_eq!(events_about_policies(&alone).len(), 1);
    // Of another fleet: neither is trusted.
    let alone = node_of(&Ca::new(), &disk);
    assert_eq!(alone.node.policy_hash(), hash(BUILT_IN_QUANTISED));
}

#[test]
fn a_policy_that_was_offered_comes_from_a_peer_when_the_link_is_gone() {
    let (ca, disk) = (Ca::new(), Disk::default());
    let mut alone = node_of(&ca, &disk);
    let mut with = welcome(Vec::new(), &["edge-1"]);
    with.policy = Some(ca.offer(BUILT_IN));
    alone.connect(&with);
    alone.disconnect();
    alone.pass(Duration::from_secs(3));
    let wanted: Vec<String> = alone
        .node
        .take_effects()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::FetchPolicy { sha256 } => Some(sha256),
            _ => None,
        })
        .collect();
    assert_eq!(wanted, [hash(BUILT_IN)]);
    let now = alone.now();
    alone.node.policy_fetched(
        Fetched {
            sha256: hash(BUILT_IN),
            file: Bytes::from_static(BUILT_IN),
            signature: ca.offer(BUILT_IN).signature,
        },
        now,
    );
    assert_eq!(alone.node.policy_hash(), hash(BUILT_IN));
}
