//! How a device becomes a node, and how it does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Fleet, disconnect, eventually, node_path, refusal, request, secret_path, welcome};
use hyperion_gateway::pki::Authority;
use hyperion_gateway::testing::MemoryApi;
use hyperion_link::identity::{CertificateFacts, certificate_request, new_key};
use hyperion_link::{ControlTarget, EnrolRequest, Identity, LinkEvent};

async fn refused(fleet: &Fleet, request: EnrolRequest) -> String {
    let error = hyperion_link::enrol(&fleet.target(), request)
        .await
        .unwrap_err();
    assert!(error.is_final(), "{error}");
    error.to_string()
}

/// A certificate of the fleet's own CA that has run out.
async fn expired(fleet: &Fleet, identity: &Identity) -> Identity {
    let ca = Authority::ensure(&fleet.api.client(), "hyperion")
        .await
        .unwrap();
    let csr = certificate_request(&identity.key_der).unwrap();
    let chain_der = ca
        .sign_node(&csr, &identity.node_id, &identity.site, Duration::ZERO)
        .unwrap();
    let facts = CertificateFacts::parse(&chain_der[0]).unwrap();
    eventually("the second of its end is over", || {
        hyperion_link::tls::unix_now() > facts.not_after
    })
    .await;
    Identity {
        chain_der,
        ..identity.clone()
    }
}

#[tokio::test]
async fn a_token_makes_a_node_of_its_site() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    assert_eq!(identity.site, "lab");
    assert!(identity.node_id.starts_with("lab-"), "{identity:?}");
    assert_eq!(
        identity.ca_fingerprint(),
        Some(fleet.gateway.ca_fingerprint())
    );
    let object = fleet.api.get(&node_path(&identity.node_id)).unwrap();
    assert_eq!(object["spec"]["site"], "lab");
}

#[tokio::test]
async fn a_restart_says_anew_where_agents_find_it() {
    const MAP: &str = "/api/v1/namespaces/hyperion-system/configmaps/hyperion-ca";
    let fleet = Fleet::start().await;
    let (api, port) = (fleet.api.clone(), fleet.gateway.local_addr().port());
    let mut map = api.get(MAP).unwrap();
    assert_eq!(map["data"]["link-address"], format!(":{port}"));
    assert_eq!(map["data"]["fingerprint"], fleet.gateway.ca_fingerprint());
    // As an older release left it, and with something of somebody else.
    map["data"]["link-address"].take();
    map["data"]["theirs"] = serde_json::json!("kept");
    api.put(MAP, map);
    let fleet = fleet.restart().await;
    let map = api.get(MAP).unwrap();
    assert_eq!(map["data"]["link-address"], format!(":{port}"));
    assert_eq!(map["data"]["theirs"], "kept");
    // It leads all the same where it may not change it.
    api.fail_writes_of("configmaps/hyperion-ca", true);
    fleet.restart().await;
}

#[tokio::test]
async fn each_bad_token_is_refused_with_its_reason() {
    let fleet = Fleet::start().await;
    let cases = [
        (vec![("expires", "2020-01-01T00:00:00Z")], "expired at 2020"),
        (vec![("uses-left", "0")], "used already"),
        (vec![("revoked", "true")], "revoked"),
        (vec![("secret-sha256", "00")], "its secret is wrong"),
        (vec![("site", "Not A Name")], "field site"),
    ];
    for (other, words) in cases {
        let token = fleet.token("bad", &other);
        let error = refused(&fleet, request(&token)).await;
        assert!(error.contains(words), "{error}");
        assert!(!error.contains(common::SECRET), "{error}");
    }
    let error = refused(&fleet, request("nosuch.s3cret")).await;
    assert!(error.contains("unknown"), "{error}");
    let error = refused(&fleet, request("no token at all")).await;
    assert!(error.contains("malformed"), "{error}");
    assert_eq!(fleet.refused("enrolment"), 7);
}

#[tokio::test]
async fn a_token_for_one_device_takes_no_second() {
    let fleet = Fleet::start().await;
    let token = fleet.token("once", &[("uses-left", "1")]);
    hyperion_link::enrol(&fleet.target(), request(&token))
        .await
        .unwrap();
    let error = refused(&fleet, request(&token)).await;
    assert!(error.contains("used already"), "{error}");
}

#[tokio::test]
async fn a_token_is_for_one_site() {
    let fleet = Fleet::start().await;
    let token = fleet.token("lab", &[]);
    let asked = EnrolRequest {
        site: "attic".to_owned(),
        ..request(&token)
    };
    let error = refused(&fleet, asked).await;
    assert!(error.contains("for site \"lab\", not \"attic\""), "{error}");
}

