//! What all lists of prices have in common: pages that must come to an end, rows for regions that
//! were not asked for, and more than one price for the same thing.

use std::collections::{BTreeMap, BTreeSet};

use hyperion_placement::model::Provider;

use super::{Failure, Fetched, Key, Left, Offer, Reason};

/// Pages of one list. GCP's catalog has about fifty of 1,000 rows, a region of AWS or Azure a few, or
/// fifty where pages are short.
const MOST_PAGES: usize = 300;

/// The pages of one list: none may come twice, there is an end, and something is on them.
pub(super) struct Pages<'a> {
    what: &'a str,
    /// Names of the pages that were asked for.
    seen: BTreeSet<String>,
    read: usize,
    rows: usize,
}

impl<'a> Pages<'a> {
    /// Of a list whose first page has no name.
    pub(super) fn new(what: &'a str) -> Self {
        Self {
            what,
            seen: BTreeSet::new(),
            read: 0,
            rows: 0,
        }
    }

    /// Of a list whose first page has one, too.
    pub(super) fn beginning_at(what: &'a str, first: String) -> Self {
        Self {
            seen: BTreeSet::from([first]),
            ..Self::new(what)
        }
    }

    /// A page that can't be read.
    pub(super) fn malformed(&self, error: impl std::fmt::Display) -> Failure {
        let text = format!("page {}: {error}", self.read + 1);
        Failure::new(Reason::Malformed, self.what, text)
    }

    /// A page with so many rows was read, and names the next one; gives that, where there is one.
    ///
    /// # Errors
    /// It was there before, there are too many, or the list has ended without a row.
    pub(super) fn read(
        &mut self,
        rows: usize,
        next: Option<String>,
    ) -> Result<Option<String>, Failure> {
        self.read += 1;
        self.rows += rows;
        let Some(next) = next.filter(|name| !name.is_empty()) else {
            if self.rows == 0 {
                return Err(Failure::new(Reason::Empty, self.what, "no prices at all"));
            }
            return Ok(None);
        };
        if self.read >= MOST_PAGES {
            return Err(self.endless(format!("more than {MOST_PAGES} pages")));
        }
        if !self.seen.insert(next.clone()) {
            let text = format!("page {} leads back to one before", self.read);
            return Err(self.endless(text));
        }
        Ok(Some(next))
    }

    /// The next page is none.
    pub(super) fn endless(&self, text: String) -> Failure {
        Failure::new(Reason::Pages, self.what, text)
    }
}

/// A row is of the region that was asked for.
///
/// # Errors
/// It is of another one, or of none that is known.
pub(super) fn in_region(provider: Provider, said: &str, asked: &str) -> Result<(), Left> {
    if said == asked {
        return Ok(());
    }
    Err(if crate::geography(provider, said).is_some() {
        Left::OtherRegion
    } else {
        Left::UnknownRegion
    })
}

/// Of two prices for the same thing the later one counts, of two of one time the one read last.
pub(super) struct Latest<T>(BTreeMap<Key, (T, Offer)>);

impl<T: PartialOrd> Latest<T> {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn take(&mut self, since: T, offer: Offer) {
        match self.0.get(&offer.key) {
            Some(held) if held.0 > since => {}
            _ => {
                self.0.insert(offer.key.clone(), (since, offer));
            }
        }
    }

    /// Adds what counts.
    pub(super) fn add_to(self, fetched: &mut Fetched) {
        for (_, offer) in self.0.into_values() {
            fetched.add(Ok(offer), String::new);
        }
    }
}
