//! QUIC's numbers, in one place.

use std::sync::Arc;
use std::time::Duration;

use quinn::{IdleTimeout, TransportConfig, VarInt};

/// Keep-alive of the agent. NATs forget idle UDP flows after as little as 30 s (RFC 4787 asks for
/// two minutes, RFC 8085 section 3.5 warns of less), so two tries fit in.
pub const KEEP_ALIVE: Duration = Duration::from_secs(12);
/// A peer that was silent this long is gone: three lost keep-alives.
pub const IDLE: Duration = Duration::from_secs(40);
/// A control plane that answers nothing for this long, although something was sent that QUIC answers,
/// is out of reach: the site has to know sooner than NATs allow a silent flow.
pub const SILENCE: Duration = Duration::from_secs(6);
/// Name in the control plane's certificate.
pub const SERVER_NAME: &str = "hyperion-control";
/// HTTP/3.
pub const ALPN: &[u8] = b"h3";

/// Code with which the control plane closes the connection of a revoked node.
pub const CLOSE_REVOKED: VarInt = VarInt::from_u32(2);

/// Code with which the control plane closes the connection of a node that it no longer hears; one
/// that still lives connects again.
pub const CLOSE_LOST: VarInt = VarInt::from_u32(3);

/// Code with which the control plane ends a stream that outlived its certificate.
pub const CLOSE_EXPIRED: VarInt = VarInt::from_u32(4);

/// Largest message from an agent, bytes. A report has some hundred bytes, a log chunk some ten
/// thousand; a peer that is not trusted yet must not make the control plane hold more.
pub const MAX_FROM_AGENT: usize = 1024 * 1024;
/// Largest message from the control plane, bytes: a welcome carries all pods of a node.
pub const MAX_TO_AGENT: usize = 64 * 1024 * 1024;

/// Receive window of a stream and of a connection, bytes: a telemetry message has about 200 bytes
/// and a message is refused above 1 MiB, so a small window costs nothing but round trips on logs.
const STREAM_WINDOW: u32 = 128 * 1024;

/// Transport settings of an agent; only it sends keep-alives.
#[must_use]
pub fn config(keep_alive: Option<Duration>, idle: Duration) -> Arc<TransportConfig> {
    Arc::new(common(keep_alive, idle))
}

/// Transport settings of the gateway.
#[must_use]
pub fn of_gateway() -> Arc<TransportConfig> {
    let mut config = common(None, IDLE);
    // With it quinn keeps room for ten datagrams per connection as soon as two were to be sent,
    // which is in every handshake: 12 KB for each agent, to save a system call on long messages.
    config.enable_segmentation_offload(false);
    Arc::new(config)
}

fn common(keep_alive: Option<Duration>, idle: Duration) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        // One request stream and HTTP/3's control, encoder, decoder and reserved streams.
        .max_concurrent_bidi_streams(VarInt::from_u32(4))
        .max_concurrent_uni_streams(VarInt::from_u32(8))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(2 * STREAM_WINDOW))
        .send_window(u64::from(2 * STREAM_WINDOW))
        .datagram_receive_buffer_size(None)
        // Messages are small: probing for a larger MTU costs packets and buys nothing.
        .mtu_discovery_config(None)
        .keep_alive_interval(keep_alive);
    if let Ok(idle) = IdleTimeout::try_from(idle) {
        config.max_idle_timeout(Some(idle));
    }
    config
}
