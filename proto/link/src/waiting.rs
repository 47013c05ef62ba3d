//! Who waits for a turn: the newest goes first, and who has waited too long is sent away.
//!
//! First come, first served is the wrong order when more come than can be served in the time that
//! they are willing to wait: each turn then goes to somebody who has just given up, and nobody is
//! served at all. Newest first serves those who are still there, as many as there is time for;
//! the others hear a clear no at once and come again later, each after a wait of its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Those who wait, the oldest first.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    queue: VecDeque<(Instant, T)>,
    /// Longest wait.
    patience: Duration,
    /// Most that wait.
    most: usize,
}

impl<T> Waiting<T> {
    pub(crate) fn new(patience: Duration, most: usize) -> Self {
        Self {
            queue: VecDeque::new(),
            patience,
            most,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Lets somebody wait. Gives those who are to be sent away: who has waited too long, and the
    /// oldest where too many wait.
    pub(crate) fn push(&mut self, who: T, now: Instant) -> Vec<T> {
        self.queue.push_back((now, who));
        let mut away = Vec::new();
        while let Some((since, _)) = self.queue.front()
            && (self.queue.len() > self.most
                || now.saturating_duration_since(*since) > self.patience)
        {
            away.extend(self.queue.pop_front().map(|(_, who)| who));
        }
        away
    }

    /// Whose turn it is: the newest.
    pub(crate) fn pop(&mut self) -> Option<T> {
        self.queue.pop_back().map(|(_, who)| who)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_goes_first_and_who_waited_too_long_is_sent_away() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut waiting = Waiting::new(Duration::from_secs(5), 100);
        assert_eq!(waiting.push("a", at(0)), Vec::<&str>::new());
        assert_eq!(waiting.push("b", at(3)), Vec::<&str>::new());
        assert_eq!(waiting.push("c", at(6)), ["a"]);
        assert_eq!(waiting.pop(), Some("c"));
        assert_eq!(waiting.push("d", at(7)), Vec::<&str>::new());
        assert_eq!(
            (waiting.pop(), waiting.pop(), waiting.pop()),
            (Some("d"), Some("b"), None)
        );
        assert!(waiting.is_empty());
    }

    #[test]
    fn where_too_many_wait_the_oldest_are_sent_away() {
        let now = Instant::now();
        let mut waiting = Waiting::new(Duration::from_secs(5), 2);
        let away: Vec<u32> = (0..5).flat_map(|n| waiting.push(n, now)).collect();
        assert_eq!(away, [0, 1, 2]);
        assert_eq!((waiting.pop(), waiting.pop()), (Some(4), Some(3)));
    }

    /// Ten times as many come as can be served, each willing to wait for 5 s: every turn must go to
    /// somebody who is still there. Served in the order of their coming, nobody is after a while.
    #[test]
    fn under_overload_every_turn_goes_to_somebody_who_is_still_there() {
        let start = Instant::now();
        let patience = Duration::from_secs(5);
        let mut waiting = Waiting::new(patience, 10_000);
        let (mut served, mut too_late) = (0, 0);
        for ms in 0_u64..60_000 {
            let now = start + Duration::from_millis(ms);
            waiting.push(now, now);
            if ms % 10 == 0
                && let Some(since) = waiting.pop()
            {
                if now - since <= patience {
                    served += 1;
                } else {
                    too_late += 1;
                }
            }
        }
        assert_eq!((served, too_late), (6000, 0));
    }
}
