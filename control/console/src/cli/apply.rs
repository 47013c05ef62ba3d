//! `apply -f`: server-side apply of YAML or JSON documents. Every file is read and checked before
//! the first object is sent; then each object gets its own answer.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{GroupVersionKind, TypeMeta};
use kube::discovery::{ApiCapabilities, ApiResource, Scope, pinned_kind};
use serde::Deserialize as _;
use serde_json::Value;

use super::output::{Out, complain};
use crate::connect::Connection;
use crate::error::CliError;
use crate::text::clean;

/// Field manager of everything that people apply with this program.
const MANAGER: &str = "hyperion";
/// Largest file.
const MAX_BYTES: u64 = 16 << 20;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// File with one or more YAML documents; - is standard input
    #[arg(short, long = "filename", value_name = "FILE", required = true)]
    pub filename: Vec<PathBuf>,
    /// Take fields over that another manager set
    #[arg(long)]
    pub force_conflicts: bool,
    /// Let the server check everything, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// One object to apply, and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// `FILE, document N`.
    pub origin: String,
    /// Its `apiVersion` and `kind`.
    pub kind: GroupVersionKind,
    /// Name.
    pub name: String,
    /// Namespace, where the document names one.
    pub namespace: Option<String>,
    /// All of it.
    pub object: Value,
}

/// Reads all files.
///
/// # Errors
/// The first thing that is wrong, with file, document and field.
pub fn read(files: &[PathBuf]) -> Result<Vec<Document>, CliError> {
    let mut all = Vec::new();
    for path in files {
        let (name, text) = read_text(path)?;
        all.extend(parse(&name, &text)?);
    }
    if all.is_empty() {
        return Err(CliError::new("nothing to apply: the files hold no objects"));
    }
    Ok(all)
}

fn read_text(path: &Path) -> Result<(String, String), CliError> {
    let mut bytes = Vec::new();
    let (name, result) = if path.as_os_str() == "-" {
        let stdin = std::io::stdin().lock();
        (
            "standard input".to_owned(),
            stdin.take(MAX_BYTES + 1).read_to_end(&mut bytes),
        )
    } else {
        let read = std::fs::File::open(path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        (path.display().to_string(), read)
    };
    result.map_err(|e| CliError::new(format!("{name}: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(CliError::new(format!(
            "{name}: larger than {} MiB",
            MAX_BYTES >> 20
        )));
    }
    let text = String::from_utf8(bytes)
        .map_err(|e| CliError::new(format!("{name}: not UTF-8: {}", e.utf8_error())))?;
    Ok((name, text))
}

/// The documents of a file; a `List` is the objects in it.
///
/// # Errors
/// As for [`read`].
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, CliError> {
    let mut all = Vec::new();
    for (i, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let origin = format!("{file}, document {}", i + 1);
        let value = Value::deserialize(document)
            .map_err(|e| CliError::new(format!("{origin}: {}", clean(&e.to_string()))))?;
        if value.is_null() {
            continue;
        }
        if value.get("kind").and_then(Value::as_str) == Some("List") {
            let items = value.get("items").and_then(Value::as_array);
            for (n, item) in items.into_iter().flatten().enumerate() {
                all.push(document_of(format!("{origin}, items[{n}]"), item.clone())?);
            }
        } else {
            all.push(document_of(origin, value)?);
        }
    }
    Ok(all)
}

fn document_of(origin: String, object: Value) -> Result<Document, CliError> {
    if !object.is_object() {
        return Err(CliError::new(format!("{origin}: not an object")));
    }
    let field = |pointer: &str| -> Result<Option<String>, CliError> {
        let name = pointer[1..].replace('/', ".");
        match object.pointer(pointer) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
            Some(_) => Err(CliError::new(format!(
                "{origin}: field {name}: must be a string that is not empty"
            ))),
        }
    };
    let needed = |pointer: &str| {
        field(pointer)?.ok_or_else(|| {
            let name = pointer[1..].replace('/', ".");
            CliError::new(format!("{origin}: field {name} is missing"))
        })
    };
    let (api_version, kind, name) = (
        needed("/apiVersion")?,
        needed("/kind")?,
        needed("/metadata/name")?,
    );
    if !path_safe(&name) {
        return Err(CliError::new(format!(
            "{origin}: field metadata.name: {:?} is not a name",
            clean(&name)
        )));
    }
    let namespace = field("/metadata/namespace")?;
    if !api_version.split('/').all(path_safe) || api_version.matches('/').count() > 1 {
        return Err(CliError::new(format!(
            "{origin}: field apiVersion: {:?} is not VERSION or GROUP/VERSION",
            clean(&api_version)
        )));
    }
    let kind = GroupVersionKind::try_from(TypeMeta { api_version, kind })
        .map_err(|e| CliError::new(format!("{origin}: field apiVersion: {e}")))?;
    Ok(Document {
        kind,
        name,
        namespace,
        object,
        origin,
    })
}

