//! The agent's side of the link: one task owns the connection, reconnects with jittered backoff,
//! says hello, renews the certificate, and hands messages over.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hyperion_proto::agent_v1::stream_message::Body;
use hyperion_proto::agent_v1::{Hello, RenewCertificate, StreamMessage, Welcome};
use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::client::{self, ConnectError, ControlTarget, EnrolError, EnrolRequest};
use crate::identity::{self, CertificateFacts, Identity};
use crate::ways::{Reached, Ways};
use crate::{route, transport};

/// Settings of a link.
#[derive(Clone)]
pub struct LinkConfig {
    /// Where to.
    pub target: ControlTarget,
    /// First wait after a failure.
    pub backoff_min: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
    /// Keep-alive interval.
    pub keep_alive: Duration,
    /// Silence after which the peer is taken for gone.
    pub idle: Duration,
    /// Time without an answer to what was sent, after which the connection is given up. Up to half as
    /// long again, drawn for each connection: a control plane that stood still for a moment is not
    /// called back by the whole fleet at once.
    pub silence: Duration,
    /// Time between attempts on the direct way while the link goes through a peer.
    pub direct_again: Duration,
    /// A socket to share; none opens one.
    pub endpoint: Option<quinn::Endpoint>,
    /// For re-enrolment.
    pub describe: EnrolRequest,
    /// Why this node can't say who it is: no connection is tried.
    pub kept_out: Option<String>,
}

impl LinkConfig {
    /// Defaults for a target.
    #[must_use]
    pub fn new(target: ControlTarget) -> Self {
        Self {
            target,
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(15),
            keep_alive: transport::KEEP_ALIVE,
            idle: transport::IDLE,
            silence: transport::SILENCE,
            direct_again: DIRECT_AGAIN,
            endpoint: None,
            describe: EnrolRequest::default(),
            kept_out: None,
        }
    }
}

/// What happens on a link.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one event at a time; the large one is the usual one"
)]
pub enum LinkEvent {
    /// The control plane answered hello.
    Connected(Welcome),
    /// A command or an answer.
    Message(StreamMessage),
    /// The connection ended or could not be made.
    Disconnected {
        /// Why.
        reason: String,
        /// When the next attempt begins.
        retry_in: Duration,
    },
    /// A new certificate: to be stored.
    Renewed(Identity),
    /// The control plane does not want this node; slow attempts go on. Or it can't say who it is, and none is
    /// made.
    Refused {
        /// Why, in the control plane's words or in those of [`LinkConfig::kept_out`].
        reason: String,
    },
}

/// A message that was not taken.
#[derive(Debug)]
pub enum SendError {
    /// No connection now.
    NotConnected(Box<StreamMessage>),
    /// The peer does not keep up.
    Full(Box<StreamMessage>),
}

/// Messages that may wait for the peer.
const OUTGOING: usize = 256;
/// Events that may wait for the agent.
const EVENTS: usize = 64;
/// How long the control plane may take to answer hello.
const WELCOME: Duration = Duration::from_secs(20);
/// Shortest and longest wait between two requests for renewal.
const RENEW_MIN: Duration = Duration::from_secs(1);
const RENEW_MAX: Duration = Duration::from_secs(600);
/// A link through a peer costs two nodes: not long, but an attempt is a handshake.
const DIRECT_AGAIN: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Current {
    outgoing: Option<mpsc::Sender<StreamMessage>>,
    quic: Option<quinn::Connection>,
    relayed: bool,
}

/// Sends on whatever connection there is.
#[derive(Clone, Default)]
pub struct LinkSender {
    current: Arc<Mutex<Current>>,
}

impl LinkSender {
    /// Queues a message for the peer.
    ///
    /// # Errors
    /// Gives the message back.
    pub fn try_send(&self, message: StreamMessage) -> Result<(), SendError> {
        let current = self.lock();
        let Some(outgoing) = &current.outgoing else {
            return Err(SendError::NotConnected(Box::new(message)));
        };
        outgoing.try_send(message).map_err(|e| match e {
            mpsc::error::TrySendError::Full(m) => SendError::Full(Box::new(m)),
            mpsc::error::TrySendError::Closed(m) => SendError::NotConnected(Box::new(m)),
        })
    }

