//! What a URL names.

/// A resource path: `/api/v1/namespaces/default/pods/x/status`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub plural: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows the subresource, as written: the path of a proxied request.
    pub rest: String,
}

/// A path that the server knows the form of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// `/api` or `/apis`.
    Groups {
        core: bool,
    },
    /// `/apis/g`.
    Group(String),
    /// `/api/v1` or `/apis/g/v`.
    Version(String, String),
    Resource(ResourcePath),
    /// Anything else, without the slashes around it.
    Other(String),
}

/// Parses a path; none when it is no path of this API.
pub(crate) fn parse(path: &str) -> Option<Target> {
    let trimmed = path.trim_matches('/');
    let (first, rest) = trimmed.split_once('/').unwrap_or((trimmed, ""));
    match (first, rest) {
        ("api", "") => Some(Target::Groups { core: true }),
        ("apis", "") => Some(Target::Groups { core: false }),
        ("api", rest) => {
            let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
            versioned("", version, rest)
        }
        ("apis", rest) => match rest.split_once('/') {
            None => Some(Target::Group(decode(rest)?)),
            Some((group, rest)) => {
                let (version, rest) = rest.split_once('/').unwrap_or((rest, ""));
                versioned(&decode(group)?, version, rest)
            }
        },
        _ => Some(Target::Other(trimmed.to_owned())),
    }
}

fn versioned(group: &str, version: &str, rest: &str) -> Option<Target> {
    let version = decode(version)?;
    if rest.is_empty() {
        return Some(Target::Version(group.to_owned(), version));
    }
    let mut parts: Vec<&str> = rest.splitn(3, '/').collect();
    let mut namespace = None;
    if let ["namespaces", ns, tail] = parts[..]
        && !matches!(tail, "status" | "finalize")
    {
        namespace = Some(decode(ns)?);
        parts = tail.splitn(3, '/').collect();
    }
    let mut parts = parts.into_iter();
    let plural = decode(parts.next()?)?;
    let name = parts.next().map(decode);
    let (subresource, rest) = match parts.next() {
        None => (None, ""),
        Some(tail) => {
            let (sub, rest) = tail.split_once('/').unwrap_or((tail, ""));
            (Some(decode(sub)?), rest)
        }
    };
    let name = match name {
        Some(name) => Some(name.filter(|n| !n.contains('/') && !n.is_empty())?),
        None => None,
    };
    if plural.is_empty() || namespace.as_ref().is_some_and(|n| n.contains('/')) {
        return None;
    }
    Some(Target::Resource(ResourcePath {
        group: group.to_owned(),
        version,
        namespace,
        plural,
        name,
        subresource,
        rest: rest.to_owned(),
    }))
}

/// Undoes percent encoding; none when that is malformed.
pub(crate) fn decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digit = |b: Option<u8>| char::from(b?).to_digit(16);
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn resource(path: &str) -> ResourcePath {
        match parse(path) {
            Some(Target::Resource(r)) => r,
            other => panic!("{path}: {other:?}"),
        }
    }

    #[test]
    fn paths_name_what_they_name() {
        let r = resource("/api/v1/namespaces/default/pods/x/status");
        assert_eq!(r.namespace.as_deref(), Some("default"));
        assert_eq!((r.plural.as_str(), r.name.as_deref()), ("pods", Some("x")));
        assert_eq!(r.subresource.as_deref(), Some("status"));

        let r = resource("/api/v1/namespaces/default");
        assert_eq!(
            (r.plural.as_str(), r.name.as_deref()),
            ("namespaces", Some("default"))
        );
        let r = resource("/api/v1/namespaces/default/finalize");
        assert_eq!(r.subresource.as_deref(), Some("finalize"));
        let r = resource("/apis/example.com/v1/things/a%3Ab");
        assert_eq!(
            (r.group.as_str(), r.name.as_deref()),
            ("example.com", Some("a:b"))
        );
        let r = resource("/api/v1/namespaces/n/services/s:http/proxy/a/b%20c");
        assert_eq!(r.subresource.as_deref(), Some("proxy"));
        assert_eq!(r.rest, "a/b%20c");
        assert_eq!(parse("/apis/"), Some(Target::Groups { core: false }));
        assert_eq!(parse("/api/v1/pods/%zz"), None);
        assert_eq!(parse("/api/v1/pods/a%2Fb"), None);
    }

    proptest! {
        #[test]
        fn no_path_panics(path in ".{0,40}", tail in "(/(namespaces|api|apis|%2|%zz|a)?){0,8}") {
            parse(&path);
            parse(&tail);
            parse(&format!("/api/v1{tail}"));
        }
    }
}
