//! Builds the programs in Go and keeps them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// A program that is built with Go, from the folder of its name beside this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// kube-apiserver with etcd and controllers; or kube-scheduler.
    ApiServer,
    /// kwok's controller: runs the nodes of a cluster.
    Kwok,
    /// Karpenter with its own provider of nodes that kwok runs.
    Karpenter,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::ApiServer, Self::Kwok, Self::Karpenter];

    /// Its name, and its folder's.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "apiserver",
            Self::Kwok => "kwok",
            Self::Karpenter => "karpenter",
        }
    }

    /// Where its sources are.
    #[must_use]
    pub fn sources(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.name())
    }

    /// Why a test that needs it can't run here, or none if it is built.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        let name = self.name();
        match self.kept() {
            Ok(Some(_)) => None,
            Ok(None) => Some(format!(
                "{name} is not built: run `make test-cluster`, which needs Go the first time"
            )),
            Err(e) => Some(format!("{name}: {e:#}")),
        }
    }

    /// The program of these sources, if it was built before.
    ///
    /// # Errors
    /// The sources can't be read.
    pub fn kept(self) -> Result<Option<PathBuf>> {
        let program = place(self.name(), &self.sources(), &cache()?)?;
        Ok(program.is_file().then_some(program))
    }

    /// Module whose version the program tells as its own.
    fn module(self) -> &'static str {
        match self {
            Self::ApiServer => "k8s.io/kubernetes",
            Self::Kwok => "sigs.k8s.io/kwok",
            Self::Karpenter => "sigs.k8s.io/karpenter",
        }
    }

    /// Without symbols, and with the version that it tells of itself.
    fn link_flags(self, version: &str) -> String {
        let mut numbers = version.trim_start_matches('v').split('.');
        let mut next = || numbers.next().unwrap_or_default();
        let (major, minor) = (next(), next());
        let names: &[(&str, &str)] = match self {
            Self::ApiServer => &[
                ("k8s.io/component-base/version.gitVersion", version),
                ("k8s.io/component-base/version.gitMajor", major),
                ("k8s.io/component-base/version.gitMinor", minor),
            ],
            Self::Kwok => &[("sigs.k8s.io/kwok/pkg/consts.Version", version)],
            Self::Karpenter => &[("sigs.k8s.io/karpenter/pkg/operator.Version", version)],
        };
        let mut flags = "-s -w".to_owned();
        for (name, value) in names {
            flags.push_str(&format!(" -X {name}={value}"));
        }
        flags
    }
}

/// Folder of programs that were built: in `XDG_CACHE_HOME`, else in `~/.cache`.
///
/// # Errors
/// There is no home either.
pub fn cache() -> Result<PathBuf> {
    let path = |name| {
        let value = std::env::var_os(name)?;
        Some(PathBuf::from(value)).filter(|path| path.is_absolute())
    };
    let base = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    let base = base.context("neither XDG_CACHE_HOME nor HOME names a folder")?;
    Ok(base.join("hyperion-ci/go"))
}

/// What became of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The program is here.
    Built(PathBuf),
    /// It can't be built on this machine, which is no fault of the sources: the reason.
    Impossible(String),
}

/// Builds a program, which takes long the first time, or finds the one that was kept. What Go says
/// goes to standard error.
///
/// # Errors
/// Go refuses the sources, or the cache can't be written.
pub fn build(what: Program) -> Result<Outcome> {
    let (name, sources, cache) = (what.name(), what.sources(), cache()?);
    let program = place(name, &sources, &cache)?;
    if program.is_file() {
        return Ok(Outcome::Built(program));
    }
    let Some(go) = go() else {
        return Ok(Outcome::Impossible("Go is not installed".to_owned()));
    };
    if let Some(reason) = too_old(&go)? {
        return Ok(Outcome::Impossible(reason));
    }
    // All modules before anything is compiled: a build does not fail in its last minute.
    if let Some(reason) = fetch(&go, &sources)? {
        return Ok(Outcome::Impossible(reason));
    }
    std::fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let version = version(&sources, what.module())?;
    let new = cache.join(format!("{name}.{}", std::process::id()));
    let status = command(&go)
        .current_dir(&sources)
        .args(["build", "-trimpath", "-ldflags", &what.link_flags(&version)])
        .arg("-o")
        .arg(&new)
        .arg(".")
        .status()
        .with_context(|| go.display().to_string())?;
    ensure!(status.success(), "go build: {status}");
    // Programs of older sources have no use any more.
    for old in std::fs::read_dir(&cache)?.flatten() {
        if old
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{name}-"))
        {
            // Another build may have removed it first.
            let _gone = std::fs::remove_file(old.path());
        }
    }
    std::fs::rename(&new, &program).with_context(|| program.display().to_string())?;
    Ok(Outcome::Built(program))
}

/// Without a C compiler, and only from what `go.mod` and `go.sum` pin.
fn command(go: &Path) -> Command {
    let mut command = Command::new(go);
    command
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("GOWORK", "off")
        .stdin(Stdio::null());
    command
}

/// Why this Go can't read `go.mod` at all; newer ones say themselves what they lack.
fn too_old(go: &Path) -> Result<Option<String>> {
    let out = command(go)
        // Not where the sources are: their version of Go would be fetched.
        .current_dir("/")
        .args(["env", "GOVERSION"])
        .output()
        .with_context(|| go.display().to_string())?;
    let version = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    let old = !reads_versions(&version);
    Ok(old.then(|| format!("Go is too old ({version}): 1.21 or newer is needed")))
}

