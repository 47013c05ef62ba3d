//! Bad answers: each is named, and takes nothing from what was there.

use std::time::Duration;

use hyperion_providers::feeds::azure::Azure;
use hyperion_providers::feeds::file::File;
use hyperion_providers::feeds::http::{Http, Limits};
use hyperion_providers::feeds::run::Source;
use hyperion_providers::feeds::{Fetched, Reason};

use crate::clouds::recorded;
use crate::server::{Reply, Server, ok};
use crate::{aws, azure, data, gcp, left, then};

fn reasons(fetched: &Fetched) -> Vec<Reason> {
    fetched.failures.iter().map(|f| f.reason).collect()
}

fn bad(status: u16, lines: &'static str, body: &str) -> Reply {
    Reply::Whole(status, lines, body.to_owned())
}

/// What all three say to the same answer to everything.
async fn all(reply: Reply) -> Vec<Fetched> {
    let server = Server::script([reply]).await;
    let mut all = Vec::new();
    for source in [azure(&server.url), gcp(&server.url), aws(&server.url)] {
        let fetched = source.fetch(then()).await;
        assert!(fetched.offers.is_empty(), "{fetched:?}");
        // AWS asks twice: spot and list.
        let requests = if matches!(source, Source::Aws(_)) {
            2
        } else {
            1
        };
        assert_eq!(fetched.failures.len(), requests, "{fetched:?}");
        all.push(fetched);
    }
    all
}

