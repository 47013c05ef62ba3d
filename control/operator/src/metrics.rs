//! What the operator counts.

use std::sync::atomic::AtomicU64;

use hyperion_api::fleet::ScorerStatus;
use hyperion_api::placement::PlacementPhase;
use hyperion_api::rollout::HyperionRolloutStatus;
use hyperion_policy::Reason;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::client::Requests;
use crate::cost;
use crate::decider::Sums;
use crate::index::Verdicts;

/// Label of [`Metrics::placements`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Phase {
    /// The phase's word.
    pub phase: String,
}

/// Counters and gauges.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// 1 while this process decides.
    pub leader: Gauge,
    /// Decisions made.
    pub decisions: Counter,
    /// Seconds per pass over a workload that made a decision.
    pub decision_seconds: Histogram,
    /// Workloads waiting to be looked at.
    pub queue: Gauge,
    /// Workloads known.
    pub workloads: Gauge,
    /// Placements by phase.
    pub placements: Family<Phase, Gauge>,
    /// Machines that were asked for, by cluster and state.
    node_claims: Family<ClaimState, Gauge>,
    /// Nodes of rollouts, by state.
    rollout_nodes: Family<RolloutState, Gauge>,
    /// 1 for the phase that a rollout is in.
    rollout_phase: Family<RolloutState, Gauge>,
    /// API writes that failed and were tried again.
    pub write_failures: Counter,
    /// Requests to the API server.
    pub requests: Requests,
    /// What the fleet costs.
    pub cost: cost::Metrics,
    site_decisions: Family<Verdict, Counter>,
    /// 1 for who decides now.
    policy_info: Family<PolicyInfo, Gauge>,
    /// Policies that were refused.
    pub policy_refused: Counter,
    policy_decisions: Counter,
    policy_explored: Counter,
    policy_fallback: Family<Fallback, Counter>,
    compared: Counter,
    agreed: Counter,
    rules_regret: Counter<f64, AtomicU64>,
    policy_regret: Counter<f64, AtomicU64>,
    /// Outcomes of placements that were kept.
    pub experience_kept: Counter,
    /// Outcomes of placements that could not be kept.
    pub experience_lost: Counter,
}

/// Label of `hyperion_operator_site_decisions_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verdict {
    verdict: &'static str,
}

/// Labels of `hyperion_operator_node_claims`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimState {
    cluster: String,
    state: &'static str,
}

/// Labels of `hyperion_operator_rollout_nodes` and `hyperion_operator_rollout_phase`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RolloutState {
    rollout: String,
    state: String,
}

/// Labels of `hyperion_policy_info`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyInfo {
    scorer: String,
    hash: String,
    source: String,
}

/// Label of `hyperion_policy_fallback_total`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fallback {
    reason: String,
}

