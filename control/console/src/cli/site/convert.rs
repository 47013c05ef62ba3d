//! From a document to the records that a site keeps: checked with the CRD's rules and the code of
//! the control plane, so that what a site takes, the control plane takes over.

use std::sync::LazyLock;

use hyperion_api::workload::{HyperionWorkload, HyperionWorkloadSpec};
use hyperion_api::{Invalid, agent_pod, intent, request};
use hyperion_wire::agent_v1::{ReplicaKey, ReplicaRecord};
use hyperion_wire::convert;
use kube::Resource as _;
use serde_json::{Value, json};

use super::schema;
use crate::cli::apply::Document;
use crate::error::CliError;
use crate::text::clean;

/// Most replicas of one workload at one site; the agent refuses more.
const MAX_REPLICAS: u32 = 1000;

/// A workload that can be handed to a site.
#[derive(Debug, Clone)]
pub struct Applied {
    /// `FILE, document N`.
    pub origin: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `service` or `job`.
    pub workload_type: String,
    /// One a replica, without uid.
    records: Vec<ReplicaRecord>,
}

impl Applied {
    /// Number of replicas.
    #[must_use]
    pub fn replicas(&self) -> usize {
        self.records.len()
    }

    /// The records of the workload with this uid.
    #[must_use]
    pub fn records(&self, uid: &str) -> Vec<ReplicaRecord> {
        let mut records = self.records.clone();
        for key in records.iter_mut().filter_map(|r| r.key.as_mut()) {
            uid.clone_into(&mut key.workload_uid);
        }
        records
    }
}

/// The schema of a workload as an API server would check it.
static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let crd = hyperion_api::crds().into_iter().next();
    serde_json::to_value(crd)
        .ok()
        .and_then(|mut crd| {
            let schema = crd.pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec");
            schema.map(Value::take)
        })
        .unwrap_or_default()
});

/// Reads a document. `namespace` is the value of `-n`.
///
/// # Errors
/// Names file, document and field.
pub fn convert(document: &Document, namespace: Option<&str>) -> Result<Applied, CliError> {
    let label = format!(
        "{}: {} {}",
        document.origin,
        clean(&document.kind.kind),
        clean(&document.name)
    );
    let kind = HyperionWorkload::kind(&());
    let version = HyperionWorkload::api_version(&());
    if document.kind.api_version() != version || document.kind.kind != kind {
        let message = format!("{label}: a site takes only {kind} of {version}");
        return Err(CliError::new(message));
    }
    if let (Some(own), Some(asked)) = (document.namespace.as_deref(), namespace)
        && own != asked
    {
        let message =
            format!("{label}: field metadata.namespace says {own:?}, but -n says {asked:?}");
        return Err(CliError::usage(message));
    }
    let namespace = document.namespace.as_deref().or(namespace);
    read(document, namespace.unwrap_or("default"))
        .map_err(|e| CliError::new(format!("{label}: field {}", clean(&e.to_string()))))
}

