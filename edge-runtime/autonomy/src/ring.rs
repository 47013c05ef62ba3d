//! With whom a node deals.
//!
//! All nodes lie on several rings, on each in another order, by hashes of their names. A node's
//! *partners* are its neighbours on all rings, both ways: some twelve, whatever the size of the site,
//! and nearly the same when a node comes or goes. News and comparisons go to random ones of them, and
//! probes to those ahead. What is told to a partner reaches everybody as soon as what is told to
//! anybody (the rings together make a random graph), but a node needs connections with a dozen
//! others and not with all.

use std::sync::Arc;

/// Rings. Six give 12 partners: news told to three of them by everybody reaches all of a site of 500.
pub(crate) const RINGS: usize = 6;

/// Where a node lies on each ring.
pub(crate) type Places = [u64; RINGS];

/// Where a node lies on each ring: FNV-1a, mixed anew for each ring; the same on all machines and
/// in all versions of the agent.
pub(crate) fn places(node: &str) -> Places {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in node.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut places = [0; RINGS];
    for place in &mut places {
        // splitmix64.
        hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = hash;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *place = mixed ^ (mixed >> 31);
    }
    places
}

/// The ring on which the `round`-th probe goes to the next node: half of the probes on the first, a
/// quarter on the second, the rest on the others in turn. So each node has two that watch it closely
/// and four that see what those do not, and a death is noticed within two periods; with random
/// choice it takes up to five in one of a hundred cases.
pub(crate) fn ring_of_round(round: u64) -> usize {
    match round % 4 {
        0 | 2 => 0,
        1 => 1,
        _ => 2 + (round / 4 % (RINGS as u64 - 2)) as usize,
    }
}

/// The next node on a ring after one that lies at `mine`.
pub(crate) fn next<'a, T: Ord + 'a>(
    ring: usize,
    mine: &Places,
    others: impl Iterator<Item = (T, Places)>,
) -> Option<T> {
    others
        .map(|(node, at)| (at[ring].wrapping_sub(mine[ring]), node))
        .min()
        .map(|(_, node)| node)
}

/// Partners of one that lies at `mine`, in order.
pub(crate) fn partners<'a, T: Ord + Clone + 'a>(
    mine: &Places,
    others: impl Iterator<Item = (T, Places)>,
) -> Vec<T> {
    let mut ahead: [Option<(u64, T)>; RINGS] = [const { None }; RINGS];
    let mut behind: [Option<(u64, T)>; RINGS] = [const { None }; RINGS];
    for (node, at) in others {
        for ring in 0..RINGS {
            let distance = at[ring].wrapping_sub(mine[ring]);
            let nearest = |known: &Option<(u64, T)>, distance: u64| {
                known
                    .as_ref()
                    .is_none_or(|known| (distance, &node) < (known.0, &known.1))
            };
            if nearest(&ahead[ring], distance) {
                ahead[ring] = Some((distance, node.clone()));
            }
            let distance = distance.wrapping_neg();
            if nearest(&behind[ring], distance) {
                behind[ring] = Some((distance, node.clone()));
            }
        }
    }
    let mut partners: Vec<T> = ahead
        .into_iter()
        .chain(behind)
        .flatten()
        .map(|(_, node)| node)
        .collect();
    partners.sort_unstable();
    partners.dedup();
    partners
}

/// Partners of a node among `peers`, worked out again only when the peers changed.
#[derive(Debug)]
pub(crate) struct Partners {
    mine: Places,
    peers: Vec<Arc<str>>,
    partners: Vec<Arc<str>>,
}

impl Partners {
    pub(crate) fn new(me: &str) -> Self {
        Self {
            mine: places(me),
            peers: Vec::new(),
            partners: Vec::new(),
        }
    }

    pub(crate) fn among(&mut self, peers: &[&str]) -> &[Arc<str>] {
        if !self
            .peers
            .iter()
            .map(|peer| &**peer)
            .eq(peers.iter().copied())
        {
            self.peers = peers.iter().map(|peer| Arc::from(*peer)).collect();
            let placed = self.peers.iter().map(|peer| (peer.clone(), places(peer)));
            self.partners = partners(&self.mine, placed);
        }
        &self.partners
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("edge-{index}")).collect()
    }

    fn partners_of(me: &str, all: &[String]) -> BTreeSet<String> {
        let peers: Vec<&str> = all
            .iter()
            .map(String::as_str)
            .filter(|n| *n != me)
            .collect();
        let mut partners = Partners::new(me);
        partners
            .among(&peers)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn partners_are_mutual_and_a_dozen() {
        let all = names(100);
        for me in &all {
            let mine = partners_of(me, &all);
            assert!((6..=12).contains(&mine.len()), "{}", mine.len());
            for partner in &mine {
                assert!(partners_of(partner, &all).contains(me));
            }
        }
    }

    #[test]
    fn all_of_a_small_site_are_partners() {
        for count in 1..5 {
            let all = names(count);
            for me in &all {
                assert_eq!(partners_of(me, &all).len(), count - 1);
            }
        }
    }

    #[test]
    fn a_death_changes_little() {
        let all = names(100);
        let rest: Vec<String> = all.iter().filter(|n| **n != "edge-50").cloned().collect();
        let changed = rest
            .iter()
            .filter(|me| partners_of(me, &all) != partners_of(me, &rest));
        assert!(changed.count() <= 2 * RINGS);
    }

    #[test]
    fn whatever_is_told_to_partners_reaches_all() {
        let all = names(300);
        let mut reached = BTreeSet::from([all[0].clone()]);
        let mut hops = 0;
        while reached.len() < all.len() {
            let more: Vec<String> = reached
                .iter()
                .flat_map(|me| partners_of(me, &all))
                .collect();
            reached.extend(more);
            hops += 1;
            assert!(hops <= 5);
        }
    }

    #[test]
    fn every_node_is_watched_on_every_ring() {
        let all = names(40);
        for round in [0, 1, 3, 7, 11, 15] {
            let mut watched: BTreeMap<&String, usize> = BTreeMap::new();
            for me in &all {
                let others = all.iter().filter(|n| *n != me).map(|n| (n, places(n)));
                let next = next(ring_of_round(round), &places(me), others).unwrap();
                *watched.entry(next).or_default() += 1;
            }
            assert_eq!(watched.len(), 40);
        }
    }
}
