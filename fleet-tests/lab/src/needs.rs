//! What the lab needs from the machine, and how to say that it is not there.

use std::io::Write;
use std::path::{Path, PathBuf};

use hyperion_cluster::Choice;

/// Programs of this workspace that a fleet runs.
pub const OURS: [&str; 5] = [
    "hyperion-control",
    "hyperion-agent",
    "hyperion",
    "demo-inference",
    "hyperion-pause",
];
/// Programs of the system that a fleet runs.
pub const SYSTEM: [&str; 6] = ["containerd", "ctr", "runc", "ip", "kubectl", "ldd"];

/// Programs of the system that devices with networks of their own need besides.
pub const DEVICES: [&str; 2] = ["nsenter", "nft"];

/// Why a fleet of devices can't run here, or none if it can.
#[must_use]
pub fn missing_for_devices() -> Option<String> {
    missing(&OURS).or_else(|| {
        let program = DEVICES.iter().find(|p| find(p).is_none())?;
        Some(format!("{program} is not installed (see .ci/setup)"))
    })
}

/// As [`skip`], for a test with devices.
///
/// # Panics
/// A fleet of devices can't run here though it is required.
#[must_use]
pub fn skip_devices(test: &str) -> bool {
    skip_for(test, missing_for_devices())
}

/// Why containers, and these programs of ours, can't run here, or none if they can.
#[must_use]
pub fn missing(ours: &[&str]) -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("containers need root".to_owned());
    }
    if let Some(program) = SYSTEM.iter().find(|p| find(p).is_none()) {
        return Some(format!("{program} is not installed (see .ci/setup)"));
    }
    if !cni_plugins().join("bridge").exists() {
        return Some("the CNI plugins are not installed (see .ci/setup)".to_owned());
    }
    if !Path::new("/sys/fs/cgroup/memory").exists()
        && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
    {
        return Some("no cgroups are mounted".to_owned());
    }
    if let Some(reason) = hyperion_cluster::chosen().missing() {
        return Some(reason);
    }
    let programs = programs();
    ours.iter()
        .find(|p| !programs.join(p).exists())
        .map(|p| format!("{p} is not built: run `cargo build --workspace --bins` first"))
}

/// For tests: true, after a line that says so, if a whole fleet can't run here. Where
/// `HYPERION_LAB_REQUIRED` is set, that is a failure instead.
///
/// # Panics
/// A fleet can't run here though it is required.
#[must_use]
pub fn skip(test: &str) -> bool {
    skip_without(test, &OURS)
}

/// The same for a test that needs only some of our programs.
///
/// # Panics
/// The test can't run here though it is required.
#[must_use]
pub fn skip_without(test: &str, ours: &[&str]) -> bool {
    skip_for(test, missing(ours))
}

/// For tests of the embedded API itself: true, after a line that says so, where another is chosen.
#[must_use]
pub fn skip_unless_embedded(test: &str) -> bool {
    let other = hyperion_cluster::chosen().is_real();
    say_if(other, test, "it is about the embedded API")
}

/// For tests with two APIs: true, after a line that says so, where there is only the given one.
#[must_use]
pub fn skip_on_given(test: &str) -> bool {
    let given = matches!(hyperion_cluster::chosen(), Choice::Given(_));
    say_if(given, test, "it needs an API of its own")
}

/// Says, where it is `so`, that a test is left out for a reason that is no failure anywhere; gives
/// `so` back.
#[must_use]
pub fn say_if(so: bool, test: &str, reason: &str) -> bool {
    if so {
        // A closed standard error is nobody's concern.
        let _closed = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
    }
    so
}

#[expect(clippy::panic, reason = "a required test that can't run must fail")]
fn skip_for(test: &str, missing: Option<String>) -> bool {
    let Some(reason) = missing else {
        return false;
    };
    if std::env::var_os("HYPERION_LAB_REQUIRED").is_some() {
        panic!("{test} is required here but can't run: {reason}");
    }
    // Straight to the file: the test runner would keep what a passing test prints to itself.
    let _closed = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
    true
}

/// Folder of this workspace's programs: `HYPERION_BIN_DIR`, or where this program itself is.
#[must_use]
pub fn programs() -> PathBuf {
    if let Some(dir) = std::env::var_os("HYPERION_BIN_DIR") {
        return PathBuf::from(dir);
    }
    let here = std::env::current_exe().unwrap_or_default();
    let dir = here.parent().unwrap_or(Path::new("."));
    // Tests lie in the folder deps/ below the programs.
    if dir.ends_with("deps") {
        dir.parent().unwrap_or(dir).to_owned()
    } else {
        dir.to_owned()
    }
}

/// Folder of the CNI plugins: Debian's, or the one that upstream uses.
#[must_use]
pub fn cni_plugins() -> PathBuf {
    let debian = PathBuf::from("/usr/lib/cni");
    if debian.join("bridge").exists() {
        debian
    } else {
        PathBuf::from("/opt/cni/bin")
    }
}

/// Path of a program of the system.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Not every user has these in the path.
        .chain(["/usr/sbin".into(), "/sbin".into(), "/usr/local/bin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}
