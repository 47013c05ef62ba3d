//! What nodes are told of their site: who belongs to it, where they were last found, and who is
//! not to be heard any more. Made anew for each site that changed and not for each node.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperion_placement::model::LatencyMatrix;
use hyperion_proto::agent_v1::{PlaceRtt, SiteInfo, SiteMember};
use tracing::warn;

/// Nodes of one site beyond which it is told nothing: a site is one local network, and a message
/// to each of its nodes about each of the others grows with the square.
pub const MAX_MEMBERS: usize = 1000;
/// Addresses kept of one node.
pub const MAX_ADDRESSES: usize = 8;
/// Time between two messages to a small site.
const PERIOD: Duration = Duration::from_secs(1);
/// The same for a site of more than [`MANY`] nodes, which comes up one by one.
const LONG_PERIOD: Duration = Duration::from_secs(5);
/// Nodes of a site that is not small.
const MANY: usize = 100;
/// Deleted nodes of a site that are remembered as not to be heard. Their certificates run out.
const REMEMBERED: usize = 256;

/// What a site has to know of one of its nodes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Member {
    /// Not cordoned and not draining.
    pub schedulable: bool,
    /// Its certificate is no longer accepted.
    pub revoked: bool,
    /// US dollars per hour.
    pub price_per_hour: f64,
    /// "HOST:PORT" of its peer port, as it was last said.
    pub addresses: Vec<String>,
}

#[derive(Default)]
struct Site {
    members: BTreeMap<String, Member>,
    /// Nodes that were deleted.
    gone: BTreeSet<String>,
    /// As it was told last.
    info: Option<Arc<SiteInfo>>,
    told: Option<Instant>,
    /// It was said that the site is too large.
    warned: bool,
}

/// All sites.
#[derive(Default)]
pub struct Sites {
    /// Site of each node.
    of: HashMap<String, String>,
    sites: BTreeMap<String, Site>,
    changed: BTreeSet<String>,
    latency: LatencyMatrix,
}

impl Sites {
    /// Round trips that sites are told of.
    pub fn set_latency(&mut self, latency: LatencyMatrix) {
        self.latency = latency;
    }

    /// Notes a node's object. Addresses of the object count only where the node has not said any.
    pub fn set(&mut self, node: &str, site: &str, mut member: Member) {
        if self.of.get(node).is_some_and(|held| held != site) {
            self.take_out(node, false);
        }
        if site.is_empty() {
            return;
        }
        self.of.insert(node.to_owned(), site.to_owned());
        let entry = self.sites.entry(site.to_owned()).or_default();
        let held = entry.members.get(node);
        if let Some(held) = held.filter(|h| !h.addresses.is_empty()) {
            member.addresses.clone_from(&held.addresses);
        }
        if held == Some(&member) {
            return;
        }
        entry.gone.remove(node);
        entry.members.insert(node.to_owned(), member);
        self.changed.insert(site.to_owned());
    }

    /// What a node says of its addresses. Nothing where it says none.
    pub fn set_addresses(&mut self, node: &str, addresses: &[String]) {
        let Some(site) = self.of.get(node) else {
            return;
        };
        let member = self.sites.get_mut(site);
        let Some(member) = member.and_then(|s| s.members.get_mut(node)) else {
            return;
        };
        if !addresses.is_empty() && member.addresses != addresses {
            member.addresses = addresses.to_vec();
            self.changed.insert(site.clone());
        }
    }

    /// A node's object is gone: its site is not to hear it any more.
    pub fn remove(&mut self, node: &str) {
        self.take_out(node, true);
    }

    fn take_out(&mut self, node: &str, gone: bool) {
        let Some(name) = self.of.remove(node) else {
            return;
        };
        let Some(site) = self.sites.get_mut(&name) else {
            return;
        };
        site.members.remove(node);
        if gone && site.gone.len() < REMEMBERED {
            site.gone.insert(node.to_owned());
        }
        if site.members.is_empty() {
            self.sites.remove(&name);
            self.changed.remove(&name);
        } else {
            self.changed.insert(name);
        }
    }

    /// What a node's welcome says of its site; none where it has none, or one that is too large.
    pub fn info(&mut self, node: &str, unix_ms: u64) -> Option<Arc<SiteInfo>> {
        let name = self.of.get(node)?.clone();
        let held = self.sites.get(&name)?.info.clone();
        if held.is_some() {
            return held;
        }
        self.changed.remove(&name);
        self.make(&name, unix_ms)
    }

    /// What is to be told now, and to whom. A site that changes all the time is told now and then.
    pub fn due(&mut self, now: Instant, unix_ms: u64) -> Vec<(Arc<SiteInfo>, Vec<String>)> {
        let mut told = Vec::new();
        for name in self.changed.clone() {
            let Some(site) = self.sites.get(&name) else {
                self.changed.remove(&name);
                continue;
            };
            let period = if site.members.len() > MANY {
                LONG_PERIOD
            } else {
                PERIOD
            };
            if site.told.is_some_and(|at| now < at + period) {
                continue;
            }
            self.changed.remove(&name);
            let before = site.info.as_ref().map(|info| info.version);
            let Some(info) = self.make(&name, unix_ms) else {
                continue;
            };
            if before == Some(info.version) {
                continue;
            }
            if let Some(site) = self.sites.get_mut(&name) {
                site.told = Some(now);
                told.push((info, site.members.keys().cloned().collect()));
            }
        }
        told
    }

