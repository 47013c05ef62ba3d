//! When somebody is asked whether it lives, and when silence means death.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use foca::{Header, Message, State};
use rand::RngExt as _;
use rand::rngs::ChaCha8Rng;

use super::wire::Identity;
use super::{Membership, Seen};
use crate::profile::Profile;
use crate::ring;

/// For how long after a death it is told with every probe.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How often a question is repeated within a period. A question costs two packets, and a suspicion
/// that comes to nothing two dozen of each node: with a fifth of the packets lost, seven questions
/// leave one suspicion in 1,200 probes, four would leave one in 60.
const REPEATS: usize = 6;

/// From which repetition on others are asked to try, too: before, a loss is likelier than a broken
/// path.
const THROUGH_OTHERS: usize = 3;

/// Most deaths that are told with one probe.
const DEATHS_PER_PROBE: usize = 12;

/// A question that awaits its answer.
struct Probe {
    id: Identity,
    incarnation: u16,
    number: u8,
    started: Duration,
    /// Of the questions in [`Prober::steps`], those asked.
    asked: usize,
    /// Others are asked to try, too.
    through_others: bool,
    /// Who was asked to try.
    helpers: BTreeSet<Arc<str>>,
}

/// A node that did not answer this one.
struct Suspicion {
    id: Identity,
    incarnation: u16,
    /// Then it is dead.
    until: Duration,
    /// Then it is told again.
    tell_at: Duration,
}

/// What is being asked.
pub(super) struct Prober {
    period: Duration,
    rtt: Duration,
    suspicion: Duration,
    helpers: usize,
    /// Questions are repeated so long after the start of a probe.
    steps: [Duration; REPEATS],
    round: u64,
    round_at: Duration,
    number: u8,
    probes: BTreeMap<Arc<str>, Probe>,
    suspicions: BTreeMap<Arc<str>, Suspicion>,
}

impl Prober {
    pub(super) fn new(profile: &Profile, now: Duration, rng: &mut ChaCha8Rng) -> Self {
        let period = profile.probe_period.max(Duration::from_millis(3));
        let rtt = profile.probe_rtt.min(period * 2 / 3);
        Self {
            period,
            rtt,
            suspicion: profile.suspicion,
            helpers: profile.indirect_probes.max(1),
            steps: [
                rtt / 3,
                rtt * 2 / 3,
                rtt,
                (rtt * 3 + period) / 4,
                (rtt + period) / 2,
                (rtt + period * 3) / 4,
            ],
            round: rng.random_range(0..4),
            // Nodes that start together do not ask together.
            round_at: now + period.mul_f64(rng.random_range(0.0..1.0)),
            number: 0,
            probes: BTreeMap::new(),
            suspicions: BTreeMap::new(),
        }
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        let probes = self.probes.values().map(|probe| self.due(probe));
        let suspicions = self.suspicions.values().map(|it| it.until.min(it.tell_at));
        probes.chain(suspicions).chain([self.round_at]).min()
    }

    /// A delay that says nothing about this node's health.
    pub(super) fn patience(&self) -> Duration {
        self.rtt / 2
    }

    pub(super) fn put_off(&mut self, by: Duration) {
        self.round_at += by;
        for probe in self.probes.values_mut() {
            probe.started += by;
        }
        for suspicion in self.suspicions.values_mut() {
            suspicion.until += by;
            suspicion.tell_at += by;
        }
    }

    pub(super) fn abandon(&mut self) {
        self.probes.clear();
    }

    pub(super) fn clear_suspicion(&mut self, node: &Arc<str>) {
        self.suspicions.remove(node);
    }

    /// When the next question of a probe, or its end, is due.
    fn due(&self, probe: &Probe) -> Duration {
        probe.started + *self.steps.get(probe.asked).unwrap_or(&self.period)
    }
}

