//! What a cluster is reached with: the client of its kubeconfig Secret or of its ClusterProfile, and
//! whether these are still the ones that it was made of.

use std::time::Duration;

use hyperion_api::cluster::{ClusterProfileRef, HyperionCluster, HyperionClusterSpec};
use hyperion_api::{NAMESPACE, conditions};
use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};

use super::connect::{ANSWER, Trouble, credentials, plain};
use super::plugins::Plugins;
use super::profile;

/// Key of the Secret.
pub const KEY: &str = "kubeconfig";
/// Time for a credential plugin: those of the clouds ask a server of theirs.
const PLUGIN: Duration = Duration::from_secs(20);
/// Kubeconfigs are a few kilobytes.
const MOST: usize = 256 * 1024;
/// Group, version and plural of ClusterProfiles.
const PROFILES: (&str, &str, &str) = ("multicluster.x-k8s.io", "v1alpha1", "clusterprofiles");

/// A client, and what it was made of.
pub struct Link {
    /// The client.
    pub client: kube::Client,
    /// Another one where the client should be made anew; empty for the cluster that holds the object.
    pub source: String,
}

/// Where access to a cluster comes from.
#[derive(Debug, PartialEq, Eq)]
enum Origin<'a> {
    /// It is the cluster that holds the object.
    Home,
    /// The Secret of this name.
    Secret(&'a str),
    /// A ClusterProfile.
    Profile(&'a ClusterProfileRef),
}

fn origin(spec: &HyperionClusterSpec) -> Result<Origin<'_>, Trouble> {
    match (spec.kubeconfig_secret.as_deref(), &spec.cluster_profile) {
        (None, None) => Ok(Origin::Home),
        (Some(name), None) => Ok(Origin::Secret(name)),
        (None, Some(at)) => Ok(Origin::Profile(at)),
        // CRDs of before clusterProfile let it pass.
        (Some(_), Some(_)) => Err(Trouble::new(
            conditions::REASON_INVALID_SPEC,
            "kubeconfigSecret and clusterProfile can't both be set",
        )),
    }
}

/// Makes a client for a cluster; asks nothing of it.
///
/// # Errors
/// The Secret or the ClusterProfile, or what is in it.
pub async fn link(
    home: &kube::Client,
    plugins: &Plugins,
    cluster: &HyperionCluster,
) -> Result<Link, Trouble> {
    match origin(&cluster.spec)? {
        Origin::Home => Ok(Link {
            client: home.clone(),
            source: String::new(),
        }),
        Origin::Secret(name) => by_secret(home, name).await,
        Origin::Profile(at) => by_profile(home, plugins, at).await,
    }
}

/// What a client would be made of now; none where that can't be told.
pub async fn source_now(
    home: &kube::Client,
    plugins: &Plugins,
    cluster: &HyperionCluster,
) -> Option<String> {
    match origin(&cluster.spec) {
        Ok(Origin::Home) => Some(String::new()),
        Ok(Origin::Secret(name)) => {
            let secrets: Api<Secret> = Api::namespaced(home.clone(), NAMESPACE);
            let read = tokio::time::timeout(ANSWER, secrets.get_metadata_opt(name)).await;
            match read {
                Ok(Ok(Some(secret))) => secret.metadata.resource_version,
                // It was deleted, and with it our right to be there.
                Ok(Ok(None)) => Some("deleted".to_owned()),
                _ => None,
            }
        }
        Ok(Origin::Profile(at)) => {
            let profile = read_profile(home, at).await.ok()?;
            let access = profile.map(|p| profile::access(&p.data, plugins));
            Some(match access {
                None => "deleted".to_owned(),
                Some(Err(_)) => "unusable".to_owned(),
                Some(Ok(access)) => access.source,
            })
        }
        Err(_) => None,
    }
}

async fn by_secret(home: &kube::Client, name: &str) -> Result<Link, Trouble> {
    let secrets: Api<Secret> = Api::namespaced(home.clone(), NAMESPACE);
    let read = tokio::time::timeout(ANSWER, secrets.get_opt(name)).await;
    let missing = |what: &str| {
        Trouble::new(
            conditions::REASON_SECRET_MISSING,
            format!("Secret {NAMESPACE}/{name} {what}"),
        )
    };
    let secret = match read {
        Ok(Ok(Some(secret))) => secret,
        Ok(Ok(None)) => return Err(missing("does not exist")),
        Ok(Err(e)) => return Err(missing(&format!("can't be read: {}", plain(&e)))),
        Err(_) => return Err(missing("can't be read: no answer")),
    };
    let bytes = secret.data.as_ref().and_then(|d| d.get(KEY));
    let Some(bytes) = bytes else {
        return Err(missing(&format!("has no key {KEY}")));
    };
    let invalid = |what: String| {
        Trouble::new(
            conditions::REASON_KUBECONFIG_INVALID,
            format!("Secret {NAMESPACE}/{name}, key {KEY}: {what}"),
        )
    };
    if bytes.0.len() > MOST {
        return Err(invalid(format!("more than {} KiB", MOST / 1024)));
    }
    let text = std::str::from_utf8(&bytes.0).map_err(|_| invalid("is no text".to_owned()))?;
    // Errors of the parser repeat lines of the file, which has credentials in it.
    let read = Kubeconfig::from_yaml(text).map_err(|_| invalid("is no kubeconfig".to_owned()))?;
    Ok(Link {
        client: client(read, invalid).await?,
        source: secret.metadata.resource_version.unwrap_or_default(),
    })
}

