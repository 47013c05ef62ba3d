//! The model of latency under load, held against a real server.
//!
//! The only part of the simulator that reads a clock, and no part of an episode.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyperion_placement::latency::sojourn_p99_ms;

use super::random;

/// What is asked of the server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueueLoad {
    /// Mean time that a request keeps the server busy, milliseconds, above 0.
    pub service_ms: f64,
    /// Share of the time that it is busy, between 0 and 1.
    pub load: f64,
    /// Squared coefficient of variation of service times: `1 / phases`, of an Erlang distribution;
    /// 0 phases for always the same time.
    pub phases: u32,
    /// Requests, in open loop: they come whether those before were answered or not.
    pub requests: usize,
    /// Decides when they come.
    pub seed: u64,
}

/// What a server did and what the model says of it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct QueueCheck {
    /// Requests that were answered.
    pub requests: usize,
    /// Share of the time that the server was busy.
    pub utilization: f64,
    /// Mean time that a request kept it busy, milliseconds.
    pub service_ms: f64,
    /// Median time from when a request was due to its answer, milliseconds.
    pub measured_p50_ms: f64,
    /// Its 99th percentile, milliseconds.
    pub measured_p99_ms: f64,
    /// [`sojourn_p99_ms`] at the measured service time and utilization.
    pub modelled_p99_ms: f64,
}

/// Requests that may be on their way at once.
const CLIENTS: usize = 96;
/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

/// Runs an HTTP server with one worker on the loopback interface, sends requests at random times
/// (a Poisson process), and compares. Takes `requests × service_ms / load` milliseconds.
///
/// A request is timed from when it was due, not from when it could be sent: what waits in the
/// client waits too.
///
/// # Errors
/// Those of the sockets, and [`io::ErrorKind::InvalidInput`] for a load that is not between 0
/// and 1 or a service time that is not above 0.
pub fn queue_check(asked: &QueueLoad) -> io::Result<QueueCheck> {
    let sane = asked.service_ms > 0.0 && asked.load > 0.0 && asked.load < 1.0;
    if !sane || !asked.service_ms.is_finite() || asked.requests == 0 {
        let text = format!(
            "load {} is not between 0 and 1, service time {} ms is not above 0, or no requests",
            asked.load, asked.service_ms
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let due = arrivals(asked);
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let times = Mutex::new(Vec::with_capacity(asked.requests));
    let began = Instant::now();
    let busy = std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener, asked, &stop));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| ask(address, began, &due, &next, &times)))
            .collect();
        let asked: Vec<io::Result<()>> = clients.into_iter().map(joined).collect();
        stop.store(true, Ordering::Release);
        // The server waits for a connection; one more lets it see that it is over.
        drop(TcpStream::connect(address));
        let busy = joined(server)?;
        asked.into_iter().collect::<io::Result<()>>()?;
        io::Result::Ok(busy)
    })?;
    let elapsed = began.elapsed().as_secs_f64();
    let mut times = times.into_inner().unwrap_or_default();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        let index = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |s| s * 1000.0)
    };
    let utilization = busy / elapsed;
    let service_ms = busy * 1000.0 / times.len().max(1) as f64;
    Ok(QueueCheck {
        requests: times.len(),
        utilization,
        service_ms,
        measured_p50_ms: at(0.5),
        measured_p99_ms: at(0.99),
        modelled_p99_ms: sojourn_p99_ms(service_ms, utilization),
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, io::Result<T>>) -> io::Result<T> {
    let lost = |_| io::Error::other("a thread of the check was lost");
    thread.join().map_err(lost)?
}

/// When each request is due, seconds.
fn arrivals(asked: &QueueLoad) -> Vec<f64> {
    let mean = asked.service_ms / 1000.0 / asked.load;
    let mut at = 0.0;
    (0..asked.requests as u64)
        .map(|n| {
            at += mean * random::exponential(asked.seed, 0, n);
            at
        })
        .collect()
}

/// Serves one request after the other; seconds that it was busy.
fn serve(listener: &TcpListener, asked: &QueueLoad, stop: &AtomicBool) -> io::Result<f64> {
    let mut busy = 0.0;
    for number in 0_u64.. {
        let (mut stream, _) = listener.accept()?;
        if stop.load(Ordering::Acquire) {
            break;
        }
        let began = Instant::now();
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = Vec::new();
        let mut buffer = [0; 512];
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read(&mut buffer)? {
                0 => break,
                n => request.extend_from_slice(&buffer[..n]),
            }
        }
        let mean = asked.service_ms / 1000.0;
        let phases = (0..u64::from(asked.phases))
            .map(|p| random::exponential(asked.seed, p + 1, number) / f64::from(asked.phases));
        let share: f64 = if asked.phases == 0 { 1.0 } else { phases.sum() };
        let end = began + Duration::from_secs_f64(mean * share);
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        stream.write_all(ANSWER)?;
        busy += began.elapsed().as_secs_f64();
    }
    Ok(busy)
}

/// Sends the next request when it is due, until there is none.
fn ask(
    address: SocketAddr,
    began: Instant,
    due: &[f64],
    next: &AtomicUsize,
    times: &Mutex<Vec<f64>>,
) -> io::Result<()> {
    while let Some(at) = due.get(next.fetch_add(1, Ordering::Relaxed)) {
        let at = began + Duration::from_secs_f64(*at);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let taken = at.elapsed().as_secs_f64();
        if !answer.ends_with(b"ok") {
            return Err(io::Error::other("the server's answer was cut short"));
        }
        if let Ok(mut times) = times.lock() {
            times.push(taken);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_measured_and_answers_everything() {
        let asked = QueueLoad {
            service_ms: 1.0,
            load: 0.3,
            phases: 0,
            requests: 60,
            seed: 1,
        };
        let check = queue_check(&asked).unwrap();
        assert_eq!(check.requests, 60);
        assert!(check.service_ms >= 1.0 && check.measured_p50_ms >= 1.0);
        assert!(check.utilization > 0.0 && check.modelled_p99_ms >= check.service_ms);
    }

    #[test]
    fn a_load_that_can_t_be_carried_is_refused() {
        for load in [0.0, 1.0, f64::NAN] {
            let asked = QueueLoad {
                service_ms: 1.0,
                load,
                phases: 0,
                requests: 1,
                seed: 1,
            };
            assert!(queue_check(&asked).is_err());
        }
    }
}
