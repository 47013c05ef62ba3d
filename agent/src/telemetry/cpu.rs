//! `/proc/stat` and `/proc/loadavg`.

/// Ticks since boot, all cores together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTimes {
    busy: u64,
    total: u64,
}

/// First line of `/proc/stat`.
pub fn parse_stat(text: &str) -> Option<CpuTimes> {
    let line = text.lines().find_map(|l| l.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; guest times are part of user and nice.
    let mut fields = [0_u64; 8];
    let mut count = 0;
    for (field, word) in fields.iter_mut().zip(line.split_ascii_whitespace()) {
        *field = word.parse().ok()?;
        count += 1;
    }
    // Kernels before 2.6 had four.
    if count < 4 {
        return None;
    }
    let total = fields.iter().fold(0_u64, |sum, f| sum.saturating_add(*f));
    let idle = fields[3].saturating_add(fields[4]);
    Some(CpuTimes {
        busy: total.saturating_sub(idle),
        total,
    })
}

impl CpuTimes {
    /// Share of the time since `before` that was not idle, percent; none where the counters did
    /// not grow. Idle ticks may go backwards by a little, so the share is bounded.
    pub fn percent_since(self, before: Self) -> Option<f32> {
        let total = self.total.checked_sub(before.total).filter(|t| *t > 0)?;
        let busy = self.busy.saturating_sub(before.busy).min(total);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a percentage needs three digits"
        )]
        let percent = (busy as f64 / total as f64 * 100.0) as f32;
        Some(percent.clamp(0.0, 100.0))
    }
}

/// Cores in `/proc/stat`.
pub fn count_cores(text: &str) -> usize {
    text.lines()
        .filter(|l| {
            l.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
        .count()
}

/// First number of `/proc/loadavg`.
pub fn parse_load1(text: &str) -> Option<f32> {
    let load: f32 = text.split_ascii_whitespace().next()?.parse().ok()?;
    (load.is_finite() && (0.0..=1e6).contains(&load)).then_some(load)
}
