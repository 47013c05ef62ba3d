//! `hyperion image prepare`: from the image that all devices share to one that enrols by itself.
//!
//! The settings are put into the image's FAT volume in memory ([`overlay`], [`fat`]); what comes out is
//! written once, from its beginning to its end ([`copy`]), and read back. So all that can be refused is
//! refused before anything is written.

pub mod copy;
pub mod fat;
pub mod gpt;
pub mod in_use;
pub mod overlay;
pub mod progress;
pub mod settings;
pub mod target;
pub mod zfs;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::output::Out;
use super::token;
use crate::connect::Connection;
use crate::error::CliError;
use gpt::Partition;
use overlay::Overlay;
use settings::Settings;
use target::Target;

/// Commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Write an image with the settings that a device joins the fleet with
    ///
    /// Without --token one is made, as by `hyperion token create`.
    Prepare(Box<Prepare>),
}

/// Flags of `image prepare`.
#[derive(Debug, clap::Args)]
pub struct Prepare {
    /// Image of a disk with a GUID partition table, not compressed; it is not changed
    #[arg(
        long,
        value_name = "FILE",
        requires = "out",
        required_unless_present = "stick"
    )]
    pub image: Option<PathBuf>,
    /// Where it goes: a new file, or the device of a card, a stick or a disk
    #[arg(long, value_name = "FILE|DEVICE", requires = "image")]
    pub out: Option<PathBuf>,
    /// Write the settings alone, to the folder where a stick is mounted: a FAT volume with the label
    /// HYPERION
    #[arg(long, value_name = "DIR", conflicts_with_all = ["image", "out"])]
    pub stick: Option<PathBuf>,
    /// What the device takes.
    #[command(flatten)]
    pub device: Device,
    /// Overwrite a file that is there, a disk of this machine, a disk that is mounted
    #[arg(long)]
    pub force: bool,
}

/// What a device is told.
#[derive(Debug, clap::Args)]
pub struct Device {
    /// Join token; as HYPERION_TOKEN it is not seen by others on this machine
    #[arg(long, value_name = "ID.SECRET", env = "HYPERION_TOKEN", hide_env_values = true,
          requires_all = ["control", "ca_fingerprint"], value_parser = settings::token)]
    pub token: Option<String>,
    /// Address of the control plane for devices; for a token that is made here by default what
    /// hyperion-control says of itself
    #[arg(long, value_name = "HOST:PORT", value_parser = settings::control)]
    pub control: Option<String>,
    /// SHA-256 of the fleet's CA
    #[arg(long, value_name = "sha256:HEX", requires = "token", value_parser = settings::ca_fingerprint)]
    pub ca_fingerprint: Option<String>,
    /// Site; by default that of the token
    #[arg(long, value_name = "NAME", required_unless_present = "token", value_parser = settings::site)]
    pub site: Option<String>,
    /// Label of the node; may be given again
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = settings::label)]
    pub labels: Vec<String>,
    /// Name of the device, for an image of one device; by default its serial names it
    #[arg(long, value_name = "NAME", value_parser = settings::hostname)]
    pub hostname: Option<String>,
    /// How long a token that is made here can be used
    #[arg(long, value_name = "DURATION", default_value = "7d", conflicts_with = "token",
          value_parser = token::parse_ttl)]
    pub ttl: Duration,
    /// How many devices may join with a token that is made here
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "token",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub uses: u32,
}

/// How to reach the control plane.
pub trait Connect: AsyncFnOnce() -> Result<Connection, CliError> {}
impl<T: AsyncFnOnce() -> Result<Connection, CliError>> Connect for T {}

/// Runs it; `connect` is called where a token has to be made.
///
/// # Errors
/// Names the image, the place or the setting, and what is wrong with it.
pub async fn run(command: Command, connect: impl Connect, out: &Out) -> Result<(), CliError> {
    let Command::Prepare(args) = command;
    match (&args.image, &args.out, &args.stick) {
        (Some(image), Some(to), _) => {
            let mut image = Image::open(image)?;
            let target = Target::look(to, &image.file, args.force, Path::new("/"))?;
            // Is there room? Known before a token is made.
            image.put(&stand_in(&args.device))?;
            let settings = settings_for(&args.device, connect).await?;
            image.put(&settings)?;
            if let Some(doubt) = target.doubt() {
                out.line(&doubt)?;
            }
            out.line(&format!("writing {}", target.describe()))?;
            let written = interruptible(move |stop| image.write(&target, stop)).await?;
            out.write(written.as_bytes())
        }
        (_, _, Some(dir)) => {
            let file = stick_file(dir, args.force)?;
            let settings = settings_for(&args.device, connect).await?;
            let text = settings.text().map_err(CliError::new)?;
            write_stick(dir, &text, args.force)?;
            out.line(&format!("{} written", file.display()))
        }
        _ => Err(CliError::usage("--image and --out, or --stick, are needed")),
    }
}

/// The settings, with a token that was given or is made now.
async fn settings_for(device: &Device, connect: impl Connect) -> Result<Settings, CliError> {
    let mut settings = stand_in(device);
    if device.token.is_none() {
        let site = token::parse_site(settings.site.as_deref().unwrap_or_default())
            .map_err(|e| CliError::usage(format!("--site: {e}")))?;
        let wanted = token::Wanted {
            site,
            ttl: device.ttl,
            uses: device.uses,
            control: device.control.clone(),
        };
        let made = token::make(&connect().await?, &wanted).await?;
        // What the fleet says of itself goes to devices: it has to be what they take.
        let told = |what: &str| CliError::new(format!("the control plane names no usable {what}"));
        settings.control = settings::control(&made.control)
            .map_err(|_| told("address").hint("give it with --control HOST:PORT"))?;
        settings.token = settings::token(&made.token).map_err(|_| told("token"))?;
        settings.ca_fingerprint =
            settings::ca_fingerprint(&made.fingerprint).map_err(|_| told("CA fingerprint"))?;
    }
    Ok(settings)
}

