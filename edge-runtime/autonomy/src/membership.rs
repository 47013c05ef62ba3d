//! Who is alive: SWIM with suspicion.
//!
//! foca keeps what is known of the members and spreads it. Whom to probe, when to ask again and when
//! a silent node is dead is decided here (`prober`), so that a site with many losses has few false
//! alarms and a death is noticed by all within a bounded time:
//!
//! - Each node has fixed watchers, and deals with a dozen others only, whatever the size of the site
//!   (`ring`).
//! - A probe that is not answered is sent again, and through others, within the same period.
//! - A suspect is told so, and asked, until it objects or its time is over.
//! - Deaths of the last minute are told with every probe, so that nobody misses one for long.
//! - Nodes of the site that are not alive are called again and again, a few at a time, so that halves
//!   of a site that were apart find each other (`announce`); whoever hears that it is taken for dead
//!   comes back at once with a new identity.
//! - A node that itself stood still takes nobody for dead for that.
//!
//! Call [`Membership::tick`] at [`Membership::next_wake`], and send what the methods give.

mod announce;
mod prober;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU8, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use foca::{
    AccumulatingRuntime, Config, Foca, Header, Member, Message, NoCustomBroadcast,
    OwnedNotification, PeriodicParams, Timer,
};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};

use crate::profile::Profile;
use crate::ring::{self, Places};
use announce::Calls;
use prober::Prober;
use wire::{Codec, Identity};

/// Alive, suspect or down.
pub use foca::State;

/// Most members that are kept in mind, dead ones included: sites are planned for 500 nodes.
const MAX_MEMBERS: usize = 2048;

/// How often what is new is told to three random members, while there is something new.
const GOSSIP_PERIODS_PER_PROBE: u32 = 5;

/// Probe periods between two times that a random member is asked for the members that it knows. The
/// answer has a thousand bytes and is news only to those that missed some: news is told a dozen times,
/// and who starts is given the members at once.
const ASK_FOR_MEMBERS: u32 = 120;

/// Who was heard within so many probe periods has a connection with this node: even the partners on
/// the last ring are probed twice within.
const ACQUAINTED: u32 = 32;

/// News goes to those with whom there are connections if they are no fewer: a site that starts, whose
/// members learn of each other and change partners all the time, would else be busy with handshakes.
const FEW: usize = 6;

/// Something happened to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Node id.
    pub node: String,
    /// What it is now.
    pub what: What,
    /// When this node learnt it.
    pub at: Duration,
}

/// What a peer is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It is alive: new, back, or it has objected to a suspicion.
    Up,
    /// It does not answer. It still counts as alive.
    Suspect,
    /// It is dead.
    Down,
}

/// What was not taken from peers, and what happened to this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that can't be read.
    pub malformed: u64,
    /// Datagrams of banned nodes, or with this node's own name as the sender's.
    pub foreign: u64,
    /// Datagrams that can be read and make no sense.
    pub refused: u64,
    /// Words about members that are banned, or of which there are too many.
    pub ignored: u64,
    /// Times that this node began to suspect a member that did not answer it.
    pub suspicions: u64,
    /// Times that this node was taken for dead, and came back.
    pub rejoins: u64,
    /// Times that this node stood still for longer than a probe takes.
    pub stalls: u64,
}

/// What is known of a peer.
struct Seen {
    id: Identity,
    incarnation: u16,
    state: State,
    /// In this state.
    since: Duration,
    /// The last datagram of it.
    heard: Option<Duration>,
    places: Places,
}

impl Seen {
    const fn is_live(&self) -> bool {
        !matches!(self.state, State::Down)
    }

    fn member(&self, state: State) -> Member<Identity> {
        Member::new(self.id.clone(), self.incarnation, state)
    }
}

/// One node's view of who is alive at its site.
pub struct Membership {
    me: Arc<str>,
    places: Places,
    foca: Foca<Identity, Codec, ChaCha8Rng, NoCustomBroadcast>,
    runtime: AccumulatingRuntime<Identity>,
    /// Messages of our own making, in foca's form.
    outbox: Vec<(Identity, Vec<u8>)>,
    rng: ChaCha8Rng,
    config: Config,
    /// Own incarnation, as last sent by foca, which does not show it otherwise.
    incarnation: u16,
    /// foca's list, by name, without this node.
    seen: BTreeMap<Arc<str>, Seen>,
    banned: BTreeSet<Arc<str>>,
    timers: BTreeMap<(Duration, u64), Timer<Identity>>,
    timers_made: u64,
    prober: Prober,
    calls: Calls,
    /// The last datagram of anybody.
    last_heard: Option<Duration>,
    changes: Vec<Change>,
    counters: Counters,
}