/// The name becomes part of a URL.
fn path_safe(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && !name.contains(['/', '%', '?', '#', ' '])
        && !name.contains(char::is_control)
}

/// Applies the documents in order. `explicit` is the value of `-n`.
///
/// # Errors
/// Some object was refused; the others are applied, and each refusal is printed.
pub async fn run(
    connection: &Connection,
    args: &Args,
    documents: Vec<Document>,
    explicit: Option<&str>,
    out: &Out,
) -> Result<(), CliError> {
    let total = documents.len();
    let mut failures = Vec::new();
    for document in documents {
        match apply(connection, args, &document, explicit).await {
            Ok(line) => out.line(&line)?,
            Err(error) => failures.push(error),
        }
    }
    match (failures.pop(), failures.len()) {
        (None, _) => Ok(()),
        (Some(only), 0) => Err(only),
        (Some(last), others) => {
            failures.iter().chain([&last]).for_each(complain);
            Err(CliError::new(format!(
                "{} of {total} objects were refused",
                others + 1
            )))
        }
    }
}

async fn apply(
    connection: &Connection,
    args: &Args,
    document: &Document,
    explicit: Option<&str>,
) -> Result<String, CliError> {
    let label = format!(
        "{}: {} {}",
        document.origin,
        clean(&document.kind.kind),
        clean(&document.name)
    );
    let (resource, capabilities) = pinned_kind(&connection.client, &document.kind)
        .await
        .map_err(|e| unknown_kind(&label, &document.kind, &e))?;
    let api = api_for(connection, document, explicit, &resource, &capabilities)
        .map_err(|e| CliError::usage(format!("{label}: {e}")))?;
    let before = api
        .get_opt(&document.name)
        .await
        .map_err(|e| refused(&label, &e))?
        .and_then(|o| o.metadata.resource_version);
    let mut params = PatchParams::apply(MANAGER).validation_strict();
    params.force = args.force_conflicts;
    params.dry_run = args.dry_run;
    let after = api
        .patch(&document.name, &params, &Patch::Apply(&document.object))
        .await
        .map_err(|e| refused(&label, &e))?;
    let what = match before {
        None => "created",
        Some(version) if after.metadata.resource_version.as_deref() == Some(&version) => {
            "unchanged"
        }
        Some(_) => "configured",
    };
    let dry = if args.dry_run { " (dry run)" } else { "" };
    Ok(format!(
        "{}/{} {what}{dry}",
        resource.kind.to_lowercase(),
        document.name
    ))
}

fn api_for(
    connection: &Connection,
    document: &Document,
    explicit: Option<&str>,
    resource: &ApiResource,
    capabilities: &ApiCapabilities,
) -> Result<Api<DynamicObject>, String> {
    let client = connection.client.clone();
    if capabilities.scope == Scope::Cluster {
        return Ok(Api::all_with(client, resource));
    }
    let namespace = match (document.namespace.as_deref(), explicit) {
        (Some(own), Some(asked)) if own != asked => {
            return Err(format!(
                "field metadata.namespace says {own:?}, but -n says {asked:?}"
            ));
        }
        (Some(own), _) => own,
        (None, _) => &connection.namespace,
    };
    if !path_safe(namespace) {
        return Err(format!(
            "field metadata.namespace: {:?} is not a name",
            clean(namespace)
        ));
    }
    Ok(Api::namespaced_with(client, namespace, resource))
}