impl Metrics {
    /// Registers all under `hyperion_operator_` and `hyperion_policy_`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self {
            leader: Gauge::default(),
            decisions: Counter::default(),
            // 50 µs to 1.6 s.
            decision_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            queue: Gauge::default(),
            workloads: Gauge::default(),
            placements: Family::default(),
            node_claims: Family::default(),
            rollout_nodes: Family::default(),
            rollout_phase: Family::default(),
            write_failures: Counter::default(),
            requests: Requests::default(),
            cost: cost::Metrics::register(registry),
            site_decisions: Family::default(),
            policy_info: Family::default(),
            policy_refused: Counter::default(),
            policy_decisions: Counter::default(),
            policy_explored: Counter::default(),
            policy_fallback: Family::default(),
            compared: Counter::default(),
            agreed: Counter::default(),
            rules_regret: Counter::default(),
            policy_regret: Counter::default(),
            experience_kept: Counter::default(),
            experience_lost: Counter::default(),
        };
        let r = registry.sub_registry_with_prefix("hyperion_operator");
        r.register("leader", "1 while this process decides", m.leader.clone());
        r.register("decisions", "Decisions made", m.decisions.clone());
        r.register(
            "decision_seconds",
            "Time per pass over a workload that made a decision",
            m.decision_seconds.clone(),
        );
        r.register(
            "queue_length",
            "Workloads waiting to be looked at",
            m.queue.clone(),
        );
        r.register("workloads", "Workloads known", m.workloads.clone());
        r.register("placements", "Placements by phase", m.placements.clone());
        r.register(
            "node_claims",
            "Machines that were asked for in workload clusters, by state",
            m.node_claims.clone(),
        );
        r.register(
            "rollout_nodes",
            "Nodes of rollouts, by state",
            m.rollout_nodes.clone(),
        );
        r.register(
            "rollout_phase",
            "1 for the phase that a rollout is in",
            m.rollout_phase.clone(),
        );
        r.register(
            "write_failures",
            "API writes that failed and were tried again",
            m.write_failures.clone(),
        );
        r.register(
            "api_requests",
            "Requests to the API server, by method and HTTP status; a watch counts when it opens",
            m.requests.clone(),
        );
        r.register(
            "site_decisions",
            "Decisions that sites made while they were cut off, by what became of them",
            m.site_decisions.clone(),
        );
        m.register_policy(registry);
        let r = registry.sub_registry_with_prefix("hyperion_experience");
        r.register(
            "kept",
            "Outcomes of placements that were kept to learn from",
            m.experience_kept.clone(),
        );
        r.register(
            "lost",
            "Outcomes that could not be kept: no data folder, a full disk, too many at once",
            m.experience_lost.clone(),
        );
        m
    }

    fn register_policy(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("hyperion_policy");
        r.register("info", "1 for who decides now", self.policy_info.clone());
        r.register(
            "refused",
            "Policies that were refused: rules decide instead",
            self.policy_refused.clone(),
        );
        r.register(
            "decisions",
            "Decisions by the policy",
            self.policy_decisions.clone(),
        );
        r.register(
            "explored",
            "Of those, where not the best candidate was taken, to learn from it",
            self.policy_explored.clone(),
        );
        r.register(
            "fallback",
            "Decisions that a guard rail left to rules, by reason",
            self.policy_fallback.clone(),
        );
        for reason in Reason::ALL {
            self.fallback(reason);
        }
        r.register(
            "compared",
            "Decisions where both rules and the policy were asked",
            self.compared.clone(),
        );
        r.register(
            "agreed",
            "Of those compared, where both chose the same",
            self.agreed.clone(),
        );
        r.register(
            "rules_regret",
            "Estimated reward per hour that rules' choices lack where the policy's are better, summed",
            self.rules_regret.clone(),
        );
        r.register(
            "policy_regret",
            "Estimated reward per hour that the policy's choices lack where rules' are better, summed",
            self.policy_regret.clone(),
        );
    }

    fn fallback(&self, reason: Reason) -> Counter {
        let reason = reason.to_string();
        self.policy_fallback
            .get_or_create(&Fallback { reason })
            .clone()
    }

    /// Notes who decides.
    pub fn set_policy(&self, status: &ScorerStatus) {
        self.policy_info.clear();
        let info = PolicyInfo {
            scorer: status.decides.clone(),
            hash: status.policy.clone(),
            source: status.source.clone(),
        };
        self.policy_info.get_or_create(&info).set(1);
    }

    /// Counts what a decider has counted since `before`.
    pub fn count_decider(&self, now: &Sums, before: &Sums) {
        self.policy_decisions
            .inc_by(now.by_policy - before.by_policy);
        self.policy_explored.inc_by(now.tried - before.tried);
        for reason in Reason::ALL {
            let at = reason as usize;
            let more = now.fallbacks[at] - before.fallbacks[at];
            self.fallback(reason).inc_by(more);
        }
        let (now, before) = (&now.beside, &before.beside);
        self.compared.inc_by(now.decisions - before.decisions);
        self.agreed.inc_by(now.agreed - before.agreed);
        // Sums of what is not negative: they only grow.
        let more = |now: f64, before: f64| (now - before).max(0.0);
        self.rules_regret
            .inc_by(more(now.rules_regret, before.rules_regret));
        self.policy_regret
            .inc_by(more(now.policy_regret, before.policy_regret));
    }

    /// Counts what became of decisions of sites.
    pub fn count_site_verdicts(&self, verdicts: &Verdicts) {
        for (verdict, count) in [
            ("adopted", verdicts.adopted),
            ("overruled", verdicts.overruled),
            ("known", verdicts.known),
            ("kept", verdicts.kept),
            ("refused", verdicts.refused),
        ] {
            let counter = self.site_decisions.get_or_create(&Verdict { verdict });
            counter.inc_by(count);
        }
    }

    /// Counts placements by phase.
    pub fn count_placements(&self, phases: impl Iterator<Item = PlacementPhase>) {
        let mut counts = std::collections::BTreeMap::<String, i64>::new();
        for phase in ALL {
            counts.insert(format!("{phase:?}"), 0);
        }
        for phase in phases {
            *counts.entry(format!("{phase:?}")).or_default() += 1;
        }
        for (phase, count) in counts {
            self.placements.get_or_create(&Phase { phase }).set(count);
        }
    }

    /// Takes the statuses of all rollouts, by name.
    pub fn count_rollouts<'a>(
        &self,
        all: impl Iterator<Item = (&'a str, &'a HyperionRolloutStatus)>,
    ) {
        self.rollout_nodes.clear();
        self.rollout_phase.clear();
        for (rollout, status) in all {
            let labels = |state: &str| RolloutState {
                rollout: rollout.to_owned(),
                state: state.to_owned(),
            };
            for (state, count) in [
                ("done", status.done),
                ("updating", status.updating),
                ("waiting", status.waiting),
                ("failed", status.failed),
                ("refused", status.refused),
                ("unavailable", status.unavailable),
            ] {
                let gauge = self.rollout_nodes.get_or_create(&labels(state)).clone();
                gauge.set(i64::from(count));
            }
            let phase = labels(&status.phase.to_string());
            self.rollout_phase.get_or_create(&phase).set(1);
        }
    }

    /// Takes the states of all NodeClaims, with their clusters.
    pub fn count_claims<'a>(&self, states: impl Iterator<Item = (&'a str, &'static str)>) {
        let mut counts = std::collections::BTreeMap::<(&str, &'static str), i64>::new();
        for at in states {
            *counts.entry(at).or_default() += 1;
        }
        self.node_claims.clear();
        for ((cluster, state), count) in counts {
            let cluster = cluster.to_owned();
            let labels = ClaimState { cluster, state };
            self.node_claims.get_or_create(&labels).set(count);
        }
    }
}

const ALL: [PlacementPhase; 8] = [
    PlacementPhase::Pending,
    PlacementPhase::Starting,
    PlacementPhase::Running,
    PlacementPhase::Backoff,
    PlacementPhase::Succeeded,
    PlacementPhase::Failed,
    PlacementPhase::Stopping,
    PlacementPhase::Unknown,
];