/// Datagrams to send, each with the node that it is for.
pub type Datagrams = Vec<(String, Bytes)>;

impl Membership {
    /// Knows nobody. `boot` counts the starts of the agent on its store: it makes a node that
    /// restarted a new member. `seed` is for all that is drawn; no two nodes should have the same.
    #[must_use]
    pub fn new(me: &str, boot: u32, profile: &Profile, seed: u64, now: Duration) -> Self {
        let me: Arc<str> = wire::name(me).unwrap_or_else(|| Arc::from("nameless"));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let config = config(profile);
        let identity = Identity {
            node: Arc::clone(&me),
            number: u64::from(boot) << 16,
        };
        let foca_rng = ChaCha8Rng::seed_from_u64(rng.random());
        Self {
            foca: Foca::new(identity, config.clone(), foca_rng, Codec),
            runtime: AccumulatingRuntime::new(),
            outbox: Vec::new(),
            places: ring::places(&me),
            config,
            incarnation: 0,
            seen: BTreeMap::new(),
            banned: BTreeSet::new(),
            timers: BTreeMap::new(),
            timers_made: 0,
            prober: Prober::new(profile, now, &mut rng),
            calls: Calls::new(profile.probe_period, now),
            last_heard: None,
            changes: Vec::new(),
            counters: Counters::default(),
            me,
            rng,
        }
    }

    /// A node of the site, by the control plane's list, by mDNS, or because it called: it is called
    /// until it is a member, and again whenever it is not alive. See [`Membership::next_wake`] after.
    pub fn found(&mut self, node: &str, now: Duration) {
        let Some(node) = wire::name(node) else { return };
        if node == self.me || self.banned.contains(&node) {
            return;
        }
        let live = self.seen.get(&node).is_some_and(Seen::is_live);
        self.calls.found(node, live, now, &mut self.rng);
    }

    /// A node that no longer belongs to the site: it is not called any more. If it is alive it stays
    /// a member for as long as it answers; see [`Membership::ban`] for those that must not.
    pub fn forget(&mut self, node: &str) {
        self.calls.forget(node);
    }

    /// These nodes are not heard any more, and are down for this node (those banned before are
    /// heard again if they are not among them).
    pub fn ban(&mut self, nodes: &[String], now: Duration) -> Datagrams {
        self.banned = nodes.iter().filter_map(|node| wire::name(node)).collect();
        let live: Vec<Arc<str>> = self
            .banned
            .iter()
            .filter(|node| self.seen.get(*node).is_some_and(Seen::is_live))
            .cloned()
            .collect();
        for node in &self.banned {
            self.calls.forget(node);
        }
        for node in live {
            self.apply(&node, State::Down, now);
        }
        self.drain(now)
    }

    /// A datagram of the peer `from`, which the transport has authenticated.
    pub fn datagram(&mut self, from: &str, bytes: &[u8], now: Duration) -> Datagrams {
        let Some(from) = wire::name(from) else {
            self.counters.foreign += 1;
            return Vec::new();
        };
        if from == self.me || self.banned.contains(&from) {
            self.counters.foreign += 1;
            return Vec::new();
        }
        let Ok((header, mut members)) = wire::read(&from, &self.me, bytes) else {
            self.counters.malformed += 1;
            return Vec::new();
        };
        self.last_heard = Some(now);
        if let Some(seen) = self.seen.get_mut(&from) {
            seen.heard = Some(now);
        }
        self.calls
            .found(Arc::clone(&from), true, now, &mut self.rng);
        let said = members.len();
        let mut room = MAX_MEMBERS.saturating_sub(self.seen.len());
        members.retain(|member| self.may_know(&member.id().node, &mut room));
        self.counters.ignored += (said - members.len()) as u64;
        // foca looks through its whole list for each. While a site starts, datagrams are full of
        // members that are known.
        members.retain(|member| !self.is_known(member));
        self.outdo(&members);
        if header.dst.number == self.foca.identity().number {
            self.answered(&header);
        }
        let outlived = self
            .seen
            .get(&from)
            .filter(|seen| seen.id.number > header.src.number)
            .map(|seen| seen.member(State::Down));
        if let Some(foca_form) = wire::compose(&header, &members)
            && self
                .foca
                .handle_data(&foca_form, &mut self.runtime)
                .is_err()
        {
            self.counters.refused += 1;
        }
        if let Some(earlier) = outlived {
            // It restarted and has lost count of its starts: it can't know what it has to outdo.
            self.send(header.src.clone(), Message::Gossip, &[earlier]);
        }
        let mut touched: Vec<Arc<str>> = members
            .into_iter()
            .map(|member| member.id().node.clone())
            .collect();
        let as_known = self.seen.get(&from).is_some_and(|seen| {
            seen.id == header.src
                && seen.incarnation == header.src_incarnation
                && seen.state == State::Alive
        });
        if !as_known {
            touched.push(from);
        }
        self.refresh(&touched, now);
        self.drain(now)
    }

