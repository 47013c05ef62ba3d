//! Names of images.

/// The whole name of an image, as containerd keeps it: pods may leave out the registry, the folder
/// and the tag (`busybox` is `docker.io/library/busybox:latest`), and a digest makes the tag beside
/// it void.
#[must_use]
pub fn full_name(image: &str) -> String {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let (domain, path) = match rest.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
        _ => ("docker.io", rest),
    };
    let domain = if domain == "index.docker.io" {
        "docker.io"
    } else {
        domain
    };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, tag),
        None => (path, "latest"),
    };
    let folder = if domain == "docker.io" && !path.contains('/') {
        "library/"
    } else {
        ""
    };
    match digest {
        Some(digest) => format!("{domain}/{folder}{path}@{digest}"),
        None => format!("{domain}/{folder}{path}:{tag}"),
    }
}

/// Digest that a name ends with; none where it goes by a tag.
pub(super) fn digest(image: &str) -> Option<&str> {
    image.split_once('@').map(|(_, digest)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_out() {
        for (short, full) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/library/a:1", "docker.io/library/a:1"),
            ("localhost/busybox:1", "localhost/busybox:1"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("quay.io/x/y:v1", "quay.io/x/y:v1"),
            ("quay.io/x/y:v1@sha256:ab", "quay.io/x/y@sha256:ab"),
            ("a@sha256:ab", "docker.io/library/a@sha256:ab"),
        ] {
            assert_eq!(full_name(short), full, "{short}");
            assert_eq!(full_name(full), full, "{full}");
        }
        // Nothing that anybody writes breaks it.
        for odd in ["", "@", ":", "/", "a/@:", "läb/ü", "://"] {
            let _ = full_name(odd);
        }
    }
}
