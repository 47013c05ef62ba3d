//! `/proc/net/dev`.

use std::collections::BTreeMap;
use std::time::Duration;

/// Bytes received and sent since boot, per interface.
pub type Counters = BTreeMap<String, (u64, u64)>;

/// Counters of all interfaces but loopback; lines that do not parse are left out.
pub fn parse(text: &str) -> Counters {
    text.lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let name = name.trim();
            if name == "lo" {
                return None;
            }
            let mut numbers = numbers.split_ascii_whitespace();
            let rx = numbers.next()?.parse().ok()?;
            let tx = numbers.nth(7)?.parse().ok()?;
            Some((name.to_owned(), (rx, tx)))
        })
        .collect()
}

/// Bytes per second, received and sent; none for an interval of no length. An interface that came,
/// went or whose counter started anew adds nothing.
pub fn rates(before: &Counters, now: &Counters, elapsed: Duration) -> Option<(u64, u64)> {
    let millis = u64::try_from(elapsed.as_millis())
        .ok()
        .filter(|ms| *ms > 0)?;
    let mut rx = 0_u64;
    let mut tx = 0_u64;
    for (name, (rx_now, tx_now)) in now {
        let Some((rx_before, tx_before)) = before.get(name) else {
            continue;
        };
        rx = rx.saturating_add(rx_now.saturating_sub(*rx_before));
        tx = tx.saturating_add(tx_now.saturating_sub(*tx_before));
    }
    let per_second = |bytes: u64| {
        let rate = u128::from(bytes) * 1000 / u128::from(millis);
        // No interface of a node carries a pebibyte a second: a counter jumped.
        u64::try_from(rate).ok().filter(|r| *r < 1 << 50)
    };
    Some((per_second(rx)?, per_second(tx)?))
}