    /// Time passes. To be called at [`Membership::next_wake`]; a call that comes much later means
    /// that this node stood still, and puts everything off by as much.
    pub fn tick(&mut self, now: Duration) -> Datagrams {
        self.resume(now);
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            let timer = entry.remove();
            let about = match &timer {
                Timer::RemoveDown(id) => Some(id.clone()),
                _ => None,
            };
            if self.foca.handle_timer(timer, &mut self.runtime).is_err() {
                self.counters.refused += 1;
            }
            if let Some(id) = about
                && self
                    .seen
                    .get(&id.node)
                    .is_some_and(|seen| seen.id == id && seen.state == State::Down)
            {
                self.seen.remove(&id.node);
            }
            self.schedule(now);
        }
        self.probe(now);
        self.call(now);
        self.drain(now)
    }

    /// When to call [`Membership::tick`].
    #[must_use]
    pub fn next_wake(&self) -> Duration {
        let timer = self.timers.keys().next().map(|(at, _)| *at);
        timer
            .into_iter()
            .chain(self.prober.next_wake())
            .chain(self.calls.next_wake())
            .min()
            .unwrap_or(Duration::MAX)
    }

    /// Names of the live members, suspects and this node included, in order.
    #[must_use]
    pub fn live(&self) -> Vec<&str> {
        let mut live: Vec<&str> = self.peers().chain([&*self.me]).collect();
        live.sort_unstable();
        live
    }

    /// Names of the live members but this node, suspects included, in order.
    pub fn peers(&self) -> impl Iterator<Item = &str> {
        self.seen
            .iter()
            .filter(|(_, seen)| seen.is_live())
            .map(|(node, _)| &**node)
    }

    /// Whether the node is alive, or this one.
    #[must_use]
    pub fn is_live(&self, node: &str) -> bool {
        *self.me == *node || self.seen.get(node).is_some_and(Seen::is_live)
    }

    /// What is known of a peer, and since when; none of strangers and of this node.
    #[must_use]
    pub fn state(&self, node: &str) -> Option<(State, Duration)> {
        self.seen.get(node).map(|seen| (seen.state, seen.since))
    }

    /// What has happened since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// What was not taken, so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether word about a node is taken; `room` is for how many that are not known yet.
    fn may_know(&self, node: &Arc<str>, room: &mut usize) -> bool {
        if self.banned.contains(node) {
            return false;
        }
        if *node == self.me || self.seen.contains_key(node) {
            return true;
        }
        if *room == 0 {
            return false;
        }
        *room -= 1;
        true
    }

    /// Whether this word about another member is what is known of it.
    fn is_known(&self, member: &Member<Identity>) -> bool {
        self.seen.get(&member.id().node).is_some_and(|seen| {
            seen.id == *member.id()
                && seen.incarnation == member.incarnation()
                && seen.state == member.state()
        })
    }

    /// Where others know an identity of this node that wins over its own, it takes a higher one.
    fn outdo(&mut self, members: &[Member<Identity>]) {
        let mine = self.foca.identity().number;
        let theirs = members
            .iter()
            .filter(|member| member.id().node == self.me)
            .map(|member| member.id().number)
            .max();
        if let Some(theirs) = theirs
            && theirs > mine
            && theirs < wire::HIGHEST_OUTDONE
        {
            let identity = Identity {
                node: Arc::clone(&self.me),
                number: theirs + 1,
            };
            if self
                .foca
                .change_identity(identity, &mut self.runtime)
                .is_ok()
            {
                self.reborn();
            }
        }
    }

    /// This node has a new identity: answers to the one before don't arrive.
    fn reborn(&mut self) {
        self.counters.rejoins += 1;
        self.incarnation = 0;
        self.prober.abandon();
    }

    /// Puts off everything by as long as this node stood still: what arrived meanwhile has not been
    /// read yet.
    fn resume(&mut self, now: Duration) {
        let late = now.saturating_sub(self.next_wake());
        if late <= self.prober.patience() {
            return;
        }
        self.counters.stalls += 1;
        self.timers = std::mem::take(&mut self.timers)
            .into_iter()
            .map(|((at, nth), timer)| ((at + late, nth), timer))
            .collect();
        self.prober.put_off(late);
    }

    /// Tells foca, and so all others, what has become of a member.
    fn apply(&mut self, node: &Arc<str>, state: State, now: Duration) {
        let Some(member) = self.seen.get(node).map(|seen| seen.member(state)) else {
            return;
        };
        if self
            .foca
            .apply_many(std::iter::once(member), true, &mut self.runtime)
            .is_err()
        {
            self.counters.refused += 1;
        }
        self.refresh(std::slice::from_ref(node), now);
    }

    /// Takes over what foca knows of these.
    fn refresh(&mut self, touched: &[Arc<str>], now: Duration) {
        if touched.is_empty() {
            return;
        }
        let touched: BTreeSet<&Arc<str>> = touched.iter().collect();
        let members: Vec<Member<Identity>> = self
            .foca
            .iter_membership_state()
            .filter(|member| member.id().node != self.me && touched.contains(&member.id().node))
            .cloned()
            .collect();
        for member in members {
            self.note(&member, now);
        }
        let members = self.foca.num_members();
        let transmissions = transmissions(members);
        if self.config.max_transmissions != transmissions {
            self.config.max_transmissions = transmissions;
            // It refuses changes of periods only.
            let _ = self.foca.set_config(self.config.clone());
        }
    }

    fn note(&mut self, member: &Member<Identity>, now: Duration) {
        let node = &member.id().node;
        let before = self.seen.get(node);
        let was = before.map_or(State::Down, |seen| seen.state);
        let same_life = before.is_some_and(|seen| {
            seen.id == *member.id() && seen.incarnation == member.incarnation()
        });
        if same_life && was == member.state() {
            return;
        }
        let since = match before {
            Some(before) if was == member.state() => before.since,
            _ => now,
        };
        let seen = Seen {
            id: member.id().clone(),
            incarnation: member.incarnation(),
            state: member.state(),
            since,
            heard: before.and_then(|seen| seen.heard),
            places: before.map_or_else(|| ring::places(node), |seen| seen.places),
        };
        if before.is_some() && was == State::Down && seen.is_live() {
            self.calls.returned(now);
        }
        self.seen.insert(Arc::clone(node), seen);
        if !same_life || member.state() != State::Suspect {
            self.prober.clear_suspicion(node);
        }
        let what: &[What] = match (was, member.state()) {
            (State::Down, State::Alive) | (State::Suspect, State::Alive) => &[What::Up],
            (State::Down, State::Suspect) => &[What::Up, What::Suspect],
            (State::Alive, State::Suspect) => &[What::Suspect],
            (State::Alive | State::Suspect, State::Down) => &[What::Down],
            (State::Alive, State::Alive)
            | (State::Suspect, State::Suspect)
            | (State::Down, State::Down) => &[],
        };
        for what in what {
            self.changes.push(Change {
                node: node.to_string(),
                what: *what,
                at: now,
            });
        }
    }

    /// Sends a message of our own making, as foca would.
    fn send(&mut self, dst: Identity, message: Message<Identity>, members: &[Member<Identity>]) {
        let header = Header {
            src: self.foca.identity().clone(),
            src_incarnation: self.incarnation,
            dst: dst.clone(),
            message,
        };
        if let Some(bytes) = wire::compose(&header, members) {
            self.outbox.push((dst, bytes));
        }
    }

    /// This node's partners among the live members.
    fn partners(&self) -> Vec<&Identity> {
        let live = self.seen.iter().filter(|(_, seen)| seen.is_live());
        ring::partners(&self.places, live.map(|(node, seen)| (node, seen.places)))
            .into_iter()
            .filter_map(|node| self.seen.get(node).map(|seen| &seen.id))
            .collect()
    }

    /// Live members heard lately, with which there are connections; all partners where those are few.
    fn acquainted(&self, now: Duration) -> Vec<&Identity> {
        let lately = now.saturating_sub(self.config.probe_period * ACQUAINTED);
        let heard = |seen: &&Seen| seen.is_live() && seen.heard.is_some_and(|at| at >= lately);
        let acquainted: Vec<&Identity> = self
            .seen
            .values()
            .filter(heard)
            .map(|seen| &seen.id)
            .collect();
        if acquainted.len() < FEW {
            return self.partners();
        }
        acquainted
    }

    /// Keeps the timers that foca asks for. Its own probes are not used.
    fn schedule(&mut self, now: Duration) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            if matches!(
                timer,
                Timer::ProbeRandomMember(_)
                    | Timer::SendIndirectProbe { .. }
                    | Timer::ChangeSuspectToDown { .. }
            ) {
                continue;
            }
            self.timers_made += 1;
            self.timers.insert((now + after, self.timers_made), timer);
        }
    }

    /// What foca wants done.
    fn drain(&mut self, now: Duration) -> Datagrams {
        self.schedule(now);
        while let Some(notification) = self.runtime.to_notify() {
            if matches!(notification, OwnedNotification::Rejoin(_)) {
                self.reborn();
            }
        }
        let mut partners: Vec<Identity> = Vec::new();
        while let Some((mut to, bytes)) = self.runtime.to_send() {
            let mut bytes = bytes.to_vec();
            if wire::to_anybody(&self.me, &to, &bytes) {
                // foca means it for some random members.
                if partners.is_empty() {
                    partners = self.acquainted(now).into_iter().cloned().collect();
                }
                if !partners.is_empty() {
                    let partner = partners.swap_remove(self.rng.random_range(0..partners.len()));
                    if let Some(redirected) = wire::redirect(&self.me, &to, &partner, &bytes) {
                        (to, bytes) = (partner, redirected);
                    }
                }
            }
            self.outbox.push((to, bytes));
        }
        let mut out = Vec::new();
        for (to, bytes) in std::mem::take(&mut self.outbox) {
            let mut bytes = Bytes::from(bytes);
            bytes.advance(wire::names_len(&self.me, &to.node).min(bytes.len()));
            if let Some(incarnation) = wire::incarnation(&bytes) {
                self.incarnation = incarnation;
            }
            let stranger = !self.seen.contains_key(&to.node) && !self.calls.knows(&to.node);
            if to.node == self.me || stranger || self.banned.contains(&to.node) {
                continue;
            }
            out.push((to.node.to_string(), bytes));
        }
        out
    }
}