fn unknown_kind(label: &str, kind: &GroupVersionKind, error: &kube::Error) -> CliError {
    let absent = match error {
        kube::Error::Discovery(_) => true,
        kube::Error::Api(status) => status.code == 404,
        _ => false,
    };
    if !absent {
        return refused(label, error);
    }
    let version = match kind.group.as_str() {
        "" => kind.version.clone(),
        group => format!("{group}/{}", kind.version),
    };
    let message = format!(
        "{label}: the cluster knows no kind {:?} in {:?}",
        clean(&kind.kind),
        clean(&version)
    );
    let error = CliError::new(message);
    if kind.group == "hyperion.io" {
        error.hint("start hyperion-control against this cluster once: it installs the CRDs")
    } else {
        error.hint("check the fields apiVersion and kind")
    }
}

/// Says which fields are wrong, where the server does.
fn refused(label: &str, error: &kube::Error) -> CliError {
    let kube::Error::Api(status) = error else {
        return CliError::api(&format!("apply {label}"), error);
    };
    let causes = status.details.as_ref().map(|d| &d.causes);
    let fields: Vec<String> = causes
        .into_iter()
        .flatten()
        .filter(|c| !c.field.is_empty() || !c.message.is_empty())
        .map(|c| match c.field.as_str() {
            "" => clean(&c.message).into_owned(),
            field => format!("field {}: {}", clean(field), clean(&c.message)),
        })
        .collect();
    let error = if let Some((_, fields)) = status.message.split_once("strict decoding error: ") {
        CliError::new(format!("{label}: {}", clean(fields)))
    } else if fields.is_empty() {
        CliError::api(&format!("apply {label}"), error)
    } else {
        CliError::new(format!("{label}: {}", fields.join("; ")))
    };
    if status.code == 409 {
        return error.or_hint("--force-conflicts takes the fields over");
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: prod}
---
---
apiVersion: hyperion.io/v1alpha1
kind: HyperionWorkload
metadata: {name: llm, namespace: prod}
spec: {}
";

    #[test]
    fn documents_are_read_in_order_and_empty_ones_skipped() {
        let found = parse("f.yaml", GOOD).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].name, "prod");
        assert_eq!(found[1].origin, "f.yaml, document 3");
        assert_eq!(found[1].kind.group, "hyperion.io");
        assert_eq!(found[1].namespace.as_deref(), Some("prod"));
    }

    #[test]
    fn json_and_lists_are_welcome() {
        let list = r#"{"kind":"List","apiVersion":"v1","items":[
            {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"}}]}"#;
        assert_eq!(parse("l.json", list).unwrap()[0].name, "a");
    }

    #[test]
    fn every_error_names_file_document_and_field() {
        let first = "apiVersion: v1\nkind: X\nmetadata: {name: a}\n---\n";
        for (second, expected) in [
            (
                "kind: X\nmetadata: {name: a}",
                "field apiVersion is missing",
            ),
            (
                "apiVersion: v1\nmetadata: {name: a}",
                "field kind is missing",
            ),
            ("apiVersion: v1\nkind: X", "field metadata.name is missing"),
            (
                "apiVersion: v1\nkind: 3\nmetadata: {name: a}",
                "field kind: must be",
            ),
            (
                "apiVersion: a/b/c\nkind: X\nmetadata: {name: a}",
                "field apiVersion: ",
            ),
            (
                "apiVersion: v1\nkind: X\nmetadata: {name: ../a}",
                "field metadata.name: ",
            ),
            ("- 1\n- 2", "not an object"),
            ("a: [", "line"),
            ("a: &x [*x]", "document 2"),
        ] {
            let error = parse("f.yaml", &format!("{first}{second}")).unwrap_err();
            let said = &error.message;
            assert!(said.starts_with("f.yaml, document 2: "), "{said}");
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn refusals_name_the_fields_that_the_server_named() {
        let mut status = kube::core::Status::failure("invalid", "Invalid").with_code(422);
        status.details = Some(kube::core::response::StatusDetails {
            causes: vec![kube::core::response::StatusCause {
                field: "spec.policy.goal".to_owned(),
                message: "Unsupported value: \"fast\"".to_owned(),
                reason: String::new(),
            }],
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            retry_after_seconds: 0,
        });
        let error = refused(
            "f.yaml, document 1: HyperionWorkload llm",
            &kube::Error::Api(status.boxed()),
        );
        assert_eq!(
            error.message,
            "f.yaml, document 1: HyperionWorkload llm: field spec.policy.goal: Unsupported value: \"fast\""
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let error = read_text(Path::new("/nowhere/x.yaml")).unwrap_err();
        assert!(
            error.message.starts_with("/nowhere/x.yaml: "),
            "{}",
            error.message
        );
    }
}