    /// Messages that the queue to the peer has room for; 0 without a connection.
    #[must_use]
    pub fn room(&self) -> usize {
        self.lock()
            .outgoing
            .as_ref()
            .map_or(0, mpsc::Sender::capacity)
    }

    /// Round trip as QUIC measures it.
    #[must_use]
    pub fn rtt_ms(&self) -> Option<f32> {
        self.lock()
            .quic
            .as_ref()
            .map(|c| c.rtt().as_secs_f32() * 1000.0)
    }

    /// Whether the connection of now goes through a peer.
    #[must_use]
    pub fn relayed(&self) -> bool {
        self.lock().relayed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, current: Current) {
        *self.lock() = current;
    }
}

/// A running link.
pub struct Link {
    sender: LinkSender,
    events: mpsc::Receiver<LinkEvent>,
    via: watch::Sender<Option<String>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    /// For sending.
    #[must_use]
    pub fn sender(&self) -> LinkSender {
        self.sender.clone()
    }

    /// Says how the control plane is reached through a peer: `IP:PORT` of a local socket whose
    /// packets the peer passes on; none where there is no such peer. It is used while the direct
    /// way is shut, and left when that works again.
    pub fn set_via(&self, via: Option<String>) {
        self.via.send_if_modified(|now| {
            let changed = *now != via;
            *now = via;
            changed
        });
    }

    /// Next event; none after the link was closed.
    pub async fn next_event(&mut self) -> Option<LinkEvent> {
        self.events.recv().await
    }

    /// Ends the connection and waits for its task.
    pub async fn close(self) {
        self.stop.cancel();
        drop(self.events);
        let _ = self.task.await;
    }
}

/// Starts a link; `hello` is asked for the first message of every connection.
pub fn start(
    config: LinkConfig,
    identity: Identity,
    hello: Arc<dyn Fn() -> Hello + Send + Sync>,
) -> Link {
    let (tx, events) = mpsc::channel(EVENTS);
    let sender = LinkSender::default();
    let stop = CancellationToken::new();
    let (via, changes) = watch::channel(None);
    let ways = Ways {
        direct: config.target.clone(),
        via: changes,
    };
    let runner = Runner {
        config,
        ways,
        identity,
        hello,
        sender: sender.clone(),
        events: tx,
        said_expired: false,
        clock: Clock::default(),
    };
    let task = tokio::spawn({
        let stop = stop.clone();
        async move {
            let cleared = runner.sender.clone();
            tokio::select! {
                () = runner.run() => {}
                () = stop.cancelled() => {}
            }
            if let Some(quic) = cleared.lock().quic.take() {
                quic.close(0_u32.into(), b"agent stops");
            }
            cleared.set(Current::default());
        }
    });
    Link {
        sender,
        events,
        via,
        stop,
        task,
    }
}

struct Runner {
    config: LinkConfig,
    ways: Ways,
    identity: Identity,
    hello: Arc<dyn Fn() -> Hello + Send + Sync>,
    sender: LinkSender,
    events: mpsc::Sender<LinkEvent>,
    /// The control plane says that our certificate has run out.
    said_expired: bool,
    clock: Clock,
}

/// How a connection ended.
enum End {
    /// Try again soon.
    Lost(String),
    /// Try again soon, with a new certificate for the old key.
    Expired(String),
    /// Try again slowly.
    Refused(String),
}

/// The wall clock as the control plane tells it: boards boot without one, and a certificate's end
/// read on a wrong clock would never come or always be past.
#[derive(Default)]
struct Clock {
    heard: Option<(SystemTime, Instant)>,
}

impl Clock {
    fn hear(&mut self, unix_ms: i64) {
        if let Ok(ms) = u64::try_from(unix_ms)
            && ms > 0
        {
            let told = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
            self.heard = Some((told, Instant::now()));
        }
    }

    fn now(&self) -> SystemTime {
        match self.heard {
            Some((told, at)) => told + at.elapsed(),
            None => SystemTime::now(),
        }
    }
}