#[tokio::test]
async fn bad_answers_are_named_by_every_feed() {
    let html = "<!DOCTYPE html><html><body>We are down</body></html>";
    for (reply, reason) in [
        (
            bad(429, "retry-after: 90\r\n", "slow down"),
            Reason::RateLimited,
        ),
        (bad(500, "", "oops"), Reason::Server),
        (bad(503, "retry-after: 90\r\n", ""), Reason::Server),
        (bad(403, "", "{}"), Reason::Credentials),
        (bad(404, "", "{}"), Reason::Status),
        (
            bad(301, "location: http://127.0.0.1:1/\r\n", ""),
            Reason::Status,
        ),
        (bad(200, "content-type: text/html\r\n", html), Reason::Html),
        (
            bad(200, "content-type: application/json\r\n", html),
            Reason::Html,
        ),
        (bad(200, "", ""), Reason::Empty),
        (bad(200, "", "{\"Items\": [{\"curr"), Reason::Malformed),
        (bad(200, "", "[]"), Reason::Malformed),
        (bad(200, "", "{}"), Reason::Malformed),
        (bad(200, "", "\u{0}\u{1}garbage"), Reason::Malformed),
        (
            Reply::Half("{\"Items\": [".to_owned(), 500),
            Reason::Network,
        ),
    ] {
        let shown = format!("{reply:?}");
        for fetched in all(reply).await {
            for failure in &fetched.failures {
                assert_eq!(failure.reason, reason, "{shown} {failure}");
                let asked = shown
                    .contains("retry-after")
                    .then(|| Duration::from_secs(90));
                assert_eq!(failure.retry_after, asked, "{shown} {failure}");
                assert!(!failure.to_string().contains("secret"), "{failure}");
                assert!(
                    failure.text.len() < 1000 && !failure.text.contains('\n'),
                    "{failure}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    for source in [azure, gcp, aws] {
        let fetched = source("http://127.0.0.1:1").fetch(then()).await;
        assert_eq!(reasons(&fetched)[0], Reason::Network);
        assert!(
            fetched.failures[0].text.contains("onnect"),
            "{}",
            fetched.failures[0]
        );
    }
}

#[tokio::test]
async fn an_answer_without_prices_is_a_failure() {
    for (source, body) in [
        (
            azure as fn(&str) -> Source,
            r#"{"Items":[],"NextPageLink":null,"Count":0}"#,
        ),
        (gcp, r#"{"skus":[],"nextPageToken":""}"#),
        (
            aws,
            "<DescribeSpotPriceHistoryResponse><spotPriceHistorySet/><nextToken/></DescribeSpotPriceHistoryResponse>",
        ),
    ] {
        let server = Server::script([ok(body)]).await;
        let fetched = source(&server.url).fetch(then()).await;
        assert_eq!(reasons(&fetched)[0], Reason::Empty, "{body}");
    }
}

#[tokio::test]
async fn pages_that_lead_back_end() {
    let to_itself = data("azure-eastus-1.json");
    let server = Server::script([ok(to_itself)]).await;
    let fetched = azure(&server.url).fetch(then()).await;
    assert_eq!(reasons(&fetched), [Reason::Pages]);
    assert!(!fetched.offers.is_empty(), "what came counts");
    assert_eq!(server.count(), 2);

    let server = Server::script([ok(data("gcp-1.json"))]).await;
    let fetched = gcp(&server.url).fetch(then()).await;
    assert_eq!(reasons(&fetched), [Reason::Pages]);
    assert_eq!(server.count(), 2);
    assert!(
        !fetched.offers.is_empty(),
        "what can be put together counts"
    );
    assert!(!left(&fetched).contains("incomplete"), "{}", left(&fetched));

    let server = Server::script([ok(data("aws-spot-1.xml"))]).await;
    let fetched = aws(&server.url).fetch(then()).await;
    assert_eq!(reasons(&fetched), [Reason::Pages, Reason::Malformed]);
    assert!(!fetched.offers.is_empty(), "what came counts");
}

#[tokio::test]
async fn pages_without_end_end() {
    let server = Server::start(|_, n| {
        ok(format!(
            r#"{{"Items":[],"NextPageLink":"{{server}}/api/retail/prices?$skip={n}"}}"#
        ))
    })
    .await;
    let fetched = azure(&server.url).fetch(then()).await;
    assert_eq!(reasons(&fetched), [Reason::Pages]);
    assert!(server.count() <= 300, "{}", server.count());
}

#[tokio::test]
async fn a_page_elsewhere_is_not_followed() {
    for link in [
        "http://127.0.0.1:1/x",
        "https://{host}/x",
        "file:///etc/passwd",
        "/x",
        "::",
    ] {
        let server = Server::start(move |asked, _| {
            let host = asked.head.lines().find_map(|l| l.strip_prefix("host: "));
            let link = link.replace("{host}", host.unwrap_or_default());
            ok(format!(r#"{{"Items":[],"NextPageLink":"{link}"}}"#))
        })
        .await;
        let fetched = azure(&server.url).fetch(then()).await;
        assert_eq!(reasons(&fetched), [Reason::Pages], "{link}");
        assert_eq!(server.count(), 1);
    }
}

#[tokio::test]
async fn a_later_page_that_fails_takes_nothing_away() {
    let server = Server::script([ok(data("azure-eastus-1.json")), bad(500, "", "oops")]).await;
    let fetched = azure(&server.url).fetch(then()).await;
    assert_eq!(reasons(&fetched), [Reason::Server]);
    assert_eq!(fetched.offers.len(), 3, "{:?}", fetched.offers);

    let server = Server::start(|asked, n| {
        let spot = asked.body.contains("DescribeSpotPriceHistory");
        if spot {
            bad(500, "", "oops")
        } else {
            recorded(asked, n)
        }
    })
    .await;
    let fetched = aws(&server.url).fetch(then()).await;
    assert_eq!(reasons(&fetched), [Reason::Server]);
    assert_eq!(fetched.offers.len(), 4, "{:?}", fetched.offers);
}

#[tokio::test]
async fn huge_and_silent_answers_are_given_up() {
    let limits = Limits {
        patience: Duration::from_millis(300),
        bytes: 1000,
    };
    let http = Http::new(limits).expect("roots that the machine trusts");
    let of = |url: &str| {
        let endpoint = format!("{url}/x");
        Source::Azure(Azure::new(
            http.clone(),
            &endpoint,
            vec!["eastus".to_owned()],
        ))
    };
    let server = Server::script([ok(data("azure-eastus-1.json"))]).await;
    assert_eq!(
        reasons(&of(&server.url).fetch(then()).await),
        [Reason::TooLarge]
    );
    let server = Server::script([Reply::Silence]).await;
    assert_eq!(
        reasons(&of(&server.url).fetch(then()).await),
        [Reason::Timeout]
    );
}

#[tokio::test]
async fn rows_of_a_file_are_judged_one_by_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("prices.csv");
    let text = "\
provider, region, zone, instance_type, capacity_type, price_per_hour, currency
# our contract
aws,us-east-1,,g5.xlarge,on-demand,0.8,USD
aws,us-east-1,us-east-1a,g5.xlarge,spot,0.4,
aws,us-east-1,eu-west-1a,g5.xlarge,spot,0.4,
gcp,us-central1,,g2-standard-4,on-demand,-1
azure,eastus,,Standard_NC4as_T4_v3,on-demand,inf
azure,eastus,,Standard_NC4as_T4_v3,on-demand,0.5,EUR
azure,narnia,,Standard_NC4as_T4_v3,on-demand,0.5
aws,us-east-1,,x99.huge,on-demand,1
edge,us-east-1,,g5.xlarge,on-demand,1
aws,us-east-1,,g5.xlarge,owned,1
aws,us-east-1
";
    std::fs::write(&path, text).expect("a file");
    let file = File::new(path.clone());
    let fetched = file.fetch(then());
    assert_eq!(fetched.failures, []);
    assert_eq!(fetched.offers.len(), 2, "{:?}", fetched.offers);
    let expected = "price 2, currency 1, unknownType 2, unknownRegion 2, malformed 2";
    assert_eq!(left(&fetched), expected, "{:?}", fetched.examples);
    let example = fetched.examples.values().next().expect("one");
    assert!(example.starts_with("line 6: gcp,us-central1"), "{example}");

    for (text, reason) in [
        ("", Reason::File),
        ("provider,region\naws,us-east-1\n", Reason::File),
        (
            "provider,region,instance_type,capacity_type,price_per_hour\n",
            Reason::Empty,
        ),
    ] {
        std::fs::write(&path, text).expect("a file");
        assert_eq!(reasons(&file.fetch(then())), [reason], "{text}");
    }
    std::fs::write(&path, [0xff, 0xfe, 0x00]).expect("a file");
    assert_eq!(reasons(&file.fetch(then())), [Reason::File]);
    std::fs::remove_file(&path).expect("a file");
    let fetched = file.fetch(then());
    assert_eq!(reasons(&fetched), [Reason::File]);
    assert!(fetched.failures[0].to_string().contains("prices.csv"));
}
