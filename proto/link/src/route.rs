//! Whether this machine has a way to an address: a device that starts before its network, or loses it,
//! goes on the moment it is there instead of waiting out its backoff.

use std::future::{pending, ready};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Wait between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Addresses that stand for "anywhere" where a name can't be resolved yet: of documentation (RFC 5737 and
/// RFC 3849), so that no network has a route for them alone.
const ANYWHERE: [SocketAddr; 2] = [
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 7444),
    SocketAddr::new(
        std::net::IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        7444,
    ),
];

/// Asks the kernel for a route, sending nothing.
fn ask(addr: SocketAddr) -> io::Result<()> {
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    UdpSocket::bind(any)?.connect(addr)
}

/// Refuses an address that no packet can leave for. QUIC would not notice: to it such packets are lost,
/// and it sends them again, ever later, until the attempt's time is over.
///
/// # Errors
/// There is no route. Whatever else is wrong is left for the connection to find.
pub(crate) fn check(addr: SocketAddr) -> io::Result<()> {
    use io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    match ask(addr) {
        Err(e) if [NetworkUnreachable, HostUnreachable, AddrNotAvailable].contains(&e.kind()) => {
            Err(e)
        }
        _ => Ok(()),
    }
}

/// Ends when there is a way to `target` (`host:port`) where there was none; never where there is one at
/// the start, as then something else is wrong and waiting is right.
pub async fn appears(target: &str) {
    match target.parse::<SocketAddr>() {
        Ok(addr) => becomes(|| ready(ask(addr).is_ok())).await,
        Err(_) => becomes(|| ready(ANYWHERE.iter().any(|addr| ask(*addr).is_ok()))).await,
    }
}

/// Ends once something is so that was not, looking every 200 ms; never where it is so at the start.
pub async fn becomes<F: Future<Output = bool>>(so: impl Fn() -> F) {
    if so().await {
        pending::<()>().await;
    }
    loop {
        tokio::time::sleep(LOOK).await;
        if so().await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::cell::Cell;

    #[test]
    fn an_address_of_this_machine_has_a_route() {
        check((Ipv4Addr::LOCALHOST, 7444).into()).unwrap();
    }

    #[test]
    fn what_is_no_matter_of_routes_is_left_alone() {
        // The kernel refuses a broadcast address for another reason.
        let broadcast = (Ipv4Addr::BROADCAST, 7444).into();
        assert!(ask(broadcast).is_err());
        check(broadcast).unwrap();
    }

    #[tokio::test]
    async fn it_ends_once_there_is_a_way() {
        let looks = Cell::new(0);
        let second_look = || ready(looks.replace(looks.get() + 1) == 1);
        let became = tokio::time::timeout(Duration::from_secs(60), becomes(second_look)).await;
        became.unwrap();
        assert_eq!(looks.get(), 2);
    }

    #[tokio::test]
    async fn a_way_that_is_there_ends_no_wait() {
        assert!(becomes(|| ready(true)).now_or_never().is_none());
    }
}
