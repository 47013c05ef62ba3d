//! The mode machine.
//!
//! *Contact* is a welcome of the control plane on this node's own link (which may run through a
//! peer), or a live peer whose record says that it has one. What counts as contact ends with the
//! link, not with its silence: how long a silent link stands is the link's affair.
//!
//! | from | to | when |
//! |---|---|---|
//! | start | suspect | |
//! | any | reconciling | the link is up |
//! | connected, reconciling | suspect | the link is down |
//! | reconciling | connected | the complete welcome was had, and no decision of the site waits |
//! | connected | reconciling | a decision of the site came to light that the control plane has not taken |
//! | suspect, reconciling | autonomous | no contact for `autonomous_after` |
//! | autonomous | suspect | a peer has contact |
//!
//! A link that comes up and goes away again without a welcome is no contact, so a control plane that
//! only half lives can't keep a site from helping itself. A node that the control plane refuses never
//! becomes autonomous: its peers may hear it no more, and it would take all of them for dead.

use std::fmt;
use std::time::Duration;

/// What a node may do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The control plane decides; its link stands.
    Connected,
    /// The link is down, and whether the site is cut off is not known yet, or a peer has a link.
    Suspect,
    /// No link at the site: it decides for itself.
    Autonomous,
    /// The link is back, and the control plane has not taken what the site decided: nothing new is
    /// decided here.
    Reconciling,
}

impl Mode {
    /// The word used in records, status and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Suspect => "suspect",
            Self::Autonomous => "autonomous",
            Self::Reconciling => "reconciling",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The link, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Link {
    Down,
    /// The control plane turned this node away, and why.
    Refused(String),
    Up {
        welcomed: bool,
        complete: bool,
    },
}

/// A change of mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// Mode before.
    pub from: Mode,
    /// Mode now.
    pub to: Mode,
    /// For people.
    pub why: String,
}

/// What the rest of the site says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence<'a> {
    /// A live peer that has contact.
    pub linked_peer: Option<&'a str>,
    /// Decisions of the site that the control plane has not taken.
    pub untaken: bool,
}

/// The mode machine of one node.
#[derive(Debug)]
pub struct Machine {
    mode: Mode,
    since: Duration,
    link: Link,
    /// When there was contact last; the start where there was none.
    contact: Duration,
    /// When this node's own link stood last; the start where it never did.
    linked_at: Duration,
    autonomous_after: Duration,
}

impl Machine {
    /// Suspect from the start.
    #[must_use]
    pub fn new(now: Duration, autonomous_after: Duration) -> Self {
        Self {
            mode: Mode::Suspect,
            since: now,
            link: Link::Down,
            contact: now,
            linked_at: now,
            autonomous_after,
        }
    }

    /// Mode.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// When the mode began.
    #[must_use]
    pub fn since(&self) -> Duration {
        self.since
    }

    /// True while this node's own link stands and was welcomed.
    #[must_use]
    pub fn linked(&self) -> bool {
        matches!(self.link, Link::Up { welcomed: true, .. })
    }

    /// True while the link stands and the control plane's list was complete.
    #[must_use]
    pub fn complete(&self) -> bool {
        matches!(self.link, Link::Up { complete: true, .. })
    }

    /// When there was contact last, by way of this node or of a peer; the start where there was
    /// none.
    #[must_use]
    pub fn contact(&self) -> Duration {
        self.contact
    }

    /// When this node's own link stood last: now, while it does; the start where it never did. A
    /// link that was not welcomed counts for nothing: what was stopped without link must not run
    /// again before the control plane has said whether it is still wanted.
    #[must_use]
    pub fn own_contact(&self, now: Duration) -> Duration {
        if self.linked() { now } else { self.linked_at }
    }

    /// True while the control plane turns this node away.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.link, Link::Refused(_))
    }

    /// The link is up, and hello was sent. A link that is up already stays as it is.
    pub fn link_up(&mut self, now: Duration) -> Option<Changed> {
        if matches!(self.link, Link::Up { .. }) {
            return None;
        }
        self.link = Link::Up {
            welcomed: false,
            complete: false,
        };
        self.to(Mode::Reconciling, now, "the link is up")
    }

    /// The control plane has answered.
    pub fn welcomed(
        &mut self,
        complete: bool,
        now: Duration,
        evidence: Evidence,
    ) -> Option<Changed> {
        let before = self.complete();
        self.link = Link::Up {
            welcomed: true,
            complete: complete || before,
        };
        self.look(now, evidence)
    }

    /// The link is down.
    pub fn link_down(&mut self, now: Duration) -> Option<Changed> {
        if self.linked() {
            (self.contact, self.linked_at) = (now, now);
        }
        if !matches!(self.link, Link::Refused(_)) {
            self.link = Link::Down;
        }
        match self.mode {
            Mode::Connected | Mode::Reconciling => self.to(Mode::Suspect, now, "the link is down"),
            Mode::Suspect | Mode::Autonomous => None,
        }
    }

    /// The control plane turned this node away (revoked, or its identity is in use), or it can't say who it
    /// is. Holds until the link is up.
    pub fn refused(&mut self, why: &str, now: Duration) -> Option<Changed> {
        if self.linked() {
            (self.contact, self.linked_at) = (now, now);
        }
        self.link = Link::Refused(why.to_owned());
        let why = format!("kept out of the fleet: {why}");
        self.to(Mode::Suspect, now, &why)
    }

    /// Looks at what the site says and at the time.
    pub fn look(&mut self, now: Duration, evidence: Evidence) -> Option<Changed> {
        if self.linked() || evidence.linked_peer.is_some() {
            self.contact = now;
        }
        if let Link::Up {
            welcomed: true,
            complete,
        } = self.link
        {
            return match (complete, evidence.untaken) {
                (true, false) => {
                    self.to(Mode::Connected, now, "the control plane has told the whole")
                }
                (true, true) => self.to(
                    Mode::Reconciling,
                    now,
                    "the control plane has not taken what the site decided",
                ),
                (false, _) => self.to(Mode::Reconciling, now, "the link is up"),
            };
        }
        if let Some(peer) = evidence.linked_peer {
            return match self.mode {
                Mode::Autonomous => {
                    let why = format!("{peer} has a link to the control plane");
                    self.to(Mode::Suspect, now, &why)
                }
                _ => None,
            };
        }
        // A link that is up and not welcomed yet is no reason to decide anything.
        if !matches!(self.link, Link::Down) || now < self.deadline() {
            return None;
        }
        let why = format!(
            "no node of the site has a link for {:.1} s",
            now.saturating_sub(self.contact).as_secs_f64()
        );
        self.to(Mode::Autonomous, now, &why)
    }

    fn deadline(&self) -> Duration {
        self.contact.saturating_add(self.autonomous_after)
    }

    /// When to look at the latest; none where time alone changes nothing.
    #[must_use]
    pub fn next_wake(&self, evidence: Evidence) -> Option<Duration> {
        let waits = self.mode != Mode::Autonomous
            && !self.linked()
            && evidence.linked_peer.is_none()
            && matches!(self.link, Link::Down);
        waits.then(|| self.deadline())
    }

    fn to(&mut self, mode: Mode, now: Duration, why: &str) -> Option<Changed> {
        if self.mode == mode {
            return None;
        }
        let from = std::mem::replace(&mut self.mode, mode);
        self.since = now;
        Some(Changed {
            from,
            to: mode,
            why: why.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
