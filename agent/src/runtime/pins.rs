//! Keeps the images of desired replicas: a node that is cut off can't get them again. Whoever
//! collects garbage (the kubelet, or a person's prune) leaves pinned images alone.

use std::collections::{BTreeSet, HashMap};

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{Image, ListImagesRequest, UpdateImageRequest};
use prost_types::FieldMask;

use super::events::in_namespace;
use super::names::full_name;
use super::{Cri, RuntimeError};

/// CRI's own label for images that stay.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Says that the pin is ours: others' stay when we take ours away.
const OURS: (&str, &str) = ("hyperion.io/pinned", "true");

/// Pins the images with these names, where they are here, and takes the pins of all others away
/// that were made before. Pins that somebody else made are left alone.
///
/// # Errors
/// containerd's words.
pub async fn pin_images(cri: &Cri, needed: &BTreeSet<String>) -> Result<(), RuntimeError> {
    let needed: BTreeSet<String> = needed.iter().map(|name| full_name(name)).collect();
    let error = |status| RuntimeError::from_status(cri.socket(), "pin images", &status);
    let mut images = ImagesClient::new(cri.channel()).max_decoding_message_size(16 << 20);
    let request = in_namespace(ListImagesRequest::default());
    let listed = images.list(request).await.map_err(error)?.into_inner();
    for image in listed.images {
        let ours = image.labels.contains_key(OURS.0);
        let pinned = image.labels.get(PINNED.0).is_some_and(|v| v == PINNED.1);
        let labels: HashMap<String, String> = match (needed.contains(&image.name), ours, pinned) {
            (true, _, false) => [PINNED, OURS]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            // A label without a value is taken away.
            (false, true, _) => HashMap::new(),
            _ => continue,
        };
        let paths = [PINNED, OURS].map(|(key, _)| format!("labels.{key}"));
        let request = in_namespace(UpdateImageRequest {
            image: Some(Image {
                name: image.name,
                labels,
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: paths.into(),
            }),
            ..Default::default()
        });
        match images.update(request).await {
            // Removed in between.
            Err(status) if status.code() == tonic::Code::NotFound => {}
            other => drop(other.map_err(error)?),
        }
    }
    Ok(())
}
