//! Live prices: feeds of the three clouds and of a file, in one form.
//!
//! - here: [`Offer`], and what a feed brings and says;
//! - [`aws`], [`gcp`], [`azure`], [`file`]: who is asked, and how the answers are read;
//! - [`book`]: the prices that are known, held back and aged. No I/O, and time is an argument;
//! - [`cache`]: the book on disk;
//! - [`run`]: the schedule;
//! - [`metrics`]: what is counted.

pub mod aws;
pub mod azure;
pub mod book;
pub mod cache;
pub mod file;
pub mod gcp;
pub mod http;
pub mod metrics;
mod offer;
mod pages;
pub mod run;
mod said;

pub use book::{Book, Known, Prices};
pub use offer::{Key, Offer};
pub use run::{FeedConfig, Feeds, start};
pub use said::{Failure, Feed, Fetched, Left, Reason};
