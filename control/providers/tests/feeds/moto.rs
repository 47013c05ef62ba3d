//! AWS's feed against moto's server, which checks requests as AWS does and was written by others.

use std::io::Read as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyperion_placement::model::CapacityType;
use hyperion_providers::feeds::Reason;
use jiff::Timestamp;

use crate::aws;

/// Where `moto_server` is: in the folder of a virtual environment that the test makes once.
fn installed(dir: &Path) -> Result<PathBuf, String> {
    let server = dir.join("bin/moto_server");
    if server.exists() {
        return Ok(server);
    }
    let run = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        let output = output.map_err(|e| format!("{}: {e}", program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        Err(format!("{} {}: {last}", program.display(), args.join(" ")))
    };
    let folder = dir.to_string_lossy().into_owned();
    run(Path::new("python3"), &["-m", "venv", &folder])?;
    let pip = dir.join("bin/pip");
    run(
        &pip,
        &[
            "install",
            "--quiet",
            "--timeout",
            "20",
            "--retries",
            "1",
            "moto[ec2,server]==5.2.5",
        ],
    )?;
    Ok(server)
}

struct Moto {
    child: Child,
    url: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Moto {
    fn start(program: &Path) -> Result<Self, String> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .map_err(|e| e.to_string())?
            .port();
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let mut moto = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = moto.child.try_wait().map_err(|e| e.to_string())?;
            if ended.is_some() || Instant::now() > deadline {
                let _ = moto.child.kill();
                let mut said = String::new();
                let stderr = moto.child.stderr.as_mut();
                let _ = stderr.map(|s| s.read_to_string(&mut said));
                return Err(format!("moto_server does not serve: {said}"));
            }
            std::thread::yield_now();
        }
        Ok(moto)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn spot_prices_of_moto() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto-5.2.5");
    let moto = match installed(&dir).and_then(|program| Moto::start(&program)) {
        Ok(moto) => moto,
        Err(reason) => {
            println!("SKIPPED: moto can't be had here: {reason}");
            return;
        }
    };
    let fetched = aws(&moto.url).fetch(Timestamp::now()).await;
    let spot = fetched
        .offers
        .values()
        .filter(|o| o.key.capacity_type == CapacityType::Spot)
        .count();
    println!("moto: {spot} spot offers, {:?}", fetched.failures);
    assert!(spot > 0, "{fetched:?}");
    // The list is served at AWS under another name; moto may not know the query.
    for failure in &fetched.failures {
        assert!(failure.what.contains("price list"), "{failure}");
        assert_ne!(failure.reason, Reason::Network, "{failure}");
    }
}