async fn by_profile(
    home: &kube::Client,
    plugins: &Plugins,
    at: &ClusterProfileRef,
) -> Result<Link, Trouble> {
    let named = format!("ClusterProfile {}/{}", at.namespace, at.name);
    let unusable = |what: String| {
        Trouble::new(
            conditions::REASON_PROFILE_UNUSABLE,
            format!("{named}: {what}"),
        )
    };
    let missing = |what: &str| {
        Trouble::new(
            conditions::REASON_PROFILE_MISSING,
            format!("{named} {what}"),
        )
    };
    if plugins.providers.is_empty() {
        return Err(unusable(
            "the control plane has no credential plugins (--cluster-profile-providers)".to_owned(),
        ));
    }
    let profile = match read_profile(home, at).await {
        Ok(Some(profile)) => profile,
        Ok(None) if !are_served(home).await => {
            let (group, version, plural) = PROFILES;
            return Err(missing(&format!(
                "does not exist: the management cluster has no CRD {plural}.{group} with version {version}"
            )));
        }
        Ok(None) => return Err(missing("does not exist")),
        Err(why) => return Err(missing(&format!("can't be read: {why}"))),
    };
    let access = profile::access(&profile.data, plugins).map_err(unusable)?;
    Ok(Link {
        client: client(access.kubeconfig, unusable).await?,
        source: access.source,
    })
}

/// None where there is no such profile, or no such kind.
async fn read_profile(
    home: &kube::Client,
    at: &ClusterProfileRef,
) -> Result<Option<DynamicObject>, String> {
    let (group, version, plural) = PROFILES;
    let kind = GroupVersionKind::gvk(group, version, "ClusterProfile");
    let kind = ApiResource::from_gvk_with_plural(&kind, plural);
    let api: Api<DynamicObject> = Api::namespaced_with(home.clone(), &at.namespace, &kind);
    match tokio::time::timeout(ANSWER, api.get(&at.name)).await {
        Ok(Ok(profile)) => Ok(Some(profile)),
        Ok(Err(kube::Error::Api(e))) if e.code == 404 => Ok(None),
        Ok(Err(e)) => Err(plain(&e)),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// True where there are ClusterProfiles, and where that can't be told.
async fn are_served(home: &kube::Client) -> bool {
    let (group, version, plural) = PROFILES;
    let group_version = format!("{group}/{version}");
    let asked = home.list_api_group_resources(&group_version);
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(Ok(list)) => list.resources.iter().any(|r| r.name == plural),
        Ok(Err(kube::Error::Api(e))) => e.code != 404,
        _ => true,
    }
}

async fn client(
    read: Kubeconfig,
    invalid: impl Fn(String) -> Trouble,
) -> Result<kube::Client, Trouble> {
    let mut config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
        .await
        .map_err(|e| invalid(e.to_string()))?;
    config.connect_timeout = Some(ANSWER);
    // Watches end by themselves before; nothing else takes this long.
    config.read_timeout = Some(Duration::from_secs(330));
    let exec = config.auth_info.exec.as_ref();
    let program = exec.and_then(|e| e.command.clone());
    // A credential plugin is run here, and not all answer at once.
    let made = tokio::task::spawn_blocking(move || kube::Client::try_from(config));
    match tokio::time::timeout(PLUGIN, made).await {
        Ok(Ok(Ok(client))) => Ok(client),
        Ok(Ok(Err(kube::Error::Auth(e)))) => Err(credentials(&e, program.as_deref())),
        Ok(Ok(Err(e))) => Err(invalid(plain(&e))),
        Ok(Err(_)) => Err(invalid("can't be used".to_owned())),
        Err(_) => {
            let message = format!("the credential plugin did not answer within {PLUGIN:?}");
            Err(Trouble::new(conditions::REASON_CREDENTIALS_FAILED, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_cluster_has_one_way_in() {
        let spec = |more: Value| -> HyperionClusterSpec {
            let mut spec = json!({ "provider": "aws", "region": "us-east-1" });
            spec.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            serde_json::from_value(spec).unwrap()
        };
        let at = json!({ "namespace": "fleet", "name": "east" });
        assert_eq!(origin(&spec(json!({}))), Ok(Origin::Home));
        let secret = spec(json!({ "kubeconfigSecret": "east" }));
        assert_eq!(origin(&secret), Ok(Origin::Secret("east")));
        let profile = spec(json!({ "clusterProfile": at }));
        assert!(matches!(origin(&profile), Ok(Origin::Profile(p)) if p.name == "east"));
        let both = spec(json!({ "clusterProfile": at, "kubeconfigSecret": "east" }));
        let refused = origin(&both).unwrap_err();
        assert_eq!(refused.reason, "InvalidSpec");
        assert_eq!(
            refused.message,
            "kubeconfigSecret and clusterProfile can't both be set"
        );
    }
}