impl Membership {
    /// An answer ends the probe.
    pub(super) fn answered(&mut self, header: &Header<Identity>) {
        let (of, number, by) = match &header.message {
            Message::Ack(number) => (&header.src, *number, None),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => (origin, *probe_number, Some(&header.src.node)),
            _ => return,
        };
        let answers = self.prober.probes.get(&of.node).is_some_and(|probe| {
            probe.id == *of
                && probe.number == number
                && by.is_none_or(|by| probe.helpers.contains(by))
        });
        if answers {
            self.prober.probes.remove(&of.node);
        }
    }

    /// Asks, asks again, suspects, and declares dead what is due.
    pub(super) fn probe(&mut self, now: Duration) {
        let due: Vec<Arc<str>> = self
            .prober
            .probes
            .iter()
            .filter(|(_, probe)| self.prober.due(probe) <= now)
            .map(|(node, _)| Arc::clone(node))
            .collect();
        for node in due {
            self.go_on(&node, now);
        }
        let due: Vec<Arc<str>> = self
            .prober
            .suspicions
            .iter()
            .filter(|(_, it)| it.until.min(it.tell_at) <= now)
            .map(|(node, _)| Arc::clone(node))
            .collect();
        for node in due {
            self.insist(&node, now);
        }
        if self.prober.round_at <= now {
            self.prober.round_at += self.prober.period;
            if self.prober.round_at <= now {
                self.prober.round_at = now + self.prober.period;
            }
            self.prober.round += 1;
            let others = self.unasked().map(|(node, seen)| (node, seen.places));
            let ring = ring::ring_of_round(self.prober.round);
            let next = ring::next(ring, &self.places, others);
            if let Some(node) = next.cloned() {
                self.start_probe(&node, true, now);
            }
        }
    }

    /// Live peers of whom no answer is awaited.
    fn unasked(&self) -> impl Iterator<Item = (&Arc<str>, &Seen)> {
        self.seen.iter().filter(|(node, seen)| {
            seen.is_live()
                && !self.prober.suspicions.contains_key(*node)
                && !self.prober.probes.contains_key(*node)
        })
    }

    fn start_probe(&mut self, node: &Arc<str>, through_others: bool, now: Duration) {
        let Some(seen) = self.seen.get(node) else {
            return;
        };
        // 0 is for what awaits no answer.
        self.prober.number = self.prober.number.checked_add(1).unwrap_or(1);
        let number = self.prober.number;
        self.prober.probes.insert(
            Arc::clone(node),
            Probe {
                id: seen.id.clone(),
                incarnation: seen.incarnation,
                number,
                started: now,
                asked: 0,
                through_others,
                helpers: BTreeSet::new(),
            },
        );
        self.ask(node, number);
    }

    /// The next question of a probe, or its end.
    fn go_on(&mut self, node: &Arc<str>, now: Duration) {
        let Some(mut probe) = self.prober.probes.remove(node) else {
            return;
        };
        let same_life = self.seen.get(node).is_some_and(|seen| {
            seen.is_live() && seen.id == probe.id && seen.incarnation == probe.incarnation
        });
        if !same_life {
            // It is dead already, or it has just been heard.
            return;
        }
        if probe.asked == self.prober.steps.len() {
            let alone = self.last_heard.is_none_or(|at| at < probe.started);
            self.suspect(node, now);
            if alone {
                self.ask_all(now);
            }
            return;
        }
        self.ask(node, probe.number);
        if probe.through_others && probe.asked >= THROUGH_OTHERS {
            for helper in self.helpers(node) {
                probe.helpers.insert(Arc::clone(&helper.node));
                let message = Message::PingReq {
                    target: probe.id.clone(),
                    probe_number: probe.number,
                };
                self.send(helper, message, &[]);
            }
        }
        probe.asked += 1;
        self.prober.probes.insert(Arc::clone(node), probe);
    }

