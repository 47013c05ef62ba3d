//! Credential plugins of the control plane: for which kinds of access, of those that ClusterProfiles
//! offer, it has a program. The file has the form that SIG-Multicluster's controllers take.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

/// The plugins, best first.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugins {
    /// In the order of the file.
    pub providers: Vec<Provider>,
}

/// A plugin for one kind of access.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// The kind, as ClusterProfiles name it.
    pub name: String,
    /// The program.
    pub exec_config: Exec,
    /// Whether arguments of a ClusterProfile are taken.
    #[serde(default, rename = "profileSourcedCLIArgsPolicy")]
    pub args_policy: ArgsPolicy,
    /// Whether variables of a ClusterProfile are taken.
    #[serde(default, rename = "profileSourcedEnvVarsPolicy")]
    pub env_policy: EnvPolicy,
}

/// A program and how it is started, as in a kubeconfig.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Exec {
    /// What it is asked and answers in.
    pub api_version: Protocol,
    /// Its file, or its name where it is in `PATH`.
    pub command: String,
    /// Its arguments.
    pub args: Option<Vec<String>>,
    /// Variables beside those of the control plane.
    pub env: Option<Vec<Variable>>,
    /// For people who do not have the program; nobody is shown it.
    #[expect(dead_code, reason = "part of the form")]
    install_hint: Option<String>,
    /// It is told which cluster it is for.
    #[serde(default)]
    pub provide_cluster_info: bool,
    /// Whether it may ask a person; there is none.
    interactive_mode: Option<Interactive>,
}

/// Version of the words between a plugin and who starts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Protocol {
    /// The one that has come to stay.
    #[serde(rename = "client.authentication.k8s.io/v1")]
    V1,
    /// The one before it.
    #[serde(rename = "client.authentication.k8s.io/v1beta1")]
    V1Beta1,
}

impl Protocol {
    /// As plugins read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "client.authentication.k8s.io/v1",
            Self::V1Beta1 => "client.authentication.k8s.io/v1beta1",
        }
    }
}

/// A variable of the environment.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
enum Interactive {
    Never,
    IfAvailable,
    Always,
}

/// What becomes of arguments that a ClusterProfile has for the plugin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum ArgsPolicy {
    /// They are left out.
    #[default]
    Ignore,
    /// They come after those of the file.
    Append,
}

/// What becomes of variables that a ClusterProfile has for the plugin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum EnvPolicy {
    /// They are left out.
    #[default]
    Ignore,
    /// They are added to those of the file, which count before them.
    AppendIfNotExists,
    /// They are added to those of the file, and count before them.
    Replace,
}

impl Plugins {
    /// Reads them from a file in JSON or YAML.
    ///
    /// # Errors
    /// The file can't be read, or is not of the form; the sentence names it.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let what = || format!("--cluster-profile-providers {}", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        Self::parse(&text).with_context(what)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let plugins: Self = serde_yaml_ng::from_str(text)?;
        if plugins.providers.is_empty() {
            bail!("providers: there is none");
        }
        let mut names = BTreeSet::new();
        for provider in &plugins.providers {
            let name = &provider.name;
            if name.is_empty() {
                bail!("providers: one has no name");
            }
            if !names.insert(name) {
                bail!("providers: {name:?} is there twice");
            }
            if provider.exec_config.command.is_empty() {
                bail!("provider {name:?}: execConfig.command is empty");
            }
            if provider.exec_config.interactive_mode == Some(Interactive::Always) {
                bail!(
                    "provider {name:?}: execConfig.interactiveMode is Always, and there is nobody to ask"
                );
            }
        }
        Ok(plugins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_forms_are_read() {
        let json = r#"{ "providers": [ { "name": "secretreader", "execConfig": {
            "apiVersion": "client.authentication.k8s.io/v1", "args": null, "env": null,
            "command": "./bin/secretreader-plugin", "provideClusterInfo": true } } ] }"#;
        let plugins = Plugins::parse(json).unwrap();
        let provider = &plugins.providers[0];
        assert_eq!(provider.name, "secretreader");
        assert_eq!(provider.exec_config.api_version, Protocol::V1);
        assert!(provider.exec_config.provide_cluster_info);
        assert_eq!(provider.args_policy, ArgsPolicy::Ignore);
        assert_eq!(provider.env_policy, EnvPolicy::Ignore);

        let yaml = "providers:
- name: gke-fleet
  execConfig:
    apiVersion: client.authentication.k8s.io/v1beta1
    command: gke-gcloud-auth-plugin
    args: [--use_application_default_credentials]
    env: [{name: HOME, value: /var/lib/hyperion}]
    installHint: none
    interactiveMode: IfAvailable
  profileSourcedCLIArgsPolicy: Append
  profileSourcedEnvVarsPolicy: AppendIfNotExists
";
        let plugins = Plugins::parse(yaml).unwrap();
        let provider = &plugins.providers[0];
        assert_eq!(provider.exec_config.api_version, Protocol::V1Beta1);
        assert_eq!(provider.exec_config.env.as_ref().unwrap()[0].name, "HOME");
        assert!(!provider.exec_config.provide_cluster_info);
        assert_eq!(provider.args_policy, ArgsPolicy::Append);
        assert_eq!(provider.env_policy, EnvPolicy::AppendIfNotExists);
    }

    #[test]
    fn what_is_not_of_the_form_is_named() {
        let exec = "apiVersion: client.authentication.k8s.io/v1, command: p";
        let one = |more: &str| format!("providers: [{{name: a, {more}}}]");
        for (text, word) in [
            ("][".to_owned(), "did not find expected"),
            ("{}".to_owned(), "providers"),
            ("providers: []".to_owned(), "there is none"),
            ("providers: [{name: a}]".to_owned(), "execConfig"),
            (one("execConfig: {command: p}"), "apiVersion"),
            (one("execConfig: {apiVersion: v1, command: p}"), "v1"),
            (
                one("execConfig: {apiVersion: client.authentication.k8s.io/v1}"),
                "command",
            ),
            (one(&format!("execConfig: {{{exec}, arg: [b]}}")), "arg"),
            (
                one(&format!("execConfig: {{{exec}, interactiveMode: Always}}")),
                "nobody to ask",
            ),
            (
                one(&format!(
                    "execConfig: {{{exec}}}, profileSourcedCLIArgsPolicy: Replace"
                )),
                "Replace",
            ),
            (
                format!(
                    "providers: [{{name: a, execConfig: {{{exec}}}}}, {{name: a, execConfig: {{{exec}}}}}]"
                ),
                "twice",
            ),
            (
                format!("providers: [{{name: '', execConfig: {{{exec}}}}}]"),
                "no name",
            ),
        ] {
            let said = format!("{:#}", Plugins::parse(&text).unwrap_err());
            assert!(said.contains(word), "{text}: {said}");
        }
        let path = Path::new("/nowhere/providers.json");
        let said = format!("{:#}", Plugins::read(path).unwrap_err());
        assert!(
            said.starts_with("--cluster-profile-providers /nowhere/providers.json: "),
            "{said}"
        );
    }
}
