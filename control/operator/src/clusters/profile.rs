//! ClusterProfiles of SIG-Multicluster, as kubeconfigs: where a cluster is comes from the profile, and
//! who asks from a plugin of the control plane.

use std::collections::{BTreeMap, HashMap};

use http::Uri;
use k8s_openapi::ByteString;
use kube::config::{
    AuthInfo, Cluster, Context, ExecConfig, ExecInteractiveMode, Kubeconfig, NamedAuthInfo,
    NamedCluster, NamedContext,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::plugins::{ArgsPolicy, EnvPolicy, Plugins, Provider};
use crate::text::listed;

/// Extension with arguments for the plugin.
const ARGS: &str = "clusterprofiles.multicluster.x-k8s.io/exec/additional-args";
/// Extension with variables for the plugin.
const ENVS: &str = "clusterprofiles.multicluster.x-k8s.io/exec/additional-envs";
/// Name of the one cluster, user and context.
const ONLY: &str = "profile";
/// Kinds of access that are named at most: a profile may offer 64.
const NAMED: usize = 8;

/// Access to a cluster.
#[derive(Debug)]
pub struct Access {
    /// What kube-rs makes a client of.
    pub kubeconfig: Kubeconfig,
    /// What it was made of: where this is the same, so is the access. The profile's version is not,
    /// because whoever keeps it writes what it observes, too.
    pub source: String,
}

/// Makes the access that a ClusterProfile offers by the best plugin that fits.
///
/// # Errors
/// It offers none that can be used; the sentence goes on after the profile's name.
pub fn access(profile: &Value, plugins: &Plugins) -> Result<Access, String> {
    let offers = offers(profile);
    let found = plugins
        .providers
        .iter()
        .find_map(|p| Some((p, *offers.get(p.name.as_str())?)));
    let Some((provider, cluster)) = found else {
        return Err(none_fits(&offers, plugins));
    };
    let of = |what: String| format!("access provider {:?}: {what}", provider.name);
    let kubeconfig = kubeconfig(provider, cluster).map_err(of)?;
    Ok(Access {
        kubeconfig,
        source: json!([provider.name, cluster]).to_string(),
    })
}

/// Kinds of access and their clusters. `credentialProviders` is the name that the field had first.
fn offers(profile: &Value) -> BTreeMap<&str, &Value> {
    ["credentialProviders", "accessProviders"]
        .iter()
        .filter_map(|field| profile["status"][field].as_array())
        .flatten()
        .filter_map(|offer| Some((offer["name"].as_str()?, &offer["cluster"])))
        .collect()
}

fn none_fits(offers: &BTreeMap<&str, &Value>, plugins: &Plugins) -> String {
    if offers.is_empty() {
        return "it offers no access (status.accessProviders)".to_owned();
    }
    let offered = words(offers.keys().copied());
    let ours = words(plugins.providers.iter().map(|p| p.name.as_str()));
    format!("it offers access by {offered}, and the control plane has plugins for {ours}")
}

fn words<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let all = names.len();
    let first: Vec<String> = names.take(NAMED).map(|n| format!("{n:?}")).collect();
    listed(&first, all)
}

fn kubeconfig(provider: &Provider, cluster: &Value) -> Result<Kubeconfig, String> {
    let cluster = checked(cluster)?;
    let exec = exec(provider, &cluster)?;
    Ok(Kubeconfig {
        clusters: vec![NamedCluster {
            name: ONLY.to_owned(),
            cluster: Some(cluster),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: ONLY.to_owned(),
            auth_info: Some(AuthInfo {
                exec: Some(exec),
                ..AuthInfo::default()
            }),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: ONLY.to_owned(),
            context: Some(Context {
                cluster: ONLY.to_owned(),
                user: Some(ONLY.to_owned()),
                ..Context::default()
            }),
            ..NamedContext::default()
        }],
        current_context: Some(ONLY.to_owned()),
        ..Kubeconfig::default()
    })
}