impl Runner {
    async fn run(mut self) {
        if let Some(reason) = self.config.kept_out.take() {
            let _ = self.events.send(LinkEvent::Refused { reason }).await;
            return std::future::pending().await;
        }
        let mut wait = self.config.backoff_min;
        let direct = self.ways.direct.addr.clone();
        let mut endpoint = None;
        loop {
            if endpoint.is_none() {
                endpoint = match &self.config.endpoint {
                    Some(shared) => Some(shared.clone()),
                    None => client::client_endpoint().ok(),
                };
            }
            let mut welcomed = false;
            let end = match &endpoint {
                Some(endpoint) => self.session(&endpoint.clone(), &mut welcomed).await,
                None => End::Lost("cannot open a UDP socket".to_owned()),
            };
            self.sender.set(Current::default());
            if welcomed {
                wait = self.config.backoff_min;
            }
            let reason = match end {
                End::Lost(reason) => reason,
                End::Expired(reason) => {
                    self.said_expired = true;
                    reason
                }
                End::Refused(reason) => {
                    wait = self.config.backoff_max;
                    if self
                        .events
                        .send(LinkEvent::Refused {
                            reason: reason.clone(),
                        })
                        .await
                        .is_err()
                    {
                        return;
                    }
                    reason
                }
            };
            // Full jitter between half and the whole of the wait, so that a fleet does not come
            // back in step after the control plane's restart.
            let retry_in = wait.mul_f64(rand::rng().random_range(0.5..1.0));
            debug!(%reason, ?retry_in, "link down");
            if self
                .events
                .send(LinkEvent::Disconnected { reason, retry_in })
                .await
                .is_err()
            {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(retry_in) => {}
                () = self.ways.appears() => {}
                () = route::appears(&direct) => {
                    wait = self.config.backoff_min;
                    continue;
                }
            }
            wait = (wait * 2).min(self.config.backoff_max);
        }
    }

