//! Notes which commit the measured program was built from.

use std::process::Command;

fn main() {
    // Changes with every commit.
    println!("cargo::rerun-if-changed=../../.git/logs/HEAD");
    let described = Command::new("git")
        .args(["describe", "--always", "--tags"])
        .output();
    let version = described
        .ok()
        .filter(|o| o.status.success())
        .and_then(|o| String::from_utf8(o.stdout).ok());
    if let Some(version) = version {
        println!("cargo::rustc-env=HYPERION_VERSION={}", version.trim());
    }
}
