//! What form of an answer a client asks for.

use http::HeaderMap;
use http::header::ACCEPT;

/// Forms in which objects are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Table,
    Metadata,
    /// Aggregated discovery.
    Discovery,
}

/// The first form in the client's list that this server has; none when there is none.
pub(crate) fn form(headers: &HeaderMap) -> Option<Form> {
    let Some(accept) = headers.get(ACCEPT) else {
        return Some(Form::Object);
    };
    let accept = accept.to_str().ok()?;
    accept.split(',').find_map(one)
}

fn one(range: &str) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    let known = matches!(
        parts.next()?,
        "application/json" | "*/*" | "application/*" | ""
    );
    let (mut kind, mut version, mut group) = ("", "", "");
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("v", value)) => version = value,
            Some(("g", value)) => group = value,
            _ => {}
        }
    }
    if !known {
        return None;
    }
    match (kind, group, version) {
        ("", _, _) => Some(Form::Object),
        ("Table", "meta.k8s.io", "v1") => Some(Form::Table),
        ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
            Some(Form::Metadata)
        }
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Some(Form::Discovery),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_form_wins() {
        for (accept, expected) in [
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                Some(Form::Table),
            ),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Some(Form::Object),
            ),
            (
                "application/json;as=Table;v=v9;g=meta.k8s.io, */*",
                Some(Form::Object),
            ),
            ("application/vnd.kubernetes.protobuf", None),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                Some(Form::Discovery),
            ),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(form(&headers), expected, "{accept}");
        }
    }
}