/// How often a piece of news is sent by each member. With 300 members and a fifth of the datagrams
/// lost, 16 leave out one member in about 3 million.
fn transmissions(members: usize) -> NonZeroU8 {
    let digits = (members + 1).ilog2();
    // 5 log10(n) + 3.
    let times = 3 + digits * 3 / 2;
    u8::try_from(times)
        .ok()
        .and_then(NonZeroU8::new)
        .unwrap_or(NonZeroU8::MAX)
}

fn config(profile: &Profile) -> Config {
    let one = NonZeroUsize::MIN;
    let three = one.saturating_add(2);
    Config {
        // Not used by foca here: its timers for probes are not kept.
        probe_period: profile.probe_period,
        probe_rtt: profile.probe_rtt,
        num_indirect_probes: three,
        suspect_to_down_after: profile.suspicion,
        max_transmissions: transmissions(0),
        remove_down_after: Some(profile.forget_dead),
        max_packet_size: NonZeroUsize::new(wire::MAX_BYTES).unwrap_or(NonZeroUsize::MAX),
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams {
            frequency: profile.probe_period * ASK_FOR_MEMBERS,
            num_members: one,
        }),
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: profile.probe_period / GOSSIP_PERIODS_PER_PROBE,
            num_members: three,
        }),
    }
}
