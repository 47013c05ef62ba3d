//! The unmodified `kubectl`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Runs `kubectl` (and our console) against one control plane.
#[derive(Debug, Clone)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    home: PathBuf,
    old: OnceLock<bool>,
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Kubectl {
    /// For a kubeconfig; caches go to `home`.
    #[must_use]
    pub fn new(kubeconfig: &Path, home: &Path) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            home: home.to_owned(),
            old: OnceLock::new(),
        }
    }

    /// The kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Runs `kubectl` with something on its standard input.
    ///
    /// # Errors
    /// It can't be run at all.
    pub fn output(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        let program = crate::needs::find("kubectl").context("kubectl is not installed")?;
        self.call(&program, args, input)
    }

    /// Is this `kubectl` older than 1.27? Those explain by OpenAPI v2, of which the embedded API
    /// serves no definitions.
    #[must_use]
    pub fn old(&self) -> bool {
        *self.old.get_or_init(|| {
            let version = self.run(&["version", "--client", "-o", "json"]);
            let version: Option<Value> = version
                .ok()
                .and_then(|text| serde_json::from_str(&text).ok());
            let minor = version.as_ref().and_then(|v| {
                let minor = v.pointer("/clientVersion/minor")?.as_str()?;
                minor.trim_end_matches('+').parse::<u32>().ok()
            });
            minor.is_some_and(|minor| minor < 27)
        })
    }

    /// Runs `kubectl`; gives its standard output.
    ///
    /// # Errors
    /// It failed: the error has its complaint.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        checked("kubectl", args, self.output(args, None)?)
    }

    /// Runs our console, `hyperion`; gives its standard output.
    ///
    /// # Errors
    /// It failed: the error has its complaint.
    pub fn hyperion(&self, args: &[&str]) -> Result<String> {
        let program = crate::needs::programs().join("hyperion");
        checked("hyperion", args, self.call(&program, args, None)?)
    }

    /// `kubectl apply -f -`.
    ///
    /// # Errors
    /// It failed: the error has its complaint.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let args = ["apply", "-f", "-"];
        checked("kubectl", &args, self.output(&args, Some(yaml))?)
    }

    /// Applies something that must be refused; gives the complaint.
    ///
    /// # Errors
    /// It was accepted.
    pub fn refused(&self, yaml: &str) -> Result<String> {
        let out = self.output(&["apply", "-f", "-"], Some(yaml))?;
        if out.success {
            bail!("accepted although it is wrong: {}\n{yaml}", out.stdout);
        }
        Ok(out.stderr)
    }

    /// `kubectl get … -o json`.
    ///
    /// # Errors
    /// It failed, or gave no JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get"];
        all.extend_from_slice(args);
        all.extend_from_slice(&["-o", "json"]);
        serde_json::from_str(&self.run(&all)?).context("kubectl get -o json")
    }

    fn call(&self, program: &Path, args: &[&str], input: Option<&str>) -> Result<Output> {
        let mut child = Command::new(program)
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .env("NO_COLOR", "1")
            .stdin(if input.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| program.display().to_string())?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
            stdin.write_all(input.as_bytes())?;
        }
        let out = child.wait_with_output()?;
        Ok(Output {
            success: out.status.success(),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        })
    }
}

fn checked(program: &str, args: &[&str], out: Output) -> Result<String> {
    if !out.success {
        bail!(
            "{program} {}: {}{}",
            args.join(" "),
            out.stderr.trim(),
            out.stdout.trim()
        );
    }
    Ok(out.stdout)
}
