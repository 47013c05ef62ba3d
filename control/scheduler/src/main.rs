//! `hyperion-train`: trains, evaluates and exports placement policies.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("nothing to do yet")
}