    async fn session(&mut self, endpoint: &quinn::Endpoint, welcomed: &mut bool) -> End {
        if let Err(end) = self.refresh_expired().await {
            return end;
        }
        let transport = self.transport();
        let connecting = self.ways.connect(endpoint, &self.identity, transport).await;
        let mut reached = match connecting {
            Ok(reached) => reached,
            Err(e @ ConnectError::Expired(_)) => return End::Expired(e.to_string()),
            Err(e) => return End::Lost(e.to_string()),
        };
        let end = self.stream(endpoint, &mut reached, welcomed).await;
        let connected = reached.connected;
        // Where the peer closed the connection, its words tell more than what HTTP/3 makes of it.
        match connected.quic.close_reason() {
            Some(closed) if client::says_expired(&closed) => {
                End::Expired("our certificate has run out".to_owned())
            }
            Some(quinn::ConnectionError::ApplicationClosed(close)) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                if close.error_code == transport::CLOSE_REVOKED {
                    End::Refused(reason)
                } else {
                    End::Lost(reason)
                }
            }
            Some(lost) => End::Lost(lost.to_string()),
            None => end,
        }
    }

    fn transport(&self) -> Arc<quinn::TransportConfig> {
        transport::config(Some(self.config.keep_alive), self.config.idle)
    }

    /// A device that was offline past its certificate's end gets a new one for its old key.
    async fn refresh_expired(&mut self) -> Result<(), End> {
        let expired = self.facts().is_some_and(|f| f.expired(self.clock.now()));
        if !expired && !self.said_expired {
            return Ok(());
        }
        info!("certificate ran out; enrolling again with the old key");
        let describe = self.config.describe.clone();
        let renewed = self.ways.re_enrol(&self.identity, describe);
        match Box::pin(renewed).await {
            Ok(renewed) => {
                self.said_expired = false;
                self.adopt(renewed).await;
                Ok(())
            }
            Err(e) if EnrolError::is_final(&e) => Err(End::Refused(e.to_string())),
            Err(e) => Err(End::Lost(e.to_string())),
        }
    }

    fn facts(&self) -> Option<CertificateFacts> {
        let leaf = self.identity.chain_der.first()?;
        CertificateFacts::parse(leaf).ok()
    }

    async fn adopt(&mut self, renewed: Identity) {
        self.identity = renewed.clone();
        let _ = self.events.send(LinkEvent::Renewed(renewed)).await;
    }

    async fn stream(
        &mut self,
        endpoint: &quinn::Endpoint,
        reached: &mut Reached,
        welcomed: &mut bool,
    ) -> End {
        let Reached { connected, via } = reached;
        let (tx, rx) = mpsc::channel(OUTGOING);
        let hello = StreamMessage {
            body: Some(Body::Hello((self.hello)())),
        };
        if tx.try_send(hello).is_err() {
            return End::Lost("outgoing queue".to_owned());
        }
        let outgoing = futures::stream::unfold(rx, |mut rx| async move {
            let message = rx.recv().await?;
            Some((message, rx))
        });
        let opened = tokio::time::timeout(WELCOME, connected.grpc.stream(outgoing)).await;
        let mut incoming = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return ended_by(&status),
            Err(_) => return End::Lost("no answer to the stream request".to_owned()),
        };
        let welcome = match tokio::time::timeout(WELCOME, incoming.message()).await {
            Ok(Ok(Some(StreamMessage {
                body: Some(Body::Welcome(welcome)),
            }))) => welcome,
            Ok(Ok(_)) => return End::Lost("the first answer was no welcome".to_owned()),
            Ok(Err(status)) => return ended_by(&status),
            Err(_) => return End::Lost("no welcome in time".to_owned()),
        };
        *welcomed = true;
        self.clock.hear(welcome.wall_clock_unix_ms);
        self.sender.set(Current {
            outgoing: Some(tx.clone()),
            quic: Some(connected.quic.clone()),
            relayed: via.is_some(),
        });
        if self
            .events
            .send(LinkEvent::Connected(welcome))
            .await
            .is_err()
        {
            return End::Lost("agent stops".to_owned());
        }
        let mut renew_at = tokio::time::Instant::now() + self.first_renew_in();
        let mut ways = self.ways.clone();
        let direct = {
            let (ways, every) = (self.ways.clone(), self.config.direct_again);
            let (identity, transport) = (self.identity.clone(), self.transport());
            let relayed = via.is_some();
            async move {
                if !relayed {
                    std::future::pending::<()>().await;
                }
                ways.direct_works(every, endpoint, &identity, transport)
                    .await;
            }
        };
        tokio::pin!(direct);
        let silent = silent(&connected.quic, self.config.silence);
        tokio::pin!(silent);
        loop {
            let message = tokio::select! {
                message = incoming.message() => message,
                waited = &mut silent => {
                    return End::Lost(format!("nothing was answered for {:.1} s", waited.as_secs_f64()));
                }
                () = tokio::time::sleep_until(renew_at) => {
                    self.ask_for_renewal(&tx);
                    renew_at = tokio::time::Instant::now() + self.renew_again_in();
                    continue;
                }
                () = ways.lost(via.as_ref()) => {
                    return End::Lost("the way through the peer is gone".to_owned());
                }
                () = &mut direct => {
                    return End::Lost("the direct way works again".to_owned());
                }
            };
            match message {
                Ok(Some(StreamMessage {
                    body: Some(Body::RenewedCertificate(answer)),
                })) => {
                    if answer.error.is_empty() {
                        let renewed = Identity {
                            chain_der: answer.certificate_chain_der,
                            ..self.identity.clone()
                        };
                        match renewed.validate() {
                            Ok(()) => {
                                self.adopt(renewed).await;
                                renew_at = tokio::time::Instant::now() + self.renew_in();
                            }
                            Err(e) => info!(error = %e, "renewed certificate is of no use"),
                        }
                    } else {
                        info!(error = %answer.error, "certificate renewal refused");
                    }
                }
                Ok(Some(message)) => {
                    if self.events.send(LinkEvent::Message(message)).await.is_err() {
                        return End::Lost("agent stops".to_owned());
                    }
                }
                Ok(None) => return End::Lost("the control plane ended the stream".to_owned()),
                Err(status) => return ended_by(&status),
            }
        }
    }

    /// Time to the first request for renewal of a session. A certificate from before sites were
    /// written into them is of no use among peers: the control plane is asked for a new one at
    /// once, and once per session, since an older one would answer with the same again.
    fn first_renew_in(&self) -> Duration {
        let sited = self.config.describe.cluster.is_none();
        if sited && self.facts().is_some_and(|f| f.site.is_none()) {
            return Duration::ZERO;
        }
        self.renew_in()
    }

    /// Time to the next request for renewal.
    fn renew_in(&self) -> Duration {
        let due = self.facts().map(|f| f.renew_in(self.clock.now()));
        due.unwrap_or(RENEW_MAX).max(RENEW_MIN)
    }

    /// Time to the next one, where the last was refused or got lost: a part of what is left, so
    /// that a refusal is not answered with a flood.
    fn renew_again_in(&self) -> Duration {
        let now = self.clock.now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        let left = self.facts().map_or(0, |f| f.not_after.saturating_sub(now));
        Duration::from_secs(left / 8).clamp(RENEW_MIN, RENEW_MAX)
    }

    fn ask_for_renewal(&self, tx: &mpsc::Sender<StreamMessage>) {
        match identity::certificate_request(&self.identity.key_der) {
            Ok(csr_der) => {
                let body = Body::RenewCertificate(RenewCertificate { csr_der });
                let _ = tx.try_send(StreamMessage { body: Some(body) });
            }
            Err(e) => info!(error = %e, "cannot ask for a new certificate"),
        }
    }
}

