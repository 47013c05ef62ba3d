//! Ends of processes, as containerd tells them: they spare the agent from polling.

use std::path::PathBuf;

use containerd_client::events::TaskExit;
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::types::Envelope;
use futures::FutureExt;
use futures::future::BoxFuture;
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::{Cri, RuntimeError};

/// containerd's namespace of CRI.
const NAMESPACE: &str = "k8s.io";

/// A request of containerd's own API, in the namespace of CRI.
pub(super) fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "containerd-namespace",
        MetadataValue::from_static(NAMESPACE),
    );
    request
}

/// The first process of a container, or of a sandbox, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Id of the container or sandbox.
    pub id: String,
    /// Exit code.
    pub exit_code: u32,
}

/// The stream of ends. It ends itself when containerd does.
pub struct Exits {
    socket: PathBuf,
    state: State,
}

enum State {
    /// containerd answers no sooner than it has something to tell.
    Asked(BoxFuture<'static, Result<Response<Streaming<Envelope>>, Status>>),
    Listening(Box<Streaming<Envelope>>),
}

impl Exits {
    /// Ready to listen; listening begins with the first poll of [`Self::next`].
    #[must_use]
    pub fn new(cri: &Cri) -> Self {
        let request = SubscribeRequest {
            filters: vec![format!(r#"namespace=="{NAMESPACE}",topic=="/tasks/exit""#)],
        };
        let mut client = EventsClient::new(cri.channel());
        let asked = async move { client.subscribe(request).await };
        Self {
            socket: cri.socket().to_owned(),
            state: State::Asked(asked.boxed()),
        }
    }

    /// Waits for the next end. May be dropped and called again without losing one.
    ///
    /// # Errors
    /// When containerd does not answer, or is gone.
    pub async fn next(&mut self) -> Result<Exit, RuntimeError> {
        loop {
            match &mut self.state {
                State::Asked(asked) => {
                    let stream = asked.await.map_err(|status| self.error(&status))?;
                    self.state = State::Listening(Box::new(stream.into_inner()));
                }
                State::Listening(stream) => match stream.message().await {
                    Ok(Some(envelope)) => {
                        if let Some(exit) = parse(&envelope) {
                            return Ok(exit);
                        }
                    }
                    Ok(None) => {
                        return Err(RuntimeError::Unavailable {
                            socket: self.socket.display().to_string(),
                            message: "the event stream ended".to_owned(),
                        });
                    }
                    Err(status) => return Err(self.error(&status)),
                },
            }
        }
    }

    fn error(&self, status: &Status) -> RuntimeError {
        RuntimeError::from_status(&self.socket, "event stream", status)
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
