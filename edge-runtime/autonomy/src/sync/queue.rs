//! What one peer is to be sent.

use std::collections::{BTreeSet, VecDeque};

use hyperion_wire::domain::ReplicaKey;
use hyperion_wire::peer_v1::{Entries, Frame, Summary, Versions, Want, frame};
use prost::Message as _;

use crate::site::Site;

/// A frame is full with so many bytes: large enough that what surrounds it does not count, small
/// enough that all peers have their turn within a second or so.
pub(super) const FULL: usize = 16 * 1024;

/// No frame is longer, unless a single record is.
pub(super) const LONGEST: usize = 60_000;

/// Bytes that a field of this length takes in a frame: tag and length before it.
const fn field(bytes: usize) -> usize {
    bytes + 4
}

/// Something that is known, in the order in which it matters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    /// What the control plane said of the site.
    Info,
    /// A replica's record.
    Replica(ReplicaKey),
    /// A node's record.
    Node(String),
}

/// What one peer is to be sent. Only what is meant is kept, not the records: they are read when their
/// turn comes, and what was told to be sent twice is sent once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Hashes of all that is known.
    pub summary: bool,
    /// Versions of what is in these buckets.
    pub buckets: BTreeSet<usize>,
    /// What is wanted of the peer.
    pub want: BTreeSet<Item>,
    /// What has just changed.
    pub news: BTreeSet<Item>,
    /// What the peer lacks, or asked for.
    pub owed: BTreeSet<Item>,
    /// The rest of a bucket that did not fit one frame.
    parts: VecDeque<Frame>,
    /// Whose turn it is: comparison, news or what is owed.
    turn: u8,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        !self.compares() && self.news.is_empty() && self.owed.is_empty()
    }

    fn compares(&self) -> bool {
        self.summary || !self.buckets.is_empty() || !self.want.is_empty() || !self.parts.is_empty()
    }

    /// The next frame; none where all was sent, or is not known any more.
    pub(super) fn next(&mut self, site: &Site) -> Option<Frame> {
        while !self.is_empty() {
            self.turn = (self.turn + 1) % 3;
            let frame = match self.turn {
                0 => self.comparison(site),
                1 => entries(&mut self.news, site),
                _ => entries(&mut self.owed, site),
            };
            if frame.is_some() {
                return frame;
            }
        }
        None
    }

    fn comparison(&mut self, site: &Site) -> Option<Frame> {
        if let Some(part) = self.parts.pop_front() {
            return Some(part);
        }
        if std::mem::take(&mut self.summary) {
            return Some(body(frame::Body::Summary(Summary {
                buckets: site.buckets().to_vec(),
            })));
        }
        if !self.want.is_empty() {
            return Some(wanted(&mut self.want));
        }
        self.versions(site)
    }

    fn versions(&mut self, site: &Site) -> Option<Frame> {
        let mut all = Versions {
            site_info_version: site.info().version,
            ..Versions::default()
        };
        let mut bytes = 0;
        while bytes < FULL
            && let Some(bucket) = self.buckets.pop_first()
        {
            let one = Versions {
                buckets: vec![u32::try_from(bucket).unwrap_or(u32::MAX)],
                nodes: site.node_versions(bucket).collect(),
                replicas: site.replica_versions(bucket).collect(),
                site_info_version: site.info().version,
            };
            let more = one.encoded_len();
            if bytes > 0 && bytes + more > LONGEST {
                self.buckets.insert(bucket);
                break;
            }
            if more > LONGEST {
                self.parts = split(one);
                return self.parts.pop_front();
            }
            bytes += more;
            all.buckets.extend(one.buckets);
            all.nodes.extend(one.nodes);
            all.replicas.extend(one.replicas);
        }
        (!all.buckets.is_empty()).then(|| body(frame::Body::Versions(all)))
    }
}

/// A bucket in several frames. None of them lists all of it, so none names it: what a frame does not
/// list is then not taken for unknown here.
fn split(versions: Versions) -> VecDeque<Frame> {
    let mut parts = VecDeque::new();
    let mut part = Versions::default();
    let mut bytes = 0;
    let version = versions.site_info_version;
    let mut close = |part: &mut Versions| {
        part.site_info_version = version;
        parts.push_back(body(frame::Body::Versions(std::mem::take(part))));
    };
    for node in versions.nodes {
        bytes += field(node.encoded_len());
        part.nodes.push(node);
        if bytes >= FULL {
            close(&mut part);
            bytes = 0;
        }
    }
    for replica in versions.replicas {
        bytes += field(replica.encoded_len());
        part.replicas.push(replica);
        if bytes >= FULL {
            close(&mut part);
            bytes = 0;
        }
    }
    if bytes > 0 {
        close(&mut part);
    }
    parts
}

/// As many of the records as one frame holds.
fn entries(items: &mut BTreeSet<Item>, site: &Site) -> Option<Frame> {
    let mut all = Entries::default();
    let mut bytes = 0;
    while bytes < FULL
        && let Some(item) = items.pop_first()
    {
        let mut fits = |more: usize| {
            let fits = bytes == 0 || bytes + field(more) <= LONGEST;
            if fits {
                bytes += field(more);
            }
            fits
        };
        let fitted = match &item {
            Item::Info if site.info().version == 0 => true,
            Item::Info => {
                let fits = fits(site.info().encoded_len());
                if fits {
                    all.site_info = Some(site.info().clone());
                }
                fits
            }
            Item::Replica(key) => site.replica(key).is_none_or(|entry| {
                let fits = fits(entry.record.encoded_len());
                if fits {
                    all.replicas.push(entry.record.clone());
                }
                fits
            }),
            Item::Node(id) => site.node(id).is_none_or(|entry| {
                let fits = fits(entry.record.encoded_len());
                if fits {
                    all.nodes.push(entry.record.clone());
                }
                fits
            }),
        };
        if !fitted {
            items.insert(item);
            break;
        }
    }
    (bytes > 0).then(|| body(frame::Body::Entries(all)))
}

fn wanted(items: &mut BTreeSet<Item>) -> Frame {
    let mut all = Want::default();
    let mut bytes = 0;
    while bytes < FULL
        && let Some(item) = items.pop_first()
    {
        match item {
            Item::Info => all.site_info = true,
            Item::Replica(key) => {
                let key = (&key).into();
                bytes += field(prost::Message::encoded_len(&key));
                all.replicas.push(key);
            }
            Item::Node(id) => {
                bytes += field(id.len());
                all.nodes.push(id);
            }
        }
    }
    body(frame::Body::Want(all))
}

fn body(body: frame::Body) -> Frame {
    Frame { body: Some(body) }
}
