//! Join tokens: `<id>.<secret>`. The cluster keeps the secret's hash only; the token is shown once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::OutputArgs;
use super::lists::{list_all, now_ms};
use super::output::Out;
use super::table;
use crate::connect::Connection;
use crate::error::CliError;
use crate::fleet::column::{Cell, Column, Context};
use crate::text::{Tone, clean};

const NAMESPACE: &str = "hyperion-system";
const TYPE: &str = "hyperion.io/join-token";
const PREFIX: &str = "join-token-";
const CA: &str = "hyperion-ca";
/// Port that agents connect to where nothing else is said.
const LINK_PORT: u16 = 7444;
const ID_CHARS: usize = 8;
/// 26 characters of 36 are 134 bits.
const SECRET_CHARS: usize = 26;
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);

/// Commands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a join token and print it, once
    Create(Create),
    /// List join tokens
    List(OutputArgs),
    /// Make a join token useless; nodes that joined with it stay
    Revoke {
        /// Id: the part of the token before the dot
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Flags of `token create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    /// Site that nodes join with this token
    #[arg(long, value_name = "NAME", value_parser = parse_site)]
    pub site: String,
    /// How long the token can be used, for example 30m, 1h, 7d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_ttl)]
    pub ttl: Duration,
    /// How many nodes may join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub uses: u32,
    /// Address of the control plane for agents, for the printed command; by default what
    /// hyperion-control says of itself, or the API server's host and port 7444
    #[arg(long, value_name = "HOST:PORT")]
    pub control: Option<String>,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Reads the site of a token.
///
/// # Errors
/// Says what is expected.
pub fn parse_site(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = (1..=63).contains(&text.len())
        && text.chars().all(|c| plain(c) || c == '-')
        && text.starts_with(plain)
        && text.ends_with(plain);
    if good {
        Ok(text.to_owned())
    } else {
        Err("a site is 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends".to_owned())
    }
}

/// Reads how long a token lives.
///
/// # Errors
/// Says what is expected.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
        return Err("a token lives at least 1s and at most 366d".to_owned());
    }
    Ok(ttl)
}

/// Runs it.
///
/// # Errors
/// As the API server says.
pub async fn run(connection: &Connection, command: &Command, out: &Out) -> Result<(), CliError> {
    match command {
        Command::Create(args) => create(connection, args, out).await,
        Command::List(args) => list(connection, args, out).await,
        Command::Revoke { id } => revoke(connection, id, out).await,
    }
}

/// A token that is wanted.
#[derive(Debug)]
pub struct Wanted {
    /// Site that nodes join with it.
    pub site: String,
    /// How long it can be used.
    pub ttl: Duration,
    /// How many nodes may join with it.
    pub uses: u32,
    /// Address of the control plane, where it is not to be asked for.
    pub control: Option<String>,
}

/// A token that was made, and what goes with it.
pub struct Made {
    id: String,
    /// The token. A secret.
    pub token: String,
    /// Fingerprint of the fleet's CA.
    pub fingerprint: String,
    /// Address of the control plane for agents.
    pub control: String,
    expires: Timestamp,
}

/// Makes a token.
///
/// # Errors
/// As the API server says.
pub async fn make(connection: &Connection, wanted: &Wanted) -> Result<Made, CliError> {
    let Fleet { fingerprint, link } = fleet(connection).await?;
    let (id, secret) = (random(ID_CHARS), random(SECRET_CHARS));
    let ttl = SignedDuration::try_from(wanted.ttl).unwrap_or(SignedDuration::from_hours(1));
    let expires = Timestamp::now()
        .checked_add(ttl)
        .and_then(|t| t.round(jiff::Unit::Second))
        .map_err(|e| CliError::usage(format!("--ttl: {e}")))?;
    let api: Api<Secret> = Api::namespaced(connection.client.clone(), NAMESPACE);
    api.create(
        &PostParams::default(),
        &stored(&id, &secret, &wanted.site, expires, wanted.uses),
    )
    .await
    .map_err(|e| CliError::api("store the join token", &e))?;
    let control = match &wanted.control {
        Some(address) => address.clone(),
        None => link_address(&connection.server, link.as_deref()),
    };
    Ok(Made {
        token: format!("{id}.{secret}"),
        id,
        fingerprint,
        control,
        expires,
    })
}

async fn create(connection: &Connection, args: &Create, out: &Out) -> Result<(), CliError> {
    let wanted = Wanted {
        site: args.site.clone(),
        ttl: args.ttl,
        uses: args.uses,
        control: args.control.clone(),
    };
    let Made {
        id,
        token,
        fingerprint,
        control,
        expires,
    } = make(connection, &wanted).await?;
    let command = format!(
        "hyperion-agent --control {control} --token {token} --ca-fingerprint {fingerprint} --site {}",
        args.site
    );
    if let Some(format) = args.output.output {
        return out.value(
            format,
            &json!({
                "id": id, "token": token, "caFingerprint": fingerprint, "site": args.site,
                "expires": expires.to_string(), "uses": args.uses, "command": command,
            }),
        );
    }
    let nodes = if args.uses == 1 { "node" } else { "nodes" };
    out.write(
        format!(
            "token           {token}\nca fingerprint  {fingerprint}\nsite            {}\nvalid           until {expires}, for {} {nodes}\n\nOn the device, as root:\n\n  {command}\n",
            args.site, args.uses
        )
        .as_bytes(),
    )
}

/// The Secret of a token, as the gateway reads it.
fn stored(id: &str, secret: &str, site: &str, expires: Timestamp, uses: u32) -> Secret {
    let hash: String = Sha256::digest(secret)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let data = [
        ("secret-sha256", hash),
        ("site", site.to_owned()),
        ("expires", expires.to_string()),
        ("uses-left", uses.to_string()),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(format!("{PREFIX}{id}")),
            namespace: Some(NAMESPACE.to_owned()),
            ..Default::default()
        },
        type_: Some(TYPE.to_owned()),
        data: Some(
            data.into_iter()
                .map(|(k, v)| (k.to_owned(), ByteString(v.into_bytes())))
                .collect(),
        ),
        ..Default::default()
    }
}

/// A control plane that was started a moment ago makes the CA soon. The tests' API is not patient.
const CA_COMES: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });

const NO_CA: &str = "start hyperion-control once: it makes the CA";

/// What hyperion-control says of its fleet.
struct Fleet {
    fingerprint: String,
    /// Where agents find it, `HOST:PORT` or `:PORT`; older ones do not say it.
    link: Option<String>,
}

async fn fleet(connection: &Connection) -> Result<Fleet, CliError> {
    let deadline = Instant::now() + CA_COMES;
    loop {
        match fleet_now(connection).await {
            Ok(None) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Ok(None) => {
                let text = format!("the fleet has no CA yet: no ConfigMap {NAMESPACE}/{CA}");
                return Err(CliError::new(text).hint(NO_CA));
            }
            Ok(Some(fleet)) => return Ok(fleet),
            Err(e) => return Err(e),
        }
    }
}

async fn fleet_now(connection: &Connection) -> Result<Option<Fleet>, CliError> {
    let api: Api<ConfigMap> = Api::namespaced(connection.client.clone(), NAMESPACE);
    let map = api
        .get_opt(CA)
        .await
        .map_err(|e| CliError::api("read the CA's fingerprint", &e))?;
    let Some(map) = map else { return Ok(None) };
    let mut data = map.data.unwrap_or_default();
    let (fingerprint, link) = (data.remove("fingerprint"), data.remove("link-address"));
    let fingerprint = fingerprint.ok_or_else(|| {
        CliError::new(format!(
            "ConfigMap {NAMESPACE}/{CA} has no key \"fingerprint\""
        ))
        .hint(NO_CA)
    })?;
    Ok(Some(Fleet {
        fingerprint: clean(&fingerprint).into_owned(),
        link,
    }))
}

/// Where agents find the control plane: as it says itself, with the API server's host where it
/// names none.
fn link_address(server: &str, said: Option<&str>) -> String {
    let said = said.and_then(|s| {
        let (host, port) = s.rsplit_once(':')?;
        let port = port.parse::<u16>().ok().filter(|p| *p > 0)?;
        // It becomes part of a command that people paste.
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-[]:".contains(c);
        host.chars().all(plain).then_some((host, port))
    });
    let (host, port) = said.unwrap_or(("", LINK_PORT));
    if !host.is_empty() {
        return format!("{host}:{port}");
    }
    let uri: Option<http::Uri> = server.parse().ok();
    let host = uri.as_ref().and_then(http::Uri::host).unwrap_or("CONTROL");
    format!("{host}:{port}")
}

/// Random characters of a-z and 0-9.
fn random(count: usize) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    (0..count)
        .map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())]))
        .collect()
}

/// A token without its secret.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    site: String,
    uses_left: String,
    expires: String,
    state: &'static str,
}

impl Listed {
    fn from(secret: &Secret, now: Timestamp) -> Option<Self> {
        if secret.type_.as_deref() != Some(TYPE) {
            return None;
        }
        let id = secret.metadata.name.as_deref()?.strip_prefix(PREFIX)?;
        let empty = BTreeMap::new();
        let data = secret.data.as_ref().unwrap_or(&empty);
        let field = |key: &str| {
            let bytes = data.get(key).map_or(&[][..], |b| &b.0);
            clean(&String::from_utf8_lossy(bytes)).into_owned()
        };
        let expires: Option<Timestamp> = field("expires").parse().ok();
        let state = match (field("uses-left").parse::<u64>(), expires) {
            _ if field("revoked") == "true" => "Revoked",
            (Err(_), _) | (_, None) => "Damaged",
            (_, Some(until)) if now >= until => "Expired",
            (Ok(0), _) => "Used",
            _ => "Usable",
        };
        Some(Self {
            id: clean(id).into_owned(),
            site: field("site"),
            uses_left: field("uses-left"),
            expires: field("expires"),
            state,
        })
    }

    fn cells(&self, context: Context) -> Vec<Cell> {
        let tone = if self.state == "Usable" {
            Tone::Good
        } else {
            Tone::Dim
        };
        let left = self.expires.parse::<Timestamp>().map_or_else(
            |_| Cell::unknown(),
            |t| match (t.as_millisecond() - context.now_ms) / 1000 {
                seconds if seconds > 0 => Cell::plain(crate::text::age(seconds)),
                _ => Cell::unknown(),
            },
        );
        vec![
            Cell::toned(&*self.id, Tone::Strong),
            Cell::plain(&*self.site),
            Cell::toned(self.state, tone),
            Cell::plain(&*self.uses_left),
            left,
            Cell::plain(&*self.expires),
        ]
    }
}

async fn list(connection: &Connection, args: &OutputArgs, out: &Out) -> Result<(), CliError> {
    let api: Api<Secret> = Api::namespaced(connection.client.clone(), NAMESPACE);
    let secrets = list_all(&api, ListParams::default(), "list join tokens").await?;
    let now = Timestamp::now();
    let tokens: Vec<Listed> = secrets
        .iter()
        .filter_map(|s| Listed::from(s, now))
        .collect();
    if let Some(format) = args.output {
        return out.value(format, &json!({"items": tokens}));
    }
    const COLUMNS: [Column; 6] = [
        Column::text("TOKEN", 'n', 8, 32, 0),
        Column::text("SITE", 'i', 4, 63, 0),
        Column::text("STATE", 't', 7, 7, 0),
        Column::number("USES", 'e', 4, 6, 1),
        Column::number("LEFT", 'f', 5, 6, 2),
        Column::text("EXPIRES", 'x', 20, 30, 3),
    ];
    let context = Context { now_ms: now_ms() };
    let cells = tokens.iter().map(|t| t.cells(context)).collect();
    out.write(table::render_cells(&COLUMNS, cells, out).as_bytes())
}

async fn revoke(connection: &Connection, id: &str, out: &Out) -> Result<(), CliError> {
    // People paste what they have: the whole token is as good as its id.
    let id = id.split('.').next().unwrap_or(id);
    let api: Api<Secret> = Api::namespaced(connection.client.clone(), NAMESPACE);
    let data = BTreeMap::from([("revoked", ByteString(b"true".to_vec()))]);
    api.patch(
        &format!("{PREFIX}{id}"),
        &PatchParams::default(),
        &Patch::Merge(json!({ "data": data })),
    )
    .await
    .map_err(|e| {
        if matches!(&e, kube::Error::Api(status) if status.code == 404) {
            return CliError::new(format!("no join token {id:?}"))
                .hint("`hyperion token list` shows their ids");
        }
        CliError::api(&format!("revoke join token {id}"), &e)
    })?;
    out.line(&format!("join token {} revoked", clean(id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_stored_token_has_the_hash_and_not_the_secret() {
        let secret = stored("abc", "s3cret", "lab", at("2030-01-01T00:00:00Z"), 2);
        let data = secret.data.clone().unwrap();
        let expected = "1ec1c26b50d5d3c58d9583181af8076655fe00756bf7285940ba3670f99fcba0";
        assert_eq!(data["secret-sha256"].0, expected.as_bytes());
        assert_eq!(data["expires"].0, b"2030-01-01T00:00:00Z");
        assert_eq!(secret.metadata.name.as_deref(), Some("join-token-abc"));
        assert!(!serde_json::to_string(&secret).unwrap().contains("s3cret"));
    }

    #[test]
    fn tokens_are_listed_by_what_they_are_good_for() {
        let now = at("2026-01-01T00:00:00Z");
        let state = |uses, expires: &str, revoked: bool| {
            let mut secret = stored("abc", "s", "lab", at(expires), uses);
            if revoked {
                let data = secret.data.as_mut().unwrap();
                data.insert("revoked".to_owned(), ByteString(b"true".to_vec()));
            }
            Listed::from(&secret, now).unwrap().state
        };
        assert_eq!(state(1, "2030-01-01T00:00:00Z", false), "Usable");
        assert_eq!(state(0, "2030-01-01T00:00:00Z", false), "Used");
        assert_eq!(state(1, "2020-01-01T00:00:00Z", false), "Expired");
        assert_eq!(state(1, "2030-01-01T00:00:00Z", true), "Revoked");
        assert!(Listed::from(&Secret::default(), now).is_none());
    }

    #[test]
    fn random_parts_are_of_the_agreed_alphabet() {
        let text = random(400);
        assert!(
            text.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        );
        assert_ne!(random(26), random(26));
    }

    #[test]
    fn agents_are_sent_to_the_api_servers_host_where_nothing_else_is_said() {
        let at = |server| link_address(server, None);
        assert_eq!(at("https://10.0.0.1:6443/"), "10.0.0.1:7444");
        assert_eq!(at("https://[::1]:7443/"), "[::1]:7444");
    }

    #[test]
    fn agents_are_sent_where_the_control_plane_says() {
        let at = |said| link_address("https://10.0.0.1:6443/", Some(said));
        assert_eq!(at("edge.example:9000"), "edge.example:9000");
        assert_eq!(at("[2001:db8::1]:9000"), "[2001:db8::1]:9000");
        assert_eq!(at(":9000"), "10.0.0.1:9000");
        // Nothing but an address gets into the command.
        for bad in ["", "host", "host:0", "$(reboot):1", "a b:1", "a;b:1"] {
            assert_eq!(at(bad), "10.0.0.1:7444", "{bad}");
        }
    }
}
