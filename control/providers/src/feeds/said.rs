//! What a feed brings, and what it says of what it could not bring.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Key, Offer};

/// A feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feed {
    /// A file of prices. What it says counts before what a cloud says.
    File,
    /// `DescribeSpotPriceHistory` and `GetProducts`.
    Aws,
    /// The Cloud Billing Catalog.
    Gcp,
    /// Retail Prices.
    Azure,
}

impl fmt::Display for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Aws => "aws",
            Self::Gcp => "gcp",
            Self::Azure => "azure",
        })
    }
}

/// Why a request of a feed failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No credentials, or they are refused.
    Credentials,
    /// No connection, no TLS, or it broke.
    Network,
    /// No whole answer in time.
    Timeout,
    /// Too many requests.
    RateLimited,
    /// Status 5xx.
    Server,
    /// Another status that is not success.
    Status,
    /// A page for people where data was expected.
    Html,
    /// Nothing in the answer.
    Empty,
    /// Not the documented form: half of it, or another.
    Malformed,
    /// More than is read.
    TooLarge,
    /// A page that was there before, too many of them, or one elsewhere.
    Pages,
    /// The file can't be read.
    File,
    /// A fault of this program, or of a library.
    Fault,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Credentials => "credentials",
            Self::Network => "network",
            Self::Timeout => "timeout",
            Self::RateLimited => "rateLimited",
            Self::Server => "server",
            Self::Status => "status",
            Self::Html => "html",
            Self::Empty => "empty",
            Self::Malformed => "malformed",
            Self::TooLarge => "tooLarge",
            Self::Pages => "pages",
            Self::File => "file",
            Self::Fault => "fault",
        })
    }
}

/// A request of a feed that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {text}")]
pub struct Failure {
    /// For counters.
    pub reason: Reason,
    /// What was asked for, without secrets.
    pub what: String,
    /// One sentence.
    pub text: String,
    /// How long the other side wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl Failure {
    /// Of this reason.
    pub fn new(reason: Reason, what: impl Into<String>, text: impl fmt::Display) -> Self {
        Self {
            reason,
            what: what.into(),
            text: short(&text.to_string()),
            retry_after: None,
        }
    }
}

/// Why a row is not among the offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Left {
    /// Zero, negative, no number, or beyond all machines.
    Price,
    /// Not US dollars.
    Currency,
    /// A type that is not in the table.
    UnknownType,
    /// A region or zone that is none.
    UnknownRegion,
    /// A region that was not asked for.
    OtherRegion,
    /// A field is missing or can't be read.
    Malformed,
    /// A part of the machine has no price.
    Incomplete,
    /// Windows.
    Windows,
    /// Azure's older kind of spot.
    LowPriority,
    /// For subscriptions of developers.
    DevTest,
    /// Paid in advance.
    Reservation,
    /// Not yet, or no longer.
    NotInForce,
    /// Another product: other tenancy, other software.
    OtherProduct,
}

impl Left {
    /// True for what should not be in a feed, and not merely of no use here.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Price | Self::Currency | Self::UnknownRegion | Self::Malformed
        )
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Price => "price",
            Self::Currency => "currency",
            Self::UnknownType => "unknownType",
            Self::UnknownRegion => "unknownRegion",
            Self::OtherRegion => "otherRegion",
            Self::Malformed => "malformed",
            Self::Incomplete => "incomplete",
            Self::Windows => "windows",
            Self::LowPriority => "lowPriority",
            Self::DevTest => "devTest",
            Self::Reservation => "reservation",
            Self::NotInForce => "notInForce",
            Self::OtherProduct => "otherProduct",
        })
    }
}

/// Offers of one fetch. More are not taken: all known types in all zones are a tenth of this.
const MOST_OFFERS: usize = 100_000;

/// What one fetch brought. A failure in one region or on a later page takes nothing from the rest.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fetched {
    /// By key.
    pub offers: BTreeMap<Key, Offer>,
    /// Rows left out, by reason.
    pub left: BTreeMap<Left, u64>,
    /// The first row of each reason.
    pub examples: BTreeMap<Left, String>,
    /// Requests that failed; none after a complete fetch.
    pub failures: Vec<Failure>,
}

impl Fetched {
    /// Takes an offer, in the place of one with the same key.
    pub fn add(&mut self, offer: Result<Offer, Left>, row: impl FnOnce() -> String) {
        match offer {
            Ok(_) if self.offers.len() >= MOST_OFFERS => self.leave(Left::Malformed, row),
            Ok(offer) => {
                self.offers.insert(offer.key.clone(), offer);
            }
            Err(left) => self.leave(left, row),
        }
    }

    /// Counts a row that is left out.
    pub fn leave(&mut self, left: Left, row: impl FnOnce() -> String) {
        *self.left.entry(left).or_default() += 1;
        self.examples.entry(left).or_insert_with(|| short(&row()));
    }
}

/// One line, at most 200 characters, of what strangers wrote.
pub(super) fn short(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    line.trim().to_owned()
}
