//! Counts starts of the demo workload, told by the workload itself: each sends one datagram when
//! its process begins (`HYPERION_BEACON`). No start can hide from it, whoever caused it.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// Listens for starts on the containers' network.
#[derive(Debug)]
pub struct Beacon {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Beacon {
    /// Listens on an address of this machine, at a free port, as long as this value lives.
    ///
    /// # Errors
    /// The address is not this machine's.
    pub fn listen(gateway: &str) -> Result<Self> {
        let socket = UdpSocket::bind((gateway, 0)).with_context(|| gateway.to_owned())?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let address = socket.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let weak = Arc::downgrade(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 512];
            loop {
                let got = socket.recv(&mut buffer);
                let Some(seen) = weak.upgrade() else { return };
                if let Some(text) = got.ok().and_then(|n| buffer.get(..n)) {
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(String::from_utf8_lossy(text).into_owned());
                }
            }
        });
        Ok(Self { address, seen })
    }

    /// Value for `HYPERION_BEACON`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Starts of workloads whose name begins with `prefix`, in order.
    #[must_use]
    pub fn starts(&self, prefix: &str) -> Vec<String> {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .filter_map(|line| line.strip_prefix("started "))
            .filter(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_one_start() {
        let beacon = Beacon::listen("127.0.0.1").unwrap();
        let from = UdpSocket::bind("127.0.0.1:0").unwrap();
        from.send_to(b"started web-0", beacon.address()).unwrap();
        from.send_to(b"started other", beacon.address()).unwrap();
        crate::wait::until("start", Duration::from_secs(5), || {
            let all = beacon.starts("").len();
            if all == 2 {
                Ok(())
            } else {
                Err(format!("{all} starts"))
            }
        })
        .unwrap();
        assert_eq!(beacon.starts("web"), ["web-0"]);
    }
}
