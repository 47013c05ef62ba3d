//! Measures a server's p99 under load beside what the model says: `queue_check [REQUESTS]`. JSON.

use std::io::Write as _;

use hyperion_scheduler::sim::{QueueLoad, queue_check};

fn main() -> anyhow::Result<()> {
    let requests = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 6000,
    };
    let mut out = std::io::stdout().lock();
    for phases in [0, 5] {
        for load in [0.3, 0.6, 0.8] {
            let check = queue_check(&QueueLoad {
                service_ms: 5.0,
                load,
                phases,
                requests,
                seed: 1,
            })?;
            writeln!(
                out,
                "{{\"phases\":{phases},\"load\":{load},\"check\":{}}}",
                serde_json::to_string(&check)?
            )?;
        }
    }
    Ok(())
}
