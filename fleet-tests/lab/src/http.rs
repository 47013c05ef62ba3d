//! A plain HTTP request, for the services under test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// `GET path` from `address`; the body of a 200 answer.
///
/// # Errors
/// No connection within two seconds, no answer within ten, or another status.
pub fn get(address: &str, path: &str) -> Result<String> {
    let address: SocketAddr = address.parse().with_context(|| address.to_owned())?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    body(&mut stream, &format!("{address}{path}"))
}

/// `GET path` from a socket file; the body of a 200 answer.
///
/// # Errors
/// No connection, no answer within ten seconds, or another status.
pub fn get_unix(socket: &Path, path: &str) -> Result<String> {
    let name = socket.display().to_string();
    let mut stream = UnixStream::connect(socket).with_context(|| name.clone())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    body(&mut stream, &format!("{name}{path}"))
}

fn body(stream: &mut impl Read, from: &str) -> Result<String> {
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("answer of {from}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{from}: {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}
