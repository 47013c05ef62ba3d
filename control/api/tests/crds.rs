//! The committed CRDs are those of the types. `HYPERION_REGENERATE=1` writes them anew.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

/// kubectl reads YAML 1.1, where Norway's `NO` is a boolean unless it is quoted.
fn yaml_1_1(text: &str) -> String {
    text.replace("- NO\n", "- \"NO\"\n")
}

#[test]
fn committed_crds_are_up_to_date() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    for crd in hyperion_api::crds() {
        let path = dir.join(format!("{}.yaml", crd.spec.names.plural));
        let text = format!(
            "# Generated from control/api by `HYPERION_REGENERATE=1 cargo test -p hyperion-api`.\n{}",
            yaml_1_1(&serde_yaml_ng::to_string(&crd).unwrap())
        );
        if std::env::var_os("HYPERION_REGENERATE").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let held = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            held == text,
            "{} is stale: run HYPERION_REGENERATE=1 cargo test -p hyperion-api",
            path.display()
        );
    }
}
