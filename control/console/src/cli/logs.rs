//! `logs`: what a replica's container wrote, from its node through the fleet API.

use futures::AsyncReadExt as _;
use hyperion_api::fleet::PROXY_PREFIX;

use super::explain::get_workload;
use super::output::Out;
use super::split_name;
use crate::connect::Connection;
use crate::error::CliError;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Workload, as NAME or NAMESPACE/NAME
    #[arg(value_name = "WORKLOAD")]
    pub workload: String,
    /// Replica number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub replica: u32,
    /// Container; by default the first one of the template
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u32>,
    /// Go on with what is written from now on
    #[arg(short, long)]
    pub follow: bool,
}

/// Runs it.
///
/// # Errors
/// There is no such workload, its node is out of reach, or the control plane is.
pub async fn run(connection: &Connection, args: &Args, out: &Out) -> Result<(), CliError> {
    let (namespace, name) = split_name(&args.workload, connection);
    // The fleet API knows replicas, not workloads: a mistyped name gets a better answer here.
    let workload = get_workload(connection, namespace, name).await?;
    if i64::from(args.replica) >= i64::from(workload.spec.replicas) {
        return Err(CliError::new(format!(
            "workload {name:?} has no replica {}: it has {}, numbered from 0",
            args.replica, workload.spec.replicas
        )));
    }
    let what = format!("get the logs of {name}, replica {}", args.replica);
    let failed = |e: &kube::Error| {
        CliError::api(&what, e)
            .or_hint("`hyperion placements` shows whether the replica runs, and where")
    };
    let request = http::Request::get(path(namespace, name, args))
        .body(Vec::new())
        .map_err(|e| failed(&kube::Error::HttpError(e)))?;
    let stream = connection
        .client
        .request_stream(request)
        .await
        .map_err(|e| failed(&e))?;
    let mut stream = std::pin::pin!(stream);
    let mut filter = Filter::default();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = stream
            .read(&mut buffer)
            .await
            .map_err(|e| CliError::new(format!("the log of {name} broke off: {e}")))?;
        match count {
            0 => return Ok(()),
            // A terminal obeys what a container writes; a file does not.
            n if out.width.is_some() => out.write(&filter.pass(&buffer[..n]))?,
            n => out.write(&buffer[..n])?,
        }
    }
}

fn path(namespace: &str, workload: &str, args: &Args) -> String {
    let mut path = format!(
        "{PROXY_PREFIX}/logs?namespace={}&workload={}&replica={}&follow={}",
        encoded(namespace),
        encoded(workload),
        args.replica,
        args.follow
    );
    if let Some(container) = &args.container {
        path.push_str(&format!("&container={}", encoded(container)));
    }
    if let Some(lines) = args.tail {
        path.push_str(&format!("&tail={lines}"));
    }
    path
}

/// Percent-encoded for a query.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Lets text, line breaks, tabs and colours through; drops every other way to drive a terminal.
#[derive(Debug, Default)]
struct Filter {
    /// An escape sequence that is not complete yet.
    escape: Vec<u8>,
}

/// Longest colour sequence.
const MAX_ESCAPE: usize = 32;

impl Filter {
    fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            match (self.escape.len(), byte) {
                (_, 0x1b) => self.escape = vec![byte],
                (0, b'\n' | b'\t') => out.push(byte),
                (0, 0..0x20 | 0x7f) => {}
                (0, _) => out.push(byte),
                (1, b'[') => self.escape.push(byte),
                (2.., b'm') => {
                    out.append(&mut self.escape);
                    out.push(byte);
                }
                (2..MAX_ESCAPE, b'0'..=b'9' | b';' | b':') => self.escape.push(byte),
                // Not a colour: what was read of it goes, and its last byte with it.
                _ => self.escape.clear(),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_is_encoded() {
        let args = Args {
            workload: "w".to_owned(),
            replica: 2,
            container: Some("a&b=c d".to_owned()),
            tail: Some(5),
            follow: true,
        };
        assert!(path("n", "w", &args).ends_with(
            "/fleet/v1/logs?namespace=n&workload=w&replica=2&follow=true&container=a%26b%3Dc%20d&tail=5"
        ));
    }

    #[test]
    fn logs_may_colour_a_terminal_but_not_drive_it() {
        let mut filter = Filter::default();
        let mut out = filter.pass(b"a\x1b[3");
        out.extend(filter.pass(
            b"1mred\x1b[0m\x1b[2J\x1b]0;t\x07b\r\nc\x1b[999999999999999999999999999999999999m",
        ));
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("a\x1b[31mred\x1b[0m"), "{text:?}");
        assert!(!text.contains("\x1b[2J") && !text.contains('\x07') && !text.contains("\x1b]"));
    }
}
