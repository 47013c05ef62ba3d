//! Rights one by one: what may be done to which resource, of all or of one name.

use std::fmt;

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::rbac::v1::{ClusterRole, Role};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::agent::eventually;
use super::server::{SYSTEM, Server};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Right {
    /// In the namespace alone, by the Role.
    namespaced: bool,
    verb: String,
    group: String,
    /// `pods`, or `pods/status`.
    resource: String,
    /// Of this object alone; empty for all.
    name: String,
}

/// `patch hyperion.io/hyperionnodes/status`, `get coordination.k8s.io/leases hyperion-control`.
impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verb,
            group,
            resource,
            name,
            ..
        } = self;
        let group = if group.is_empty() { "core" } else { group };
        write!(f, "{verb} {group}/{resource}")?;
        if name.is_empty() {
            Ok(())
        } else {
            write!(f, " {name}")
        }
    }
}

impl Right {
    /// What a request needs, by the audit's words of it.
    pub fn asked(verb: &str, object: &Value) -> Self {
        let text = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
        let resource = match text("subresource") {
            sub if sub.is_empty() => text("resource"),
            sub => format!("{}/{sub}", text("resource")),
        };
        Self {
            namespaced: false,
            verb: verb.to_owned(),
            group: text("apiGroup"),
            resource,
            name: text("name"),
        }
    }

    /// Does a request that is refused show that this right is missing?
    pub fn is_missed_by(&self, refused: &str) -> bool {
        let mut all = self.clone();
        all.name.clear();
        let (all, one) = (all.to_string(), self.to_string());
        refused == one || (self.name.is_empty() && refused.starts_with(&format!("{all} ")))
    }

    /// How the control plane says of a cluster that it misses this right, if it looks for it.
    pub fn missed_by_name(&self) -> String {
        format!(
            "we may not {} {} in all namespaces",
            self.verb, self.resource
        )
    }

    fn rule(&self) -> Value {
        let mut rule = json!({
            "apiGroups": [self.group], "resources": [self.resource], "verbs": [self.verb],
        });
        if !self.name.is_empty() {
            rule["resourceNames"] = json!([self.name]);
        }
        rule
    }

    async fn allowed(&self, admin: &kube::Client, account: &str) -> bool {
        let (resource, subresource) = self
            .resource
            .split_once('/')
            .unwrap_or((&self.resource, ""));
        let namespace = if self.namespaced { SYSTEM } else { "" };
        let review = json!({ "spec": {
            "user": format!("system:serviceaccount:{SYSTEM}:{account}"),
            "resourceAttributes": {
                "verb": self.verb, "group": self.group, "resource": resource,
                "subresource": subresource, "name": self.name, "namespace": namespace,
            },
        }});
        let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
        let api: Api<SubjectAccessReview> = Api::all(admin.clone());
        let answer = api.create(&PostParams::default(), &review).await.unwrap();
        answer.status.unwrap().allowed
    }
}

/// All that the manifest gives to the control plane.
pub fn of_manifest(manifest: &[Value]) -> Vec<Right> {
    let words = |value: &Value| -> Vec<String> {
        let list = value.as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|w| w.as_str().unwrap().to_owned())
            .collect()
    };
    let mut rights = Vec::new();
    for object in manifest {
        let namespaced = match object["kind"].as_str() {
            Some("ClusterRole") => false,
            Some("Role") => true,
            _ => continue,
        };
        for rule in object["rules"].as_array().unwrap() {
            let mut names = words(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for verb in words(&rule["verbs"]) {
                        rights.extend(names.iter().map(|name| Right {
                            namespaced,
                            verb: verb.clone(),
                            group: group.clone(),
                            resource: resource.clone(),
                            name: name.clone(),
                        }));
                    }
                }
            }
        }
    }
    rights
}

/// Gives the server's account all rights but one, and waits until the server goes by that.
pub async fn give(server: &Server, all: &[Right], but: Option<&Right>) {
    let (admin, account) = (&server.admin().await, server.account);
    let rules = |namespaced: bool| -> Value {
        let given = all
            .iter()
            .filter(|r| r.namespaced == namespaced && Some(*r) != but);
        json!({ "rules": given.map(Right::rule).collect::<Vec<_>>() })
    };
    let params = PatchParams::default();
    let cluster: Api<ClusterRole> = Api::all(admin.clone());
    let patch = Patch::Merge(rules(false));
    cluster.patch(account, &params, &patch).await.unwrap();
    if all.iter().any(|right| right.namespaced) {
        let namespaced: Api<Role> = Api::namespaced(admin.clone(), SYSTEM);
        let patch = Patch::Merge(rules(true));
        namespaced.patch(account, &params, &patch).await.unwrap();
    }
    for right in all {
        eventually("rights are in force", || async move {
            if right.allowed(admin, account).await == (Some(right) != but) {
                Ok(())
            } else {
                Err(right.to_string())
            }
        })
        .await;
    }
}
