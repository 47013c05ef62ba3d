//! Ends of processes, as containerd tells them: they spare the agent from polling.

use std::path::PathBuf;

use containerd_client::events::TaskExit;
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use prost::Message;
use tonic::Streaming;

use super::{Cri, RuntimeError};

/// containerd's namespace of CRI.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// The first process of a container, or of a sandbox, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Id of the container or sandbox.
    pub id: String,
    /// Exit code.
    pub exit_code: u32,
}

/// The stream of ends. It ends itself when containerd does.
#[derive(Debug)]
pub struct Exits {
    socket: PathBuf,
    stream: Streaming<Envelope>,
}

impl Exits {
    /// Begins to listen: what ends after this returned is told.
    ///
    /// # Errors
    /// When containerd does not answer.
    pub async fn subscribe(cri: &Cri) -> Result<Self, RuntimeError> {
        let request = SubscribeRequest {
            filters: vec![format!(r#"namespace=="{NAMESPACE}",topic=="/tasks/exit""#)],
        };
        let socket = cri.socket().to_owned();
        let answer = EventsClient::new(cri.channel()).subscribe(request).await;
        let stream = answer
            .map_err(|status| RuntimeError::from_status(&socket, "subscribe to events", &status))?
            .into_inner();
        Ok(Self { socket, stream })
    }

    /// Waits for the next end.
    ///
    /// # Errors
    /// When the stream is over.
    pub async fn next(&mut self) -> Result<Exit, RuntimeError> {
        loop {
            let envelope = match self.stream.message().await {
                Ok(Some(envelope)) => envelope,
                Ok(None) => {
                    return Err(RuntimeError::Unavailable {
                        socket: self.socket.display().to_string(),
                        message: "the event stream ended".to_owned(),
                    });
                }
                Err(status) => {
                    return Err(RuntimeError::from_status(
                        &self.socket,
                        "event stream",
                        &status,
                    ));
                }
            };
            if let Some(exit) = parse(&envelope) {
                return Ok(exit);
            }
        }
    }
}

/// Ends of commands run by probes carry an id of their own and are left out.
fn parse(envelope: &Envelope) -> Option<Exit> {
    let event = envelope.event.as_ref()?;
    let exit = TaskExit::decode(event.value.as_slice()).ok()?;
    (exit.id == exit.container_id).then_some(Exit {
        id: exit.container_id,
        exit_code: exit.exit_status,
    })
}