fn read(document: &Document, namespace: &str) -> Result<Applied, Invalid> {
    let mut object = document.object.clone();
    schema::drop_nulls(&mut object);
    for name in object.as_object().into_iter().flat_map(|o| o.keys()) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&name.as_str()) {
            return Err(Invalid::new(name, "unknown field"));
        }
    }
    let spec = object
        .get("spec")
        .ok_or_else(|| Invalid::new("spec", "missing"))?;
    schema::check(&SCHEMA, spec, "spec")?;
    let typed: HyperionWorkloadSpec =
        serde_json::from_value(spec.clone()).map_err(|e| Invalid::new("spec", e.to_string()))?;
    let mut key = ReplicaKey {
        namespace: namespace.to_owned(),
        workload: document.name.clone(),
        workload_uid: "site".to_owned(),
        index: 0,
    };
    convert::replica_key("metadata", Some(&key)).map_err(|e| {
        let field = e.field.replace("metadata.workload", "metadata.name");
        Invalid::new(field, e.problem)
    })?;
    key.workload_uid.clear();
    let mut intent = intent::intent(&typed)?;
    if let Some(field) = intent.cluster_only_fields.first() {
        let problem = "only a Kubernetes cluster can run this, and a site has none";
        return Err(Invalid::new(format!("spec.template.{field}"), problem));
    }
    let pod = agent_pod::pod_spec(&typed, &[])?;
    let replicas = match request::replicas(&typed)? {
        0 => {
            let problem = "0: delete the workload instead (`hyperion site delete`)";
            return Err(Invalid::new("spec.replicas", problem));
        }
        n if n > MAX_REPLICAS => {
            let problem = format!("{n}: a site takes at most {MAX_REPLICAS}");
            return Err(Invalid::new("spec.replicas", problem));
        }
        n => n,
    };
    intent.manifest = manifest(document, namespace, &object);
    // The agent's own check, bounds on sizes included.
    convert::intent(&intent).map_err(wire_problem)?;
    let records = (0..replicas)
        .map(|index| ReplicaRecord {
            key: Some(ReplicaKey {
                index,
                ..key.clone()
            }),
            pod: Some(pod.clone()),
            intent: Some(intent.clone()),
            ..ReplicaRecord::default()
        })
        .collect();
    Ok(Applied {
        origin: document.origin.clone(),
        namespace: namespace.to_owned(),
        name: document.name.clone(),
        workload_type: intent.workload_type.clone(),
        records,
    })
}