/// The settings as far as they are known, and something of the longest length where they are not.
fn stand_in(device: &Device) -> Settings {
    let known = |value: &Option<String>, longest: usize| {
        value.clone().unwrap_or_else(|| "0".repeat(longest))
    };
    Settings {
        control: known(&device.control, 253 + ":65535".len()),
        token: known(&device.token, 40),
        ca_fingerprint: known(&device.ca_fingerprint, "sha256:".len() + 64),
        site: device.site.clone(),
        labels: device.labels.clone(),
        hostname: device.hostname.clone(),
    }
}

/// Runs work of minutes beside the signals; Ctrl-C has it end and tidy up.
async fn interruptible(
    work: impl FnOnce(&AtomicBool) -> Result<String, CliError> + Send + 'static,
) -> Result<String, CliError> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let mut work = tokio::task::spawn_blocking(move || work(&seen));
    let ended = tokio::select! {
        ended = &mut work => ended,
        Ok(()) = tokio::signal::ctrl_c() => {
            stop.store(true, Ordering::Relaxed);
            work.await
        }
    };
    ended.unwrap_or_else(|e| Err(CliError::new(format!("the copy ended early: {e}"))))
}

/// An image that is prepared.
struct Image {
    name: String,
    file: File,
    overlay: Overlay,
    partition: Partition,
    text: String,
}

/// How compressed files begin, and what unpacks them.
const COMPRESSED: [(&[u8], &str); 5] = [
    (b"\x28\xb5\x2f\xfd", "unzstd"),
    (b"\xfd7zXZ\0", "unxz"),
    (b"\x1f\x8b", "gunzip"),
    (b"BZh", "bunzip2"),
    (b"PK\x03\x04", "unzip"),
];

impl Image {
    fn open(path: &Path) -> Result<Self, CliError> {
        let name = format!("--image {}", path.display());
        let failed = |e: io::Error| CliError::new(format!("{name}: {e}"));
        let file = File::open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(CliError::new(format!("{name}: not a file")));
        }
        let mut overlay = Overlay::new(file.try_clone().map_err(failed)?).map_err(failed)?;
        let partition = fat::find(&mut overlay).map_err(|e| {
            let error = CliError::new(format!("{name}: {e}"));
            let mut begin = [0; 6];
            let begin = match overlay.read_at(&mut begin, 0) {
                Ok(()) => &begin[..],
                Err(_) => &[],
            };
            match COMPRESSED
                .iter()
                .find(|(magic, _)| begin.starts_with(magic))
            {
                Some((_, tool)) => error.hint(format!("it is compressed: unpack it with {tool}")),
                None => error,
            }
        })?;
        Ok(Self {
            name,
            file,
            overlay,
            partition,
            text: String::new(),
        })
    }

    /// Puts settings into what will be written.
    fn put(&mut self, settings: &Settings) -> Result<(), CliError> {
        self.text = settings.text().map_err(CliError::new)?;
        fat::put(&mut self.overlay, &self.partition, &self.text)
            .map_err(|e| CliError::new(format!("{}: {e}", self.name)))
    }

    /// Writes it, reads it back, and says what was done.
    fn write(&self, target: &Target, stop: &AtomicBool) -> Result<String, CliError> {
        let place = target.describe();
        let len = self.overlay.bytes();
        let failed =
            |e: io::Error| CliError::new(format!("{place}: {e}")).hint(target.after_failure());
        let output = target.open(len)?;
        let written =
            copy::write(&self.overlay, &output.file, output.fresh, stop).map_err(failed)?;
        let back = copy::read(&output.file, len, stop).map_err(failed)?;
        let mut there = output
            .file
            .try_clone()
            .and_then(Overlay::new)
            .map_err(failed)?;
        let conf = fat::get(&mut there, &self.partition).ok();
        if written.digest != back.digest || conf.as_deref() != Some(self.text.as_bytes()) {
            return Err(CliError::new(format!(
                "{place}: what is read back is not what was written"
            ))
            .hint("is the card or stick worn out? Write another one"));
        }
        target.keep(output)?;
        let hex: String = written.digest.iter().map(|b| format!("{b:02x}")).collect();
        let Partition { number, name, .. } = &self.partition;
        Ok(format!(
            "written    {}, of them {} data, {}\nverified   {}, sha256 {hex}\nsettings   {} on partition {number} {name:?}\n",
            progress::size(len),
            progress::size(written.data),
            progress::rate(len, written.took),
            progress::rate(len, back.took),
            settings::FILE,
        ))
    }
}

/// The file on a stick, if it may be written.
fn stick_file(dir: &Path, force: bool) -> Result<PathBuf, CliError> {
    if !dir.is_dir() {
        return Err(CliError::new(format!(
            "--stick {}: no such folder",
            dir.display()
        )));
    }
    let file = dir.join(settings::FILE);
    if file.exists() && !force {
        return Err(CliError::new(format!("{}: there already", file.display()))
            .hint("--force writes it anew"));
    }
    Ok(file)
}

fn write_stick(dir: &Path, text: &str, force: bool) -> Result<(), CliError> {
    let path = dir.join(settings::FILE);
    let write = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        if force {
            file.persist(&path)?;
        } else {
            file.persist_noclobber(&path)?;
        }
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| CliError::new(format!("{}: {e}", path.display())))
}
