//! Where policies come from. A ConfigMap `hyperion-policy` counts before `--policy FILE`, which
//! counts before the built-in one; with `--policy rules` none counts. One that is refused is not
//! made up for by another: rules decide then, and it is said why.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use futures::StreamExt;
use hyperion_api::NAMESPACE;
use hyperion_policy::{MAX_BYTES, PolicyFile, Precision};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::policy::{Policy, Refused};

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "hyperion-policy";
/// Its key in `binaryData`.
const KEY: &str = "policy";
/// The key with the policy for devices.
const DEVICE_KEY: &str = "device-policy";

/// What `--policy` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Asked {
    /// The policy that this program brings.
    #[default]
    BuiltIn,
    /// No policy, whatever else there is.
    Rules,
    /// A file.
    File(PathBuf),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("a file, or `rules`".to_owned()),
            "rules" => Ok(Self::Rules),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// The ConfigMap, where there is one.
pub type Map = Option<Held>;

/// What the ConfigMap holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// The policy that decides here.
    pub policy: Option<Vec<u8>>,
    /// The policy for devices.
    pub device: Option<Vec<u8>>,
}

/// What counts.
#[derive(Debug)]
pub struct Chosen {
    /// The policy; none where rules decide.
    pub policy: Option<Policy>,
    /// Where it comes from, or would have.
    pub source: String,
    /// Why there is none although one was asked for.
    pub refused: Option<Refused>,
}

impl Chosen {
    fn of(source: String, read: Result<Option<Policy>, Refused>) -> Self {
        let (policy, refused) = match read {
            Ok(policy) => (policy, None),
            Err(e) => (None, Some(e)),
        };
        Self {
            policy,
            source,
            refused,
        }
    }
}

/// Reads the policy that counts.
#[must_use]
pub fn choose(asked: &Asked, map: &Map) -> Chosen {
    match (asked, map) {
        (Asked::Rules, _) => Chosen::of("rules".to_owned(), Ok(None)),
        // One that only says what devices are to have leaves the rest as it is.
        (_, Some(held)) if held.policy.is_some() || held.device.is_none() => {
            let read = held.policy.as_deref().ok_or(Refused::NoKey);
            let read = read.and_then(Policy::read).map(Some);
            Chosen::of(format!("configmap {NAMESPACE}/{CONFIG_MAP}"), read)
        }
        (Asked::File(path), _) => {
            let read = file(path).and_then(|bytes| Policy::read(&bytes));
            Chosen::of(format!("file {}", path.display()), read.map(Some))
        }
        (Asked::BuiltIn, _) => built_in(),
    }
}

/// The policy for devices: the ConfigMap's, or the one that the program brings; none where people
/// asked for rules. It has to be one that a device can run.
///
/// # Errors
/// It is damaged, of another feature schema, or not quantised.
pub fn for_devices<'a>(asked: &Asked, map: &'a Map) -> Result<Option<&'a [u8]>, Refused> {
    if *asked == Asked::Rules {
        return Ok(None);
    }
    let Some(bytes) = map.as_ref().and_then(|held| held.device.as_deref()) else {
        return Ok(Some(hyperion_policy::BUILT_IN_QUANTISED));
    };
    match PolicyFile::read(bytes)?.precision {
        Precision::Quantised(_) => Ok(Some(bytes)),
        Precision::Full => Err(Refused::NotQuantised),
    }
}

fn built_in() -> Chosen {
    let read = Policy::read(hyperion_policy::BUILT_IN);
    Chosen::of("built-in".to_owned(), read.map(Some))
}

/// At most one byte more than any policy has, so that it is refused as too large.
fn file(path: &Path) -> Result<Vec<u8>, Refused> {
    let refused = |e: io::Error| Refused::File {
        path: path.display().to_string(),
        error: e.to_string(),
    };
    // A pipe would keep the control plane waiting.
    let metadata = std::fs::metadata(path).map_err(refused)?;
    if !metadata.is_file() {
        return Err(refused(io::Error::other("it is not a file")));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(refused)?;
    Ok(bytes)
}

/// Follows the ConfigMap until `stop`.
#[must_use]
pub fn watch(client: &kube::Client, stop: CancellationToken) -> mpsc::Receiver<Map> {
    let (tx, rx) = mpsc::channel(1);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    tokio::spawn(async move {
        let mut seen = watcher::watch_object(api, CONFIG_MAP)
            .default_backoff()
            .boxed();
        let mut said = String::new();
        loop {
            let map = tokio::select! {
                map = seen.next() => map,
                () = stop.cancelled() => return,
            };
            let map = match map {
                None => return,
                Some(Err(e)) => {
                    // It is tried again all the time: said once, until it is another error.
                    let error = e.to_string();
                    if error == said {
                        debug!(error, "watch of ConfigMap {CONFIG_MAP}");
                    } else {
                        warn!(
                            error,
                            "watch of ConfigMap {NAMESPACE}/{CONFIG_MAP}: the policy stays as it is"
                        );
                        said = error;
                    }
                    continue;
                }
                Some(Ok(map)) => map,
            };
            let held = map.map(|map| {
                let mut data = map.binary_data.unwrap_or_default();
                Held {
                    policy: data.remove(KEY).map(|bytes| bytes.0),
                    device: data.remove(DEVICE_KEY).map(|bytes| bytes.0),
                }
            });
            said = String::new();
            if tx.send(held).await.is_err() {
                return;
            }
        }
    });
    rx
}
