//! `/proc/meminfo`.

/// Memory of a node, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All.
    pub total: u64,
    /// Not available to a new program without swapping.
    pub used: u64,
}

/// One exbibyte: no node has more of anything that is counted in bytes, and the gateway takes no more.
pub const MOST_BYTES: u64 = 1 << 60;

/// A line of it, bytes; none where it is no amount of memory.
pub fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024).filter(|bytes| *bytes <= MOST_BYTES)
}

/// Reads `MemTotal` and `MemAvailable`; kernels without the latter (before 3.14) get the sum of
/// what can be freed.
pub fn parse(text: &str) -> Option<Memory> {
    let field = |name: &str| field(text, name);
    let total = field("MemTotal")?;
    let available = field("MemAvailable").or_else(|| {
        let free = field("MemFree")?;
        Some(free.saturating_add(field("Buffers")?.saturating_add(field("Cached")?)))
    })?;
    Some(Memory {
        total,
        used: total.saturating_sub(available),
    })
}