#[tokio::test]
async fn twenty_devices_at_once_take_exactly_the_uses_that_are_left() {
    let fleet = Fleet::start().await;
    let token = fleet.token("few", &[("uses-left", "5")]);
    let target = fleet.target();
    let tries = (0..20).map(|_| hyperion_link::enrol(&target, request(&token)));
    let enrolled = futures::future::join_all(tries).await;
    assert_eq!(enrolled.iter().filter(|e| e.is_ok()).count(), 5);
    let secret = fleet.api.get(&secret_path("few")).unwrap();
    assert_eq!(secret["data"]["uses-left"], "MA=="); // 0
}

#[tokio::test]
async fn another_ca_is_refused_by_the_device_which_names_both_fingerprints() {
    let fleet = Fleet::start().await;
    let expected = format!("sha256:{}", "ab".repeat(32));
    let target = ControlTarget {
        ca_fingerprint: expected.clone(),
        ..fleet.target()
    };
    let error = hyperion_link::enrol(&target, request("a.b"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains(&expected), "{error}");
    assert!(error.contains(&fleet.gateway.ca_fingerprint()), "{error}");
}

#[tokio::test]
async fn a_fingerprint_in_capitals_is_the_same_fingerprint() {
    let fleet = Fleet::start().await;
    let target = ControlTarget {
        ca_fingerprint: fleet.gateway.ca_fingerprint().to_uppercase(),
        ..fleet.target()
    };
    let token = fleet.token("capitals", &[]);
    hyperion_link::enrol(&target, request(&token))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_of_another_ca_opens_nothing() {
    let fleet = Fleet::start().await;
    let node = fleet.enrol().await;
    let stranger = Authority::ensure(&MemoryApi::default().client(), "hyperion")
        .await
        .unwrap();
    let csr = certificate_request(&node.key_der).unwrap();
    let forged = Identity {
        chain_der: stranger
            .sign_node(&csr, &node.node_id, &node.site, Duration::from_secs(3600))
            .unwrap(),
        ..node
    };
    let mut link = fleet.link(&forged);
    let reason = disconnect(&mut link).await;
    assert!(
        reason.contains("certificate") || reason.contains("unknown CA") || reason.contains("48"),
        "{reason}"
    );
    assert!(!fleet.gateway.connected(&forged.node_id));
}

#[tokio::test]
async fn without_a_certificate_there_is_no_stream() {
    let fleet = Fleet::start().await;
    let mut raw = fleet.raw(None).await;
    let (code, text) = raw.status().await;
    assert_eq!(code, "16", "{text}");
    assert!(text.contains("enrol"), "{text}");
}

#[tokio::test]
async fn the_alert_for_an_expired_certificate_is_what_the_link_looks_for() {
    let fleet = Fleet::start().await;
    let old = expired(&fleet, &fleet.enrol().await).await;
    let closed = fleet.quic(Some(&old)).await.closed().await;
    let quinn::ConnectionError::ConnectionClosed(close) = closed else {
        panic!("{closed}");
    };
    assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(45));
}

#[tokio::test]
async fn a_device_whose_certificate_ran_out_enrols_again_with_its_old_key() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let old = expired(&fleet, &identity).await;
    let mut link = fleet.link(&old);
    let renewed = loop {
        if let LinkEvent::Renewed(renewed) = common::next(&mut link).await {
            break renewed;
        }
    };
    assert_eq!(renewed.node_id, identity.node_id);
    assert_eq!(renewed.key_der, identity.key_der);
    assert_ne!(renewed.chain_der[0], old.chain_der[0]);
    welcome(&mut link).await;
    assert!(fleet.gateway.connected(&identity.node_id));
}

#[tokio::test]
async fn an_old_certificate_without_its_key_is_worth_nothing() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let thief = Identity {
        key_der: new_key().unwrap(),
        ..identity
    };
    let error = hyperion_link::re_enrol(&fleet.target(), &thief, request(""))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("old key"), "{error}");
}

#[tokio::test]
async fn a_revoked_node_does_not_enrol_again_with_its_old_key() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    fleet.set_node(&identity.node_id, |o| o["spec"]["revoked"] = true.into());
    let error = hyperion_link::re_enrol(&fleet.target(), &identity, request(""))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("is revoked"), "{error}");
    let old = expired(&fleet, &identity).await;
    let mut link = fleet.link(&old);
    assert!(refusal(&mut link).await.contains("is revoked"));
}

#[tokio::test]
async fn a_deleted_node_is_cut_off_and_stays_away() {
    let mut fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    fleet.serves(&link).await;
    fleet.api.delete(&node_path(&identity.node_id));
    assert!(refusal(&mut link).await.contains("not known any more"));
    assert_eq!(fleet.node_down().await.0, identity.node_id);
    assert!(
        refusal(&mut link)
            .await
            .contains("enrol it with a join token")
    );
    assert!(fleet.gateway.live_since(0).nodes.is_empty());
    assert_eq!(fleet.api.get(&node_path(&identity.node_id)), None);
    let error = hyperion_link::re_enrol(&fleet.target(), &identity, request(""))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not known"), "{error}");
}

