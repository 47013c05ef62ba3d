//! Tables: what `kubectl get` prints.

mod columns;
mod jsonpath;
mod since;

use serde_json::{Value, json};

pub(crate) use columns::{Column, core_columns, custom_columns};

use crate::resource::Resource;

/// What a row carries of its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    /// From the query's `includeObject`.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("None") => Self::None,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

/// A table of objects in their served form. `heads` says whether to define the columns: in a
/// watch only the first table does.
pub(crate) fn table(
    resource: &Resource,
    objects: &[Value],
    include: Include,
    list_meta: Value,
    heads: bool,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|o| row(resource, o, include)).collect();
    let mut table = json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": list_meta,
        "columnDefinitions": [],
        "rows": rows,
    });
    if heads {
        table["columnDefinitions"] = resource.columns.iter().map(Column::definition).collect();
    }
    table
}

fn row(resource: &Resource, object: &Value, include: Include) -> Value {
    let cells: Vec<Value> = resource.columns.iter().map(|c| c.cell(object)).collect();
    let shown = match include {
        Include::None => return json!({ "cells": cells }),
        Include::Object => object.clone(),
        Include::Metadata => json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        }),
    };
    json!({ "cells": cells, "object": shown })
}
