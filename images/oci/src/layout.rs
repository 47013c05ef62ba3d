//! The OCI image layout around one layer.

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::tar::Tar;
use crate::{Image, ImageError};

/// `sha256:<hex>` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// `host/repository:tag`, in the characters that registries allow.
pub fn check_name(name: &str) -> Result<(), ImageError> {
    let plain = |s: &str| {
        !s.is_empty()
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b))
    };
    let parts = name
        .split_once('/')
        .and_then(|(host, rest)| Some((host, rest.rsplit_once(':')?)));
    match parts {
        Some((host, (repository, tag))) if plain(host) && plain(repository) && plain(tag) => Ok(()),
        _ => Err(ImageError::Name(name.to_owned())),
    }
}

/// The whole image as one tar file. `architecture` is that of its program, in OCI's words.
pub fn image_tar(
    image: &Image,
    entrypoint: &str,
    architecture: &str,
    layer: Vec<u8>,
) -> Result<Vec<u8>, ImageError> {
    // Hashing is most of the work of packing: each blob is hashed once.
    let layer_digest = digest(&layer);
    let mut command = vec![entrypoint.to_owned()];
    command.extend(image.args.iter().cloned());
    let mut run = json!({ "Entrypoint": command, "Env": image.env, "WorkingDir": "/" });
    if let Some(user) = image.user {
        run["User"] = json!(format!("{user}:{user}"));
    }
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        "history": [{ "created_by": "hyperion-images" }],
    })
    .to_string()
    .into_bytes();
    let config_digest = digest(&config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest, "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": layer_digest, "size": layer.len(),
        }],
    })
    .to_string()
    .into_bytes();
    let manifest_digest = digest(&manifest);
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest, "size": manifest.len(),
            "annotations": {
                "io.containerd.image.name": image.name,
                "org.opencontainers.image.ref.name": image.name,
            },
        }],
    })
    .to_string()
    .into_bytes();
    let mut tar = Tar::default();
    tar.file(
        "oci-layout".to_owned(),
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    tar.folder("blobs", 0o755)?;
    tar.folder("blobs/sha256", 0o755)?;
    for (digest, blob) in [
        (layer_digest, layer),
        (config_digest, config),
        (manifest_digest, manifest),
    ] {
        let path = format!("blobs/{}", digest.replace(':', "/"));
        tar.file(path, 0o644, &blob)?;
    }
    tar.file("index.json".to_owned(), 0o644, &index)?;
    Ok(tar.finish())
}