/// Where the cluster is, where that can be used.
fn checked(cluster: &Value) -> Result<Cluster, String> {
    if cluster.is_null() {
        return Err("it has no cluster".to_owned());
    }
    // The parser's words repeat what it reads.
    let mut cluster: Cluster = serde_json::from_value(cluster.clone())
        .map_err(|_| "its cluster is not of the documented form".to_owned())?;
    let server = cluster.server.as_deref().filter(|s| !s.is_empty());
    let server = server.ok_or("its cluster has no server")?;
    let usable = server.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("https" | "http"))
            && uri.host().is_some_and(|h| !h.is_empty())
    });
    if !usable {
        return Err(format!(
            "its server {server:?} is no URL of an API server (https://HOST)"
        ));
    }
    // Empty is the same as none, as in Go.
    for field in [
        &mut cluster.certificate_authority_data,
        &mut cluster.tls_server_name,
        &mut cluster.proxy_url,
    ] {
        field.take_if(|text| text.is_empty());
    }
    // A file of whoever wrote the profile, and not of ours.
    cluster.certificate_authority = None;
    if let Some(text) = &cluster.certificate_authority_data {
        authority(text).map_err(|what| format!("its certificate-authority-data {what}"))?;
    }
    if cluster.proxy_url.is_some() {
        return Err("it is behind a proxy (proxy-url), which is not supported".to_owned());
    }
    Ok(cluster)
}

/// Certificates in PEM, in base64.
fn authority(text: &str) -> Result<(), &'static str> {
    let bytes: Result<ByteString, _> = serde_json::from_value(json!(text));
    let bytes = bytes.map_err(|_| "is no base64")?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&bytes.0) {
        certificate.map_err(|_| "is no PEM")?;
        count += 1;
    }
    if count == 0 {
        return Err("has no certificate in it");
    }
    Ok(())
}

/// How the plugin is started for this cluster.
fn exec(provider: &Provider, cluster: &Cluster) -> Result<ExecConfig, String> {
    let config = &provider.exec_config;
    let mut args = config.args.clone().unwrap_or_default();
    if provider.args_policy == ArgsPolicy::Append {
        args.extend(extension::<Vec<String>>(cluster, ARGS)?.unwrap_or_default());
    }
    let own = config.env.iter().flatten();
    let own = own.map(|v| (v.name.clone(), v.value.clone()));
    let more = || extension::<BTreeMap<String, String>>(cluster, ENVS);
    let mut env = BTreeMap::new();
    match provider.env_policy {
        EnvPolicy::Ignore => env.extend(own),
        EnvPolicy::AppendIfNotExists => {
            env.extend(more()?.unwrap_or_default());
            env.extend(own);
        }
        EnvPolicy::Replace => {
            env.extend(own);
            env.extend(more()?.unwrap_or_default());
        }
    }
    let variable =
        |(name, value)| HashMap::from([("name".to_owned(), name), ("value".to_owned(), value)]);
    Ok(ExecConfig {
        api_version: Some(config.api_version.as_str().to_owned()),
        command: Some(config.command.clone()),
        args: Some(args),
        env: Some(env.into_iter().map(variable).collect()),
        interactive_mode: Some(ExecInteractiveMode::Never),
        // kube-rs tells it the cluster, and what extension client.authentication.k8s.io/exec has.
        provide_cluster_info: config.provide_cluster_info,
        ..ExecConfig::default()
    })
}

fn extension<T: DeserializeOwned>(cluster: &Cluster, name: &str) -> Result<Option<T>, String> {
    let all = cluster.extensions.iter().flatten();
    let Some(found) = all.into_iter().find(|e| e.name == name) else {
        return Ok(None);
    };
    serde_json::from_value(found.extension.clone())
        .map(Some)
        .map_err(|_| format!("its extension {name} is not of the documented form"))
}

#[cfg(test)]
mod tests;
