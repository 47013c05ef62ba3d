//! Feeds of live prices against answers in the documented forms, and against every bad one.

#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used)]

mod clouds;
mod faults;
mod moto;
mod schedule;
mod server;

use std::time::Duration;

use aws_credential_types::Credentials;
use hyperion_providers::feeds::aws::Aws;
use hyperion_providers::feeds::azure::Azure;
use hyperion_providers::feeds::gcp::{Access, Gcp};
use hyperion_providers::feeds::http::{Http, Limits};
use hyperion_providers::feeds::run::Source;
use hyperion_providers::feeds::{Fetched, Left};
use jiff::Timestamp;

/// When the recorded answers were given.
fn then() -> Timestamp {
    "2026-05-20T10:00:00Z".parse().expect("a time")
}

fn data(name: &str) -> String {
    let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn http() -> Http {
    let limits = Limits {
        patience: Duration::from_secs(10),
        bytes: 1 << 20,
    };
    Http::new(limits).expect("roots that the machine trusts")
}

fn azure(url: &str) -> Source {
    let endpoint = format!("{url}/api/retail/prices");
    Source::Azure(Azure::new(http(), &endpoint, vec!["eastus".to_owned()]))
}

fn gcp(url: &str) -> Source {
    let regions = ["europe-west4", "us-central1"].map(str::to_owned).to_vec();
    let access = Access::Key("secret-key".to_owned());
    Source::Gcp(Gcp::new(http(), url, access, regions))
}

fn aws(url: &str) -> Source {
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    let aws = Aws::new(http(), vec!["us-east-1".to_owned()]);
    Source::Aws(aws.with_access(credentials, url))
}

/// What was left out, as text.
fn left(fetched: &Fetched) -> String {
    let one = |(left, count): (&Left, &u64)| format!("{left} {count}");
    fetched.left.iter().map(one).collect::<Vec<_>>().join(", ")
}
