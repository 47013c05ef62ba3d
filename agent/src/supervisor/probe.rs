//! Liveness and readiness probes with Kubernetes' defaults and thresholds.

use std::time::Duration;

use hyperion_proto::agent_v1::{self, probe::Handler};

/// Shortest wait between two readiness probes of a container that was never ready.
const EAGER: Duration = Duration::from_millis(100);

/// Which probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Liveness,
    Readiness,
}

/// A probe with the defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spec {
    pub handler: Handler,
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    success_threshold: u32,
    failure_threshold: u32,
}

impl Spec {
    /// None where the probe has no handler.
    pub(super) fn new(kind: Kind, probe: &agent_v1::Probe) -> Option<Self> {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let seconds = |value: u32| Duration::from_secs(value.into());
        Some(Self {
            handler: probe.handler.clone()?,
            initial_delay: seconds(probe.initial_delay_seconds),
            period: seconds(or(probe.period_seconds, 10)),
            timeout: seconds(or(probe.timeout_seconds, 1)),
            success_threshold: match kind {
                // One success is all that a liveness probe may ask for.
                Kind::Liveness => 1,
                Kind::Readiness => or(probe.success_threshold, 1),
            },
            failure_threshold: or(probe.failure_threshold, 3),
        })
    }
}

/// Counts results of one probe.
#[derive(Debug)]
pub(super) struct Counter {
    kind: Kind,
    /// Last verdict: a liveness probe begins as good, a readiness probe as bad.
    good: bool,
    /// Results that disagree with the verdict, in a row.
    against: u32,
    /// Words of the last failure that was told.
    words: String,
    tries: u32,
}

/// What a result changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    /// With the words of the last failure.
    Bad(String),
}

impl Counter {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            good: kind == Kind::Liveness,
            against: 0,
            words: String::new(),
            tries: 0,
        }
    }

    /// Takes one result; tells where the verdict changed, and, of a container that is not ready,
    /// where the reason did.
    pub(super) fn take(&mut self, spec: &Spec, result: Result<(), String>) -> Option<Verdict> {
        self.tries = self.tries.saturating_add(1);
        if result.is_ok() == self.good {
            self.against = 0;
            return match result {
                Err(words) if words != self.words => {
                    self.words.clone_from(&words);
                    Some(Verdict::Bad(words))
                }
                _ => None,
            };
        }
        self.against += 1;
        let threshold = if self.good {
            spec.failure_threshold
        } else {
            spec.success_threshold
        };
        if self.against < threshold {
            return None;
        }
        self.against = 0;
        self.good = !self.good;
        Some(match result {
            Ok(()) => {
                self.words.clear();
                Verdict::Good
            }
            Err(words) => {
                self.words.clone_from(&words);
                Verdict::Bad(words)
            }
        })
    }

    /// Wait before the next try. Until a container is ready for the first time it is asked more
    /// often, so that a service that starts in a second need not wait for ten.
    pub(super) fn wait(&self, spec: &Spec) -> Duration {
        let eager = self.kind == Kind::Readiness && !self.good && self.tries < 16;
        if !eager {
            return spec.period;
        }
        EAGER
            .saturating_mul(1 << self.tries.saturating_sub(1).min(15))
            .min(spec.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: Kind, success: u32, failure: u32) -> Spec {
        let probe = agent_v1::Probe {
            handler: Some(Handler::TcpPort(1)),
            success_threshold: success,
            failure_threshold: failure,
            ..Default::default()
        };
        Spec::new(kind, &probe).unwrap()
    }

    fn bad() -> Result<(), String> {
        Err("no".into())
    }

    #[test]
    fn defaults_are_those_of_kubernetes() {
        let s = spec(Kind::Readiness, 0, 0);
        assert_eq!(s.initial_delay, Duration::ZERO);
        assert_eq!(s.period, Duration::from_secs(10));
        assert_eq!(s.timeout, Duration::from_secs(1));
        assert_eq!((s.success_threshold, s.failure_threshold), (1, 3));
        assert_eq!(Spec::new(Kind::Liveness, &agent_v1::Probe::default()), None);
    }

    #[test]
    fn liveness_dies_after_failures_in_a_row_only() {
        let s = spec(Kind::Liveness, 5, 3);
        let mut c = Counter::new(Kind::Liveness);
        for result in [bad(), bad(), Ok(()), bad(), bad()] {
            assert_eq!(c.take(&s, result), None);
        }
        assert_eq!(c.take(&s, bad()), Some(Verdict::Bad("no".into())));
    }

    #[test]
    fn readiness_begins_bad_and_flips_by_its_thresholds() {
        let s = spec(Kind::Readiness, 2, 2);
        let mut c = Counter::new(Kind::Readiness);
        assert_eq!(c.take(&s, bad()), Some(Verdict::Bad("no".into())));
        assert_eq!(c.take(&s, bad()), None);
        let other = c.take(&s, Err("why".into()));
        assert_eq!(other, Some(Verdict::Bad("why".into())));
        assert_eq!(c.take(&s, Ok(())), None);
        assert_eq!(c.take(&s, Ok(())), Some(Verdict::Good));
        assert_eq!(c.take(&s, bad()), None);
        assert_eq!(c.take(&s, bad()), Some(Verdict::Bad("no".into())));
    }

    #[test]
    fn a_container_that_was_never_ready_is_asked_more_often_at_first() {
        let s = spec(Kind::Readiness, 1, 3);
        let mut c = Counter::new(Kind::Readiness);
        let mut total = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..20 {
            c.take(&s, bad());
            waits.push(c.wait(&s));
            total += c.wait(&s);
        }
        assert_eq!(waits[0], EAGER);
        assert!(waits.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(waits[19], s.period);
        c.take(&s, Ok(()));
        assert_eq!(c.wait(&s), s.period);
    }
}