    /// Nobody was heard for a whole period: whether this node is cut off from all is found out at
    /// once, not one by one.
    fn ask_all(&mut self, now: Duration) {
        let others: Vec<Arc<str>> = self.unasked().map(|(node, _)| Arc::clone(node)).collect();
        for node in others {
            self.start_probe(&node, false, now);
        }
    }

    fn suspect(&mut self, node: &Arc<str>, now: Duration) {
        self.apply(node, State::Suspect, now);
        if let Some(seen) = self.seen.get(node)
            && seen.state == State::Suspect
            && !self.prober.suspicions.contains_key(node)
        {
            let suspicion = Suspicion {
                id: seen.id.clone(),
                incarnation: seen.incarnation,
                until: now + self.prober.suspicion,
                tell_at: now,
            };
            self.prober.suspicions.insert(Arc::clone(node), suspicion);
            self.counters.suspicions += 1;
            self.insist(node, now);
        }
    }

    /// Tells a suspect again what is thought of it, or declares it dead. Its answer, which carries
    /// its objection, ends the suspicion.
    fn insist(&mut self, node: &Arc<str>, now: Duration) {
        let Some(suspicion) = self.prober.suspicions.get_mut(node) else {
            return;
        };
        if suspicion.until > now {
            suspicion.tell_at = now + self.prober.rtt;
            self.ask(node, 0);
            return;
        }
        let Suspicion {
            id, incarnation, ..
        } = suspicion;
        let (id, incarnation) = (id.clone(), *incarnation);
        self.prober.suspicions.remove(node);
        let silent = self.seen.get(node).is_some_and(|seen| {
            seen.state == State::Suspect && seen.id == id && seen.incarnation == incarnation
        });
        if silent {
            self.apply(node, State::Down, now);
            // In case that it does hear us.
            self.send(id, Message::TurnUndead, &[]);
        }
    }

    /// A ping, with what the receiver should know: that it is suspect, and who died of late.
    fn ask(&mut self, node: &Arc<str>, number: u8) {
        let Some(seen) = self.seen.get(node) else {
            return;
        };
        let mut members = Vec::new();
        if seen.state == State::Suspect {
            members.push(seen.member(State::Suspect));
        }
        let dst = seen.id.clone();
        let dead = self.recently_dead();
        members.extend(dead);
        self.send(dst, Message::Ping(number), &members);
    }

    fn recently_dead(&mut self) -> Vec<foca::Member<Identity>> {
        let Some(now) = self.last_heard else {
            return Vec::new();
        };
        let mut dead: Vec<&Seen> = self
            .seen
            .values()
            .filter(|seen| !seen.is_live() && seen.since + REMEMBERED > now)
            .collect();
        while dead.len() > DEATHS_PER_PROBE {
            dead.swap_remove(self.rng.random_range(0..dead.len()));
        }
        dead.into_iter()
            .map(|seen| seen.member(State::Down))
            .collect()
    }

    /// Members that are asked to try, too: partners of this node and of the target, then partners of
    /// the target, which have a connection with it.
    fn helpers(&mut self, target: &Arc<str>) -> Vec<Identity> {
        let Some(at) = self.seen.get(target).map(|seen| seen.places) else {
            return Vec::new();
        };
        let alive = |seen: &Seen| seen.state == State::Alive;
        let others = self
            .seen
            .iter()
            .filter(|(node, seen)| alive(seen) && *node != target)
            .map(|(node, seen)| (node, seen.places));
        let theirs = ring::partners(&at, others);
        let ours = self.partners();
        let (mut first, mut then): (Vec<&Identity>, Vec<&Identity>) = theirs
            .into_iter()
            .filter_map(|node| self.seen.get(node).map(|seen| &seen.id))
            .partition(|id| ours.contains(id));
        let mut helpers = Vec::new();
        for from in [&mut first, &mut then] {
            while helpers.len() < self.prober.helpers && !from.is_empty() {
                helpers.push(
                    from.swap_remove(self.rng.random_range(0..from.len()))
                        .clone(),
                );
            }
        }
        helpers
    }
}