/// Since 1.21, Go knows that a module may need a newer one.
fn reads_versions(version: &str) -> bool {
    let mut numbers = version.trim_start_matches("go").split('.');
    let mut next = || {
        let digits = numbers.next().unwrap_or_default();
        let end = digits.find(|c: char| !c.is_ascii_digit());
        digits
            .get(..end.unwrap_or(digits.len()))
            .and_then(|digits| digits.parse::<u32>().ok())
    };
    match (next(), next()) {
        (Some(major), Some(minor)) => (major, minor) >= (1, 21),
        // Built from Go's own repository.
        _ => version.starts_with("devel"),
    }
}

/// Fetches the modules that the program needs; gives the reason where they, or the version of Go
/// that they need, can't be had.
fn fetch(go: &Path, sources: &Path) -> Result<Option<String>> {
    let mut child = command(go)
        .current_dir(sources)
        .args(["list", "-deps", "."])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| go.display().to_string())?;
    let mut said = Vec::new();
    for line in BufReader::new(child.stderr.take().context("no standard error")?).lines() {
        let line = line.context("go list")?;
        // A closed standard error is nobody's concern.
        let _closed = writeln!(std::io::stderr(), "{line}");
        said.push(line);
    }
    let status = child.wait().context("go list")?;
    if status.success() {
        return Ok(None);
    }
    match said.iter().find(|line| unreachable(line)) {
        Some(line) => Ok(Some(format!(
            "Go can't fetch what it needs: {}",
            line.trim()
        ))),
        None => bail!("go list: {status}"),
    }
}

/// Does Go complain of the network, or of its own version, and not of the sources?
fn unreachable(line: &str) -> bool {
    [
        // Every failed request, whatever failed.
        ": Get \"",
        // An answer that is none.
        "reading http",
        "module lookup disabled",
        "toolchain not available",
        "GOTOOLCHAIN=",
        "unrecognized import path",
        "fatal: unable to access",
        "exec: \"git\"",
    ]
    .iter()
    .any(|sign| line.contains(sign))
}

/// Where the program of these sources is kept.
fn place(program: &str, sources: &Path, cache: &Path) -> Result<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(sources)
        .with_context(|| sources.display().to_string())?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = std::fs::read(&file).with_context(|| file.display().to_string())?;
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        for part in [name, &content] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
    }
    let hash = hash.finalize();
    let hash: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
    Ok(cache.join(format!("{program}-{hash}")))
}

/// The version of a module that the sources pin, as in `v1.36.3`.
fn version(sources: &Path, module: &str) -> Result<String> {
    let file = sources.join("go.mod");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut words = text.lines().map(str::split_whitespace);
    let found =
        words.find_map(|mut line| (line.next() == Some(module)).then(|| line.next()).flatten());
    match found {
        Some(version) => Ok(version.to_owned()),
        None => bail!("{} does not require {module}", file.display()),
    }
}

fn go() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // Where Go's own archive goes.
        .chain(["/usr/local/go/bin".into()])
        .map(|dir| dir.join("go"))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sources_are_another_program() {
        let dir = tempfile::tempdir().unwrap();
        let (sources, cache) = (dir.path(), Path::new("/cache"));
        std::fs::write(sources.join("main.go"), "package main").unwrap();
        let placed = |sources: &Path| place("program", sources, cache);
        let before = placed(sources).unwrap();
        assert!(before.starts_with(cache));
        assert_eq!(placed(sources).unwrap(), before);
        std::fs::write(sources.join("main.go"), "package other").unwrap();
        let after = placed(sources).unwrap();
        assert_ne!(after, before);
        std::fs::rename(sources.join("main.go"), sources.join("mein.go")).unwrap();
        assert_ne!(placed(sources).unwrap(), after);
        assert!(placed(Path::new("/no/such")).is_err());
    }

    #[test]
    fn go_that_is_too_old_is_known_by_its_version() {
        for good in [
            "go1.21",
            "go1.26.8",
            "go1.27rc1",
            "go1.22-custom",
            "go2.0",
            "devel go1.28-abc",
        ] {
            assert!(reads_versions(good), "{good}");
        }
        for bad in ["", "go1.19.8", "go1.20rc3", "go1", "nonsense"] {
            assert!(!reads_versions(bad), "{bad}");
        }
    }

    #[test]
    fn a_network_that_fails_is_told_from_sources_that_are_wrong() {
        for network in [
            "main.go:20:2: k8s.io/klog/v2@v2.140.0: Get \"https://modules.example/x\": dial tcp: lookup",
            "main.go:20:2: reading https://modules.example/x: 403 Forbidden",
            "main.go:20:2: module lookup disabled by GOPROXY=off",
            "go: go.mod requires go >= 1.26.0 (running go 1.24.1; GOTOOLCHAIN=local)",
            "go: download go1.26.0 for linux/amd64: toolchain not available",
        ] {
            assert!(unreachable(network), "{network}");
        }
        for sources in [
            "main.go:20:2: missing go.sum entry for module providing package k8s.io/klog/v2",
            "main.go:20:2: no required module provides package example.com/x",
            "go: updates to go.mod needed; to update it: go mod tidy",
            "verifying k8s.io/klog/v2@v2.140.0: checksum mismatch",
        ] {
            assert!(!unreachable(sources), "{sources}");
        }
    }

    #[test]
    fn the_version_is_the_pinned_one() {
        for program in Program::ALL {
            let version = version(&program.sources(), program.module()).unwrap();
            assert!(version.starts_with('v'), "{version}");
            let flags = program.link_flags(&version);
            assert!(flags.contains(&format!("ersion={version}")), "{flags}");
        }
        let flags = Program::ApiServer.link_flags("v1.36.3");
        assert!(flags.ends_with("gitMinor=36"), "{flags}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("go.mod"), "module x\n").unwrap();
        assert!(version(dir.path(), "k8s.io/kubernetes").is_err());
    }
}
