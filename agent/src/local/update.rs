//! Updates, for people and programs at the device.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use hyperion_proto::agent_v1::{Bundle, BundleKind, UpdateOrder, UpdatePhase, UpdateState};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::info;

use super::LocalRequest;
use super::answer::Refused;
use super::serve::{ask, read};

/// Largest request, bytes.
const MAX_BODY: usize = 16 * 1024;

/// Body of `GET /v1/update`. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateStatus {
    /// Board that bundles have to name; empty where the system can't be updated as a whole.
    pub machine: String,
    /// Of the system that runs.
    pub system_version: String,
    /// Both slots, where there are such.
    pub slots: Vec<UpdateSlot>,
    /// Order of the last update; empty where there was none.
    pub order: String,
    /// Of the last update: `Downloading`, `Installing`, `Installed`, `Restarting`, `Trial`, `Done`,
    /// `RolledBack`, `Refused`, `Failed`; empty where there was none.
    pub phase: String,
    /// Of the phase.
    pub percent: u32,
    /// CamelCase, stable; empty where all goes well.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Of the bundle.
    pub version: String,
}

/// A slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateSlot {
    /// `A` or `B`.
    pub name: String,
    /// Empty where it is not known.
    pub version: String,
    /// `Good`, `Bad`, `Trial`, `Empty`.
    pub state: String,
    /// The system runs from it.
    pub running: bool,
}

impl From<UpdateState> for UpdateStatus {
    fn from(state: UpdateState) -> Self {
        let progress = state.progress.unwrap_or_default();
        let phase = match progress.phase() {
            UpdatePhase::Unspecified => String::new(),
            phase => format!("{phase:?}"),
        };
        let slots = state.slots.into_iter().map(|slot| UpdateSlot {
            state: format!("{:?}", slot.state()),
            name: slot.name,
            version: slot.version,
            running: slot.running,
        });
        Self {
            machine: state.machine,
            system_version: state.system_version,
            slots: slots.collect(),
            order: progress.order_id,
            phase,
            percent: progress.percent,
            reason: progress.reason,
            message: progress.message,
            version: progress.version,
        }
    }
}

pub(super) async fn status(node: &mpsc::Sender<LocalRequest>) -> Result<String, Refused> {
    let state = ask(node, LocalRequest::Update).await?.unwrap_or_default();
    serde_json::to_string(&UpdateStatus::from(state))
        .map_err(|e| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

/// What is to be installed: flags of `update install`, and the body of `POST /v1/update`.
#[derive(Debug, Clone, PartialEq, Eq, Args, Serialize, Deserialize)]
// A group's name is that of the struct, and the subcommand has it too.
#[group(skip)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Install {
    /// Signed bundle (.swu)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// What it holds
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub kind: Kind,
    /// Time to be Ready after the restart, or the device goes back; 0 for the agent's own
    #[arg(long, value_name = "SECONDS", default_value_t)]
    #[serde(default)]
    pub ready_seconds: u32,
}

/// What a bundle holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The whole system.
    #[default]
    System,
    /// The agent alone: its containers run on.
    Agent,
}

pub(super) async fn install(
    request: Request<Incoming>,
    node: &mpsc::Sender<LocalRequest>,
) -> Result<String, Refused> {
    let body = read(request, MAX_BODY).await?;
    let install: Install = serde_json::from_slice(&body)
        .map_err(|e| Refused::new(StatusCode::BAD_REQUEST, format!("body: {e}")))?;
    if !install.file.is_absolute() {
        return Err(Refused::field("file", "an absolute path is expected"));
    }
    let file = install.file.display();
    let id = format!("local-{:016x}", rand::random::<u64>());
    let order = UpdateOrder {
        id: id.clone(),
        bundle: Some(Bundle {
            url: format!("file://{file}"),
            // What it is the bundle itself says.
            version: "local".to_owned(),
            kind: match install.kind {
                Kind::System => BundleKind::System.into(),
                Kind::Agent => BundleKind::Agent.into(),
            },
            ..Bundle::default()
        }),
        activate: true,
        ready_seconds: install.ready_seconds,
    };
    let order = Box::new(order);
    ask(node, |answer| LocalRequest::Install { order, answer })
        .await?
        .map_err(|problem| Refused::new(StatusCode::CONFLICT, problem))?;
    info!(order = %id, %file, "an update was asked for at the device");
    Ok(json!({ "order": id }).to_string())
}