/// The object as the control plane is to make it when it is back.
fn manifest(document: &Document, namespace: &str, object: &Value) -> String {
    let mut metadata = json!({ "name": document.name, "namespace": namespace });
    for field in ["labels", "annotations"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let version = HyperionWorkload::api_version(&());
    let kind = HyperionWorkload::kind(&());
    json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": object["spec"] })
        .to_string()
}

/// A field of the wire as the user wrote it, as near as that goes.
fn wire_problem(e: convert::Invalid) -> Invalid {
    match e.field.as_str() {
        "intent.manifest" => Invalid::new("spec", format!("too large: {}", e.problem)),
        _ => Invalid::new(e.field, e.problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::apply::parse;
    use hyperion_wire::agent_v1::RestartPolicy;

    const GOOD: &str = "\
apiVersion: hyperion.io/v1alpha1
kind: HyperionWorkload
metadata:
  name: till
  labels: {shop: a}
  uid: ignored
spec:
  type: service
  replicas: 2
  template:
    spec:
      priority: 5
      containers:
      - name: main
        image: localhost/till:1
        resources: {limits: {cpu: 500m, memory: 64Mi}}
        ports: [{containerPort: 8080, name: web}]
        readinessProbe: {httpGet: {path: /, port: web}}
  policy:
    goal: latency
    exclusive: true
    disconnect: {replaceAfter: 10s, stopAfter: null}
";

    fn one(yaml: &str, namespace: Option<&str>) -> Result<Applied, CliError> {
        let documents = parse("w.yaml", yaml).unwrap();
        convert(&documents[0], namespace)
    }

    #[test]
    fn a_document_becomes_one_record_a_replica() {
        let applied = one(GOOD, Some("shop")).unwrap();
        assert_eq!(
            (applied.namespace.as_str(), applied.replicas()),
            ("shop", 2)
        );
        let records = applied.records("site-1");
        let key = records[1].key.as_ref().unwrap();
        assert_eq!((key.workload_uid.as_str(), key.index), ("site-1", 1));
        let pod = records[0].pod.as_ref().unwrap();
        assert_eq!(pod.restart_policy(), RestartPolicy::Always);
        assert_eq!(pod.containers[0].memory_limit_bytes, 64 << 20);
        let intent = records[0].intent.as_ref().unwrap();
        assert_eq!((intent.priority, intent.cpu_millis), (5, 500));
        assert!(intent.exclusive);
        assert_eq!((intent.replace_after_ms, intent.stop_after_ms), (10_000, 0));
        let manifest: HyperionWorkload = serde_json::from_str(&intent.manifest).unwrap();
        assert_eq!(manifest.metadata.namespace.as_deref(), Some("shop"));
        assert_eq!(manifest.metadata.labels.unwrap()["shop"], "a");
        assert_eq!(manifest.metadata.uid, None, "the site draws its own");
        assert_eq!(manifest.spec.replicas, 2);
    }

    #[test]
    fn every_refusal_names_file_document_and_field() {
        for (from, to, expected) in [
            (
                "kind: HyperionWorkload",
                "kind: Deployment",
                "takes only HyperionWorkload",
            ),
            (
                "hyperion.io/v1alpha1",
                "apps/v1",
                "takes only HyperionWorkload",
            ),
            ("name: till", "name: Till_1", "field metadata.name: "),
            (
                "  labels:",
                "  namespace: Shop\n  labels:",
                "field metadata.namespace: ",
            ),
            (
                "spec:\n  type",
                "specs: 1\nspec:\n  type",
                "field specs: unknown field",
            ),
            (
                "replicas: 2",
                "replicas: 0",
                "field spec.replicas: 0: delete",
            ),
            ("replicas: 2", "replicas: 1001", "field spec.replicas: 1001"),
            ("replicas: 2", "replicas: -1", "field spec.replicas: "),
            (
                "replicas: 2",
                "replicas: many",
                "field spec.replicas: \"many\"",
            ),
            (
                "replicas: 2",
                "replcas: 2",
                "field spec.replcas: unknown field",
            ),
            ("type: service", "type: daemon", "field spec.type: "),
            ("goal: latency", "goal: fast", "field spec.policy.goal: "),
            (
                "replaceAfter: 10s",
                "replaceAfter: soon",
                "field spec.policy.disconnect.replaceAfter: ",
            ),
            (
                "cpu: 500m",
                "cpu: -1",
                "field spec.template.spec.containers[0].resources.limits.cpu: ",
            ),
            (
                "cpu: 500m",
                "amd.com/gpu: 1",
                "resources.limits.amd.com/gpu: unknown resource",
            ),
            (
                "name: main",
                "name: ../x",
                "field spec.template.spec.containers[0].name: ",
            ),
            (
                "        image: localhost/till:1\n",
                "",
                "field spec.template.spec.containers[0].image: missing",
            ),
            (
                "port: web",
                "port: nope",
                "field spec.template.spec.containers[0].readinessProbe.httpGet.port: ",
            ),
            (
                "priority: 5",
                "volumes: [{name: v}]",
                "field spec.template.spec.volumes: only a Kubernetes cluster",
            ),
            (
                "priority: 5",
                "restartPolicy: Never",
                "field spec.template.spec.restartPolicy: ",
            ),
            (
                "exclusive: true",
                "clients: [{weight: 1}]",
                "field spec.policy.clients[0]: exactly one",
            ),
        ] {
            assert!(GOOD.contains(from), "{from}");
            let yaml = GOOD.replacen(from, to, 1);
            let said = one(&yaml, None).unwrap_err().message;
            assert!(said.starts_with("w.yaml, document 1: "), "{said}");
            assert!(said.contains(expected), "{expected} is not in: {said}");
        }
    }

    #[test]
    fn two_namespaces_are_one_too_many() {
        let yaml = GOOD.replacen("  labels:", "  namespace: a\n  labels:", 1);
        assert_eq!(one(&yaml, Some("b")).unwrap_err().code, 2);
        assert_eq!(one(&yaml, Some("a")).unwrap().namespace, "a");
        assert_eq!(one(GOOD, None).unwrap().namespace, "default");
    }

    #[test]
    fn a_workload_that_fills_a_disk_is_refused() {
        let long = "x".repeat(300 * 1024);
        let yaml = GOOD.replacen("shop: a", &format!("shop: {long}"), 1);
        let said = one(&yaml, None).unwrap_err().message;
        assert!(said.contains("too large") && said.len() < 300, "{said}");
    }
}
