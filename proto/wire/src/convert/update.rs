//! Orders to update a node.

use super::{Invalid, MAX_TEXT, invalid, required};
use crate::agent_v1 as wire;
use crate::domain::{Bundle, BundleKind, UpdateOrder};

/// Longest order id or version, bytes: they are parts of file names on devices.
const MAX_WORD: usize = 128;
/// Longest time to become ready, seconds.
const MAX_READY: u32 = 24 * 3600;
/// Bytes of a SHA-256.
const SHA256: usize = 32;

/// Characters of an id or a version: good for a file's name.
fn word(field: &str, value: &str) -> Result<String, Invalid> {
    let value = required(field, value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._+~".contains(c);
    if value.len() > MAX_WORD {
        return invalid(field, format!("longer than {MAX_WORD} bytes"));
    }
    if value.starts_with('.') || !value.chars().all(plain) {
        return invalid(field, "not of letters, digits and -._+~");
    }
    Ok(value)
}

/// An order; none where nothing is wanted of the node.
///
/// # Errors
/// Names the field.
pub fn update_order(order: &wire::UpdateOrder) -> Result<Option<UpdateOrder>, Invalid> {
    if order.id.is_empty() {
        return Ok(None);
    }
    let Some(bundle) = &order.bundle else {
        return invalid("update_order.bundle", "missing");
    };
    let field = |name: &str| format!("update_order.bundle.{name}");
    let url = required(&field("url"), &bundle.url)?;
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("http" | "https" | "file")) || url.chars().any(char::is_whitespace) {
        return invalid(field("url"), "neither http, https nor file");
    }
    if url.len() > MAX_TEXT / 2 {
        return invalid(field("url"), format!("longer than {} bytes", MAX_TEXT / 2));
    }
    let sha256 = match bundle.sha256.len() {
        0 => None,
        SHA256 => <[u8; SHA256]>::try_from(bundle.sha256.as_slice()).ok(),
        other => return invalid(field("sha256"), format!("{other} bytes, not {SHA256}")),
    };
    let kind = match bundle.kind() {
        wire::BundleKind::System => BundleKind::System,
        wire::BundleKind::Agent => BundleKind::Agent,
        wire::BundleKind::Unspecified => {
            return invalid(field("kind"), format!("{} is not known", bundle.kind));
        }
    };
    if order.ready_seconds > MAX_READY {
        let problem = format!("{} is more than {MAX_READY}", order.ready_seconds);
        return invalid("update_order.ready_seconds", problem);
    }
    Ok(Some(UpdateOrder {
        id: word("update_order.id", &order.id)?,
        bundle: Bundle {
            url,
            sha256,
            size_bytes: Some(bundle.size_bytes).filter(|size| *size > 0),
            version: word(&field("version"), &bundle.version)?,
            kind,
        },
        activate: order.activate,
        ready_seconds: Some(order.ready_seconds).filter(|s| *s > 0),
    }))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn order() -> wire::UpdateOrder {
        wire::UpdateOrder {
            id: "3f2a-1".to_owned(),
            bundle: Some(wire::Bundle {
                url: "https://updates.example/hyperion-2.swu".to_owned(),
                sha256: vec![7; 32],
                size_bytes: 1 << 30,
                version: "2.0.1+7".to_owned(),
                kind: wire::BundleKind::System.into(),
            }),
            activate: true,
            ready_seconds: 300,
        }
    }

    #[test]
    fn an_order_survives_the_wire() {
        let sent = wire::StreamMessage {
            body: Some(wire::stream_message::Body::UpdateOrder(order())),
        };
        let held = wire::StreamMessage::decode(sent.encode_to_vec().as_slice()).unwrap();
        assert_eq!(held, sent);
        let read = update_order(&order()).unwrap().unwrap();
        assert_eq!(read.bundle.sha256, Some([7; 32]));
        assert_eq!(read.bundle.kind, BundleKind::System);
        assert_eq!((read.activate, read.ready_seconds), (true, Some(300)));
        assert_eq!(update_order(&wire::UpdateOrder::default()), Ok(None));
        let bare = wire::Bundle {
            sha256: Vec::new(),
            size_bytes: 0,
            ..order().bundle.unwrap()
        };
        let bare = wire::UpdateOrder {
            bundle: Some(bare),
            ready_seconds: 0,
            ..order()
        };
        let bare = update_order(&bare).unwrap().unwrap();
        assert_eq!((bare.bundle.sha256, bare.bundle.size_bytes), (None, None));
        assert_eq!(bare.ready_seconds, None);
    }

    #[test]
    fn what_a_node_says_of_its_update_survives_the_wire() {
        let said = wire::UpdateState {
            machine: "jetson-orin-nano-devkit".to_owned(),
            system_version: "1.0".to_owned(),
            slots: vec![wire::Slot {
                name: "a".to_owned(),
                version: "1.0".to_owned(),
                state: wire::SlotState::Good.into(),
                running: true,
            }],
            progress: Some(wire::UpdateProgress {
                order_id: "3f2a-1".to_owned(),
                phase: wire::UpdatePhase::RolledBack.into(),
                percent: 100,
                reason: "NotReadyInTime".to_owned(),
                message: "not Ready after 300 s".to_owned(),
                version: "2.0".to_owned(),
            }),
        };
        for body in [
            wire::stream_message::Body::Hello(wire::Hello {
                update: Some(said.clone()),
                ..wire::Hello::default()
            }),
            wire::stream_message::Body::NodeState(wire::NodeState {
                update: Some(said),
                ..wire::NodeState::default()
            }),
        ] {
            let sent = wire::StreamMessage { body: Some(body) };
            let held = wire::StreamMessage::decode(sent.encode_to_vec().as_slice()).unwrap();
            assert_eq!(held, sent);
        }
    }

    #[test]
    fn a_bad_order_names_its_field() {
        let with = |change: fn(&mut wire::UpdateOrder, &mut wire::Bundle)| {
            let mut order = order();
            let mut bundle = order.bundle.take().unwrap();
            change(&mut order, &mut bundle);
            order.bundle = Some(bundle);
            update_order(&order).unwrap_err().field
        };
        let bundle = |name: &str| format!("update_order.bundle.{name}");
        for url in ["", "ftp://a/b", "/etc/passwd", "https:/a", "http://a b"] {
            let mut bad = order();
            url.clone_into(&mut bad.bundle.as_mut().unwrap().url);
            assert_eq!(
                update_order(&bad).unwrap_err().field,
                bundle("url"),
                "{url}"
            );
        }
        assert_eq!(with(|_, b| b.url = "x".repeat(5000)), bundle("url"));
        let long = format!("https://a/{}", "x".repeat(3000));
        let mut bad = order();
        bad.bundle.as_mut().unwrap().url = long;
        assert_eq!(update_order(&bad).unwrap_err().field, bundle("url"));
        assert_eq!(with(|_, b| b.sha256.truncate(31)), bundle("sha256"));
        assert_eq!(with(|_, b| b.version.clear()), bundle("version"));
        assert_eq!(
            with(|_, b| b.version = "../2".to_owned()),
            bundle("version")
        );
        assert_eq!(with(|_, b| b.kind = 9), bundle("kind"));
        assert_eq!(with(|_, b| b.kind = 0), bundle("kind"));
        assert_eq!(with(|o, _| o.id = "a/b".to_owned()), "update_order.id");
        assert_eq!(with(|o, _| o.id = "x".repeat(200)), "update_order.id");
        let ready = with(|o, _| o.ready_seconds = u32::MAX);
        assert_eq!(ready, "update_order.ready_seconds");
        let none = wire::UpdateOrder {
            bundle: None,
            ..order()
        };
        assert_eq!(
            update_order(&none).unwrap_err().field,
            "update_order.bundle"
        );
    }
}