/// Ends when nothing has come from the peer for `silence` (and up to half as long again) since
/// something was sent that it has to acknowledge; gives that time.
async fn silent(quic: &quinn::Connection, silence: Duration) -> Duration {
    let patience = silence.mul_f64(rand::rng().random_range(1.0..1.5));
    let mut look = tokio::time::interval(silence / 8);
    let mut watch = Watch::default();
    loop {
        let now = look.tick().await.into_std();
        let stats = quic.stats();
        // Packets with acknowledgements alone are not acknowledged themselves: only these frames
        // count as sent.
        let sent = stats.frame_tx.stream + stats.frame_tx.ping;
        let waited = watch.look(stats.udp_rx.datagrams, sent, now);
        if waited >= patience {
            return waited;
        }
    }
}

/// Since when an answer is due.
#[derive(Default)]
struct Watch {
    received: u64,
    sent: u64,
    since: Option<Instant>,
}

impl Watch {
    /// Takes counts of what was received and sent so far; gives the time for which an answer has been
    /// due.
    fn look(&mut self, received: u64, sent: u64, now: Instant) -> Duration {
        if received != self.received {
            *self = Self {
                received,
                sent,
                since: None,
            };
        } else if sent != self.sent && self.since.is_none() {
            self.since = Some(now);
        }
        self.since
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

fn ended_by(status: &tonic::Status) -> End {
    use tonic::Code;
    let reason = if status.message().is_empty() {
        format!("{:?}", status.code())
    } else {
        status.message().to_owned()
    };
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::AlreadyExists => {
            End::Refused(reason)
        }
        _ => End::Lost(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_planes_clock_counts_once_it_was_heard() {
        let mut clock = Clock::default();
        clock.hear(0);
        clock.hear(-5);
        assert!(clock.heard.is_none());
        clock.hear(4_000_000_000_000);
        let now = clock.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(now.as_secs(), 4_000_000_000);
    }

    #[test]
    fn silence_counts_from_what_was_sent_and_ends_with_any_answer() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut watch = Watch::default();
        assert_eq!(watch.look(3, 2, at(0)), Duration::ZERO);
        // Idle: nobody owes anything.
        assert_eq!(watch.look(3, 2, at(100)), Duration::ZERO);
        assert_eq!(watch.look(3, 3, at(101)), Duration::ZERO);
        assert_eq!(watch.look(3, 9, at(104)), Duration::from_secs(3));
        assert_eq!(watch.look(4, 9, at(105)), Duration::ZERO);
        assert_eq!(watch.look(4, 9, at(200)), Duration::ZERO);
    }

    #[test]
    fn without_a_connection_a_message_comes_back() {
        let sender = LinkSender::default();
        let message = StreamMessage { body: None };
        let back = sender.try_send(message.clone()).unwrap_err();
        assert!(matches!(back, SendError::NotConnected(m) if *m == message));
        assert_eq!(sender.rtt_ms(), None);
    }
}