    /// Makes the message, with a new version where it differs from the last.
    fn make(&mut self, name: &str, unix_ms: u64) -> Option<Arc<SiteInfo>> {
        let site = self.sites.get_mut(name)?;
        if site.members.len() > MAX_MEMBERS {
            if !std::mem::replace(&mut site.warned, true) {
                let members = site.members.len();
                warn!(
                    site = name,
                    members, "too many nodes for one site: it is not told of its members"
                );
            }
            return None;
        }
        let before = site.info.as_ref().map_or(0, |info| info.version);
        let enrolled = site.members.iter().filter(|(_, m)| !m.revoked);
        let members = enrolled.map(|(id, m)| SiteMember {
            node_id: id.clone(),
            addresses: m.addresses.clone(),
            schedulable: m.schedulable,
            price_per_hour: m.price_per_hour,
        });
        let revoked = site.members.iter().filter(|(_, m)| m.revoked);
        let revoked = revoked.map(|(id, _)| id.clone());
        let place = format!("site:{name}");
        let rtts = self.latency.rtt_ms.iter();
        let rtts = rtts.filter(|((a, b), _)| a.0 == place || b.0 == place);
        let fresh = SiteInfo {
            version: before,
            members: members.collect(),
            revoked: revoked.chain(site.gone.iter().cloned()).collect(),
            rtts: rtts
                .map(|((a, b), ms)| PlaceRtt {
                    from: a.0.clone(),
                    to: b.0.clone(),
                    rtt_ms: *ms,
                })
                .collect(),
            site: name.to_owned(),
        };
        if site.info.as_deref() == Some(&fresh) {
            return site.info.clone();
        }
        // By the clock, so that it also grows over restarts of the control plane.
        let info = Arc::new(SiteInfo {
            version: unix_ms.max(before + 1),
            ..fresh
        });
        site.info = Some(info.clone());
        Some(info)
    }
}

/// Addresses as a node says them: what is no "HOST:PORT" is left out.
#[must_use]
pub fn addresses(said: &[String]) -> Vec<String> {
    let sane = |text: &&String| {
        let port = text.rsplit_once(':').and_then(|(_, p)| p.parse().ok());
        text.len() <= 256 && !text.chars().any(char::is_control) && port.is_some_and(|p: u16| p > 0)
    };
    said.iter()
        .filter(sane)
        .take(MAX_ADDRESSES)
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyperion_placement::model::Place;

    fn member() -> Member {
        Member {
            schedulable: true,
            ..Member::default()
        }
    }

    fn members(info: &SiteInfo) -> Vec<&str> {
        info.members.iter().map(|m| m.node_id.as_str()).collect()
    }

    #[test]
    fn a_site_is_told_of_its_nodes_and_of_those_not_to_be_heard() {
        let mut sites = Sites::default();
        let mut latency = LatencyMatrix::default();
        latency.insert(&Place("site:lab".into()), &Place("geo:EU".into()), 12.0);
        latency.insert(&Place("site:x".into()), &Place("geo:EU".into()), 1.0);
        sites.set_latency(latency);
        for node in ["a", "b", "c"] {
            sites.set(node, "lab", member());
        }
        sites.set("far", "x", member());
        let revoked = Member {
            revoked: true,
            ..member()
        };
        sites.set("b", "lab", revoked);
        let info = sites.info("a", 1000).unwrap();
        assert_eq!(members(&info), ["a", "c"]);
        assert_eq!(info.revoked, ["b"]);
        assert_eq!((info.rtts.len(), info.rtts[0].rtt_ms), (1, 12.0));
        assert_eq!((info.site.as_str(), info.version), ("lab", 1000));
        sites.remove("c");
        let now = Instant::now();
        let told = sites.due(now, 900);
        let (info, to) = told.iter().find(|(i, _)| i.site == "lab").unwrap();
        assert_eq!((members(info), to.len()), (vec!["a"], 2));
        assert_eq!(info.revoked, ["b", "c"]);
        assert_eq!(info.version, 1001, "it grows although the clock went back");
    }

    #[test]
    fn changes_that_come_together_are_told_once() {
        let mut sites = Sites::default();
        sites.set("a", "lab", member());
        let now = Instant::now();
        assert_eq!(sites.due(now, 1).len(), 1);
        assert_eq!(sites.due(now, 1).len(), 0, "nothing new");
        sites.set_addresses("a", &["10.0.0.1:7".to_owned()]);
        sites.set("b", "lab", member());
        assert_eq!(sites.due(now, 2).len(), 0, "a moment ago");
        let told = sites.due(now + PERIOD, 2);
        assert_eq!(told.len(), 1);
        assert_eq!(members(&told[0].0), ["a", "b"]);
        assert_eq!(told[0].0.members[0].addresses, ["10.0.0.1:7"]);
        // An object that knows less than the node said.
        sites.set("a", "lab", member());
        assert_eq!(sites.due(now + PERIOD * 2, 3).len(), 0);
    }

    #[test]
    fn a_site_that_is_no_local_network_is_told_nothing() {
        let mut sites = Sites::default();
        for i in 0..=MAX_MEMBERS {
            sites.set(&format!("n{i}"), "cloud", member());
        }
        assert!(sites.info("n0", 1).is_none());
        assert!(sites.due(Instant::now(), 1).is_empty());
        sites.remove("n1");
        assert!(sites.info("n0", 1).is_some());
        sites.set("lonely", "", member());
        assert!(sites.info("lonely", 1).is_none());
    }

    #[test]
    fn odd_addresses_are_left_out() {
        let said = ["10.0.0.1:7", "edge.lan:80", "x", "a:0", "a:b", "a\n:1"];
        let said: Vec<String> = said.iter().map(|s| (*s).to_owned()).collect();
        assert_eq!(addresses(&said), ["10.0.0.1:7", "edge.lan:80"]);
        assert_eq!(addresses(&vec!["a:1".to_owned(); 99]).len(), MAX_ADDRESSES);
    }
}
