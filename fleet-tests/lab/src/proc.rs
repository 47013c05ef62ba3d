//! What the kernel says of a process.

use anyhow::Context;

/// Unit of the times in /proc/PID/stat: fixed by Linux's ABI on all that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Resident memory, bytes.
///
/// # Errors
/// There is no such process.
pub fn rss_bytes(pid: u32) -> anyhow::Result<u64> {
    let resident = field(pid, "status", "VmRSS:")?;
    let kib: u64 = resident.trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024)
}

/// What follows `name` in a file of the process.
fn field(pid: u32, file: &str, name: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"))?;
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    Ok(line.with_context(|| name.to_owned())?.trim().to_owned())
}

/// User and system time so far, seconds.
///
/// # Errors
/// There is no such process.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; utime and stime are the 12th and 13th after it.
    let rest = stat.rsplit_once(')').context("/proc/PID/stat")?.1;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || -> anyhow::Result<u64> {
        let field = fields.next().context("/proc/PID/stat")?;
        field.parse().context("/proc/PID/stat")
    };
    Ok((next()? + next()?) as f64 / TICKS_PER_SECOND)
}

/// What the process has had written to disks so far, bytes: pages of files that it has changed, and not
/// what the file system keeps of them for itself.
///
/// # Errors
/// There is no such process, or it is another user's.
pub fn written_bytes(pid: u32) -> anyhow::Result<u64> {
    Ok(field(pid, "io", "write_bytes:")?.parse()?)
}

/// Model name of the CPU, `unknown` where the kernel does not tell.
#[must_use]
pub fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("model name"));
    name.map_or_else(
        || "unknown".to_owned(),
        |n| n.trim_start_matches([' ', '\t', ':']).to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_time() {
        let own = std::process::id();
        written_bytes(own).unwrap();
        assert!(rss_bytes(own).unwrap() > 1 << 20);
        assert!(cpu_seconds(own).unwrap() >= 0.0);
    }
}
