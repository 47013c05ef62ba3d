//! Whole answers in the documented forms, and the offers that come of them.

use std::fmt::Write as _;

use hyperion_providers::feeds::run::Source;
use hyperion_providers::feeds::{Fetched, Offer};

use crate::server::{Asked, Reply, Server, ok};
use crate::{aws, azure, data, gcp, left, then};

/// The recorded answers of all three.
pub fn recorded(asked: &Asked, _: usize) -> Reply {
    let xml = |name| Reply::Whole(200, "content-type: text/xml;charset=UTF-8\r\n", data(name));
    if asked.line.contains("/api/retail/prices") {
        let second = asked.line.contains("$skip=12");
        return ok(data(if second {
            "azure-eastus-2.json"
        } else {
            "azure-eastus-1.json"
        }));
    }
    if asked.line.contains("/skus") {
        let second = asked.line.contains("pageToken=AIx%2Fnext%3D%3D");
        return ok(data(if second { "gcp-2.json" } else { "gcp-1.json" }));
    }
    if asked.body.contains("DescribeSpotPriceHistory") {
        let second = asked.body.contains("NextToken=AAE%2Ftoken%2B1%3D");
        return xml(if second {
            "aws-spot-2.xml"
        } else {
            "aws-spot-1.xml"
        });
    }
    if asked
        .head
        .contains("x-amz-target: awspricelistservice.getproducts")
    {
        let second = asked.body.contains(r#""NextToken":"list/2==""#);
        return ok(data(if second {
            "aws-list-2.json"
        } else {
            "aws-list-1.json"
        }));
    }
    Reply::Whole(404, "", asked.line.clone())
}

async fn fetch(source: Source) -> Fetched {
    let fetched = source.fetch(then()).await;
    assert_eq!(fetched.failures, [], "{}", source.feed());
    fetched
}

fn row(offer: &Offer) -> String {
    let shape = offer.shape().expect("a known type");
    let gpu = match shape.gpus {
        0 => "-".to_owned(),
        n => format!("{n}x{}", shape.gpu),
    };
    format!(
        "{} {gpu} {:.6} {}",
        offer.key, offer.price_per_hour, offer.seen
    )
}

#[tokio::test]
async fn recorded_answers_become_the_golden_table() {
    let server = Server::start(recorded).await;
    let mut table = String::new();
    for source in [aws(&server.url), azure(&server.url), gcp(&server.url)] {
        let fetched = fetch(source).await;
        for offer in fetched.offers.values() {
            writeln!(table, "{}", row(offer)).expect("a string");
        }
        writeln!(table, "left out: {}", left(&fetched)).expect("a string");
    }
    let golden = data("offers.txt");
    assert_eq!(table, golden, "the table is now:\n{table}");
}

#[tokio::test]
async fn requests_are_those_that_are_documented() {
    let server = Server::start(recorded).await;
    for source in [aws(&server.url), azure(&server.url), gcp(&server.url)] {
        fetch(source).await;
    }
    let asked = server.asked.lock().expect("no panic").clone();
    let lines: Vec<&str> = asked.iter().map(|a| a.line.as_str()).collect();
    assert_eq!(asked.len(), 8, "{lines:?}");
    // AWS: each page is signed, for its own service and region.
    for (page, scope) in asked[..4].iter().zip([
        "/us-east-1/ec2/aws4_request",
        "/us-east-1/ec2/aws4_request",
        "/us-east-1/pricing/aws4_request",
        "/us-east-1/pricing/aws4_request",
    ]) {
        assert!(
            page.head
                .contains("authorization: aws4-hmac-sha256 credential=akidexample/")
        );
        assert!(page.head.contains(scope), "{}", page.head);
        assert!(!page.head.contains("secret"));
    }
    assert!(asked[0].body.contains("StartTime=2026-05-20T10%3A00%3A00Z"));
    assert!(asked[2].body.contains(r#""Value":"us-east-1""#));
    // Azure: the filter, and no credentials.
    assert!(
        asked[4].line.contains("armRegionName%20eq%20%27eastus%27"),
        "{lines:?}"
    );
    assert!(!asked[4].head.contains("authorization"));
    // GCP: the key is in the head and never in the address.
    assert!(asked[6].head.contains("x-goog-api-key: secret-key"));
    assert!(asked[7].line.contains("pageToken=AIx%2Fnext%3D%3D"));
    assert!(
        lines.iter().all(|line| !line.contains("secret")),
        "{lines:?}"
    );
}

#[tokio::test]
async fn an_offer_becomes_a_machine_for_decisions() {
    let server = Server::start(recorded).await;
    let fetched = fetch(aws(&server.url)).await;
    let found = fetched
        .offers
        .values()
        .find(|o| o.key.instance_type == "p4d.24xlarge");
    let offer = found.and_then(Offer::for_placement).expect("a p4d");
    assert_eq!(offer.gpus.len(), 8);
    assert_eq!(offer.gpus[0].model, "A100");
    assert_eq!(offer.allocatable.cpu_millis, 96_000);
    assert_eq!(
        offer.location.geography,
        Some(hyperion_placement::model::Geography::Us)
    );
    assert_eq!(offer.arch, "amd64");
}