#[tokio::test]
async fn a_node_that_enrolled_through_another_control_plane_is_known_at_once() {
    let fleet = Fleet::start().await;
    let other = Fleet::start_with(
        fleet.api.clone(),
        "127.0.0.1:0".parse().unwrap(),
        Duration::from_secs(3600),
    )
    .await;
    assert_eq!(
        fleet.gateway.ca_fingerprint(),
        other.gateway.ca_fingerprint()
    );
    let identity = fleet.enrol().await;
    let mut link = other.link(&identity);
    welcome(&mut link).await;
}

#[tokio::test]
async fn a_failed_enrolment_gives_the_token_back() {
    let fleet = Fleet::start().await;
    let token = fleet.token("once", &[("uses-left", "1")]);
    fleet.api.fail_writes_of("hyperionnodes", true);
    let error = hyperion_link::enrol(&fleet.target(), request(&token))
        .await
        .unwrap_err();
    assert!(!error.is_final(), "{error}");
    fleet.api.fail_writes_of("hyperionnodes", false);
    hyperion_link::enrol(&fleet.target(), request(&token))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_certificate_is_renewed_before_it_runs_out_and_the_link_stays_up() {
    let ttl = Duration::from_secs(5);
    let mut fleet =
        Fleet::start_with(MemoryApi::default(), "127.0.0.1:0".parse().unwrap(), ttl).await;
    let identity = fleet.enrol().await;
    let mut link = fleet.link(&identity);
    welcome(&mut link).await;
    fleet.node_up().await;
    let until = std::time::Instant::now() + ttl + Duration::from_secs(3);
    let mut renewals = 0;
    while std::time::Instant::now() < until {
        match tokio::time::timeout(Duration::from_millis(200), link.next_event()).await {
            Ok(Some(LinkEvent::Renewed(renewed))) => {
                let facts = CertificateFacts::parse(&renewed.chain_der[0]).unwrap();
                assert_eq!(facts.node_id.as_deref(), Some(identity.node_id.as_str()));
                assert_eq!(facts.site.as_deref(), Some("lab"));
                renewals += 1;
            }
            Ok(other) => panic!("the link did not stay up: {other:?}"),
            Err(_) => link.sender().try_send(common::telemetry(5.0)).unwrap(),
        }
    }
    assert!((1..=4).contains(&renewals), "{renewals} renewals");
    assert!(fleet.gateway.connected(&identity.node_id));
    assert!(fleet.events.try_recv().is_err(), "something else happened");
}

#[tokio::test]
async fn a_certificate_from_before_sites_opens_the_link_and_is_renewed_at_once() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let ca = Authority::ensure(&fleet.api.client(), "hyperion")
        .await
        .unwrap();
    let csr = certificate_request(&identity.key_der).unwrap();
    let old = Identity {
        chain_der: ca
            .sign_node(&csr, &identity.node_id, "", Duration::from_secs(86_400))
            .unwrap(),
        ..identity
    };
    let mut link = fleet.link(&old);
    welcome(&mut link).await;
    let renewed = loop {
        let event = tokio::time::timeout(Duration::from_secs(10), link.next_event()).await;
        match event.unwrap() {
            Some(LinkEvent::Renewed(renewed)) => break renewed,
            Some(LinkEvent::Message(_)) => {}
            other => panic!("the link did not stay up: {other:?}"),
        }
    };
    let facts = CertificateFacts::parse(&renewed.chain_der[0]).unwrap();
    assert_eq!(facts.site.as_deref(), Some("lab"));
}

#[tokio::test]
async fn a_stream_does_not_outlive_its_certificate() {
    let fleet = Fleet::start().await;
    let identity = fleet.enrol().await;
    let ca = Authority::ensure(&fleet.api.client(), "hyperion")
        .await
        .unwrap();
    let csr = certificate_request(&identity.key_der).unwrap();
    let short = Identity {
        chain_der: ca
            .sign_node(
                &csr,
                &identity.node_id,
                &identity.site,
                Duration::from_secs(2),
            )
            .unwrap(),
        ..identity.clone()
    };
    // A peer that never asks for a new one.
    let mut raw = fleet.raw(Some(&short)).await;
    let first = common::hello(&identity.node_id, "boot-1");
    raw.message(&common::message(
        hyperion_proto::agent_v1::stream_message::Body::Hello(first),
    ))
    .await;
    eventually("connected", || fleet.gateway.connected(&identity.node_id)).await;
    while raw.quic.close_reason().is_none() {
        raw.bytes(&common::grpc_frame(&prost::Message::encode_to_vec(
            &common::telemetry(1.0),
        )))
        .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(raw.closed().await.contains("run out"));
}
