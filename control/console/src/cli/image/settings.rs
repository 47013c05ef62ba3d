//! `hyperion.conf`: what a device takes at its first boot. The rules are those of `hyperion-enrol` on
//! the device, and of the agent behind it; tests ask that program about every rule.

use std::sync::LazyLock;

use regex::Regex;

/// Name of the file, on the root of a FAT volume.
pub const FILE: &str = "hyperion.conf";
/// A device reads no more of it, bytes.
const MOST_BYTES: usize = 16 * 1024;
/// A join token is at most this long.
const MOST_TOKEN: usize = 256;

/// Settings of a device. Each part was checked when it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Address of the control plane, `HOST:PORT`.
    pub control: String,
    /// Join token, `ID.SECRET`. A secret.
    pub token: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub ca_fingerprint: String,
    /// Site; where there is none, that of the token.
    pub site: Option<String>,
    /// `KEY=VALUE`.
    pub labels: Vec<String>,
    /// Name of the device; where there is none, its serial names it.
    pub hostname: Option<String>,
}

impl Settings {
    /// The text of the file. Its last line is `end`: a file that was cut off has none.
    ///
    /// # Errors
    /// It is longer than a device reads.
    pub fn text(&self) -> Result<String, String> {
        let mut lines = vec![
            format!("control={}", self.control),
            format!("token={}", self.token),
            format!("ca-fingerprint={}", self.ca_fingerprint),
        ];
        lines.extend(self.site.iter().map(|site| format!("site={site}")));
        lines.extend(self.labels.iter().map(|label| format!("label={label}")));
        lines.extend(self.hostname.iter().map(|name| format!("hostname={name}")));
        lines.push("end\n".to_owned());
        let text = lines.join("\n");
        if text.len() > MOST_BYTES {
            let bytes = text.len();
            return Err(format!(
                "{FILE} would have {bytes} bytes; a device reads {MOST_BYTES}: give fewer labels"
            ));
        }
        Ok(text)
    }
}

/// A rule for a whole value.
fn rule(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$"))
        .expect("the rules of this module are regular expressions")
}

/// A word of a label: begins and ends with a letter or digit, at most 63 characters.
const WORD: &str = "[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?";
/// A part of a domain name.
const PART: &str = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?";

static CONTROL: LazyLock<Regex> = LazyLock::new(|| {
    rule(r"(?:\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})")
});
static TOKEN: LazyLock<Regex> = LazyLock::new(|| rule(r"[a-z0-9]+\.[a-z0-9]+"));
static FINGERPRINT: LazyLock<Regex> = LazyLock::new(|| rule("sha256:[0-9A-Fa-f]{64}"));
static SITE: LazyLock<Regex> = LazyLock::new(|| rule("[a-z0-9-]{1,63}"));
static LABEL: LazyLock<Regex> =
    LazyLock::new(|| rule(&format!(r"(?:{PART}(?:\.{PART})*/)?{WORD}=(?:{WORD})?")));
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| rule(PART));

fn checked(text: &str, good: bool, expected: &str) -> Result<String, String> {
    if good {
        Ok(text.to_owned())
    } else {
        Err(expected.to_owned())
    }
}

/// Reads the address of a control plane.
///
/// # Errors
/// Says what is expected.
pub fn control(text: &str) -> Result<String, String> {
    let port = CONTROL.captures(text).and_then(|c| c.get(1));
    let good = port.is_some_and(|port| port.as_str().parse::<u16>().is_ok());
    checked(
        text,
        good,
        "HOST:PORT is expected; an IPv6 address goes in brackets",
    )
}

/// Reads a join token.
///
/// # Errors
/// Says what is expected, without the secret.
pub fn token(text: &str) -> Result<String, String> {
    let good = text.len() <= MOST_TOKEN && TOKEN.is_match(text);
    checked(text, good, "not a join token; ID.SECRET is expected")
}

/// Reads the fingerprint of the fleet's CA.
///
/// # Errors
/// Says what is expected.
pub fn ca_fingerprint(text: &str) -> Result<String, String> {
    checked(
        text,
        FINGERPRINT.is_match(text),
        "sha256: and 64 hexadecimal digits are expected",
    )
}

/// Reads a site.
///
/// # Errors
/// Says what is expected.
pub fn site(text: &str) -> Result<String, String> {
    checked(
        text,
        SITE.is_match(text),
        "lower-case letters, digits and dashes are expected, at most 63",
    )
}

/// Reads a label.
///
/// # Errors
/// Says what is expected.
pub fn label(text: &str) -> Result<String, String> {
    checked(
        text,
        LABEL.is_match(text),
        "KEY=VALUE is expected, as for a label of Kubernetes",
    )
}

/// Reads the name of a device.
///
/// # Errors
/// Says what is expected.
pub fn hostname(text: &str) -> Result<String, String> {
    checked(
        text,
        HOSTNAME.is_match(text),
        "lower-case letters, digits and dashes are expected, at most 63",
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn good() -> Settings {
        Settings {
            control: "fleet.example:7444".to_owned(),
            token: "abc.def0".to_owned(),
            ca_fingerprint: format!("sha256:{}", "0A".repeat(32)),
            site: Some("hall-3".to_owned()),
            labels: vec!["hyperion.io/line=4".to_owned(), "rack=".to_owned()],
            hostname: Some("press-7".to_owned()),
        }
    }

    /// Would the device take a file of this text?
    fn device_takes(dir: &Path, text: &str) -> bool {
        let file = dir.join(FILE);
        std::fs::write(&file, text).unwrap();
        let program = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../images/first-boot/hyperion-enrol"
        );
        let done = Command::new("sh")
            .arg(program)
            .arg("--check")
            .arg(&file)
            .output()
            .unwrap();
        match done.status.code() {
            Some(0) => true,
            Some(1) => false,
            _ => panic!("{done:?}"),
        }
    }

    #[test]
    fn a_device_takes_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let whole = good();
        assert!(device_takes(dir.path(), &whole.text().unwrap()));
        let least = Settings {
            site: None,
            labels: Vec::new(),
            hostname: None,
            ..good()
        };
        assert!(device_takes(dir.path(), &least.text().unwrap()));
        // Cut off, it does not.
        let text = whole.text().unwrap();
        assert!(!device_takes(dir.path(), &text[..text.len() - 3]));
    }

    #[test]
    fn a_file_that_a_device_would_not_read_to_its_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut long = good();
        long.labels = vec![format!("a={}", "b".repeat(63)); 220];
        let text = long.text().unwrap();
        assert!(text.len() <= MOST_BYTES && device_takes(dir.path(), &text));
        long.labels.extend(long.labels.clone());
        assert!(long.text().unwrap_err().contains("fewer labels"));
    }

    #[test]
    fn each_rule_is_that_of_the_device() {
        type Read = fn(&str) -> Result<String, String>;
        let long = |n| "a".repeat(n);
        let rules: [(&str, Read, Vec<String>); 6] = [
            (
                "control",
                control,
                [
                    "a:1",
                    "fleet.example:7444",
                    "[fd00::1]:7444",
                    "[fe80::1%eth0.2]:1",
                    "a_b-c:65535",
                    "10.0.0.1:7444",
                    "",
                    "a",
                    "a:",
                    ":1",
                    "a:0",
                    "a:01",
                    "a:65536",
                    "a:70000",
                    "a:123456",
                    "a b:1",
                    "$(reboot):1",
                    "fd00::1:7444",
                    "[fd00::1]",
                    "[g]:1",
                    "a:1 --x",
                    "a:1\"",
                    "ä:1",
                ]
                .map(str::to_owned)
                .to_vec(),
            ),
            (
                "token",
                token,
                [
                    "abc.def0", "a.b", "", ".", "a.", ".b", "a", "A.b", "a.b.c", "a b.c", "a-b.c",
                    "a.é",
                ]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("a.{}", long(254)), format!("a.{}", long(255))])
                .collect(),
            ),
            (
                "ca-fingerprint",
                ca_fingerprint,
                vec![
                    format!("sha256:{}", "0A".repeat(32)),
                    format!("sha256:{}", "0a".repeat(31)),
                    format!("sha256:{}", "0a".repeat(33)),
                    format!("sha256:{}", "0g".repeat(32)),
                    format!("SHA256:{}", "0a".repeat(32)),
                    "0a".repeat(32),
                    String::new(),
                ],
            ),
            (
                "site",
                site,
                [
                    "a",
                    "hall-3",
                    "-a",
                    "0",
                    "",
                    "A",
                    "a.b",
                    "a b",
                    "a --root=/x",
                    "ü",
                ]
                .map(str::to_owned)
                .into_iter()
                .chain([long(63), long(64)])
                .collect(),
            ),
            (
                "label",
                label,
                [
                    "a=b",
                    "a=",
                    "hyperion.io/line=4",
                    "A.b-c_d=E.f",
                    "a.b.c/d=e",
                    "",
                    "a",
                    "=b",
                    "a=b=c",
                    "a/b/c=d",
                    "/a=b",
                    "a..b/c=d",
                    ".a/b=c",
                    "a./b=c",
                    "-a/b=c",
                    "-a=b",
                    "a-=b",
                    "a=-b",
                    "a=b-",
                    "a=b c",
                    "a=b\" --x=\"",
                    "a b=c",
                    "A.io/b=c",
                    "a_b/c=d",
                ]
                .map(str::to_owned)
                .into_iter()
                .chain([63, 64].into_iter().flat_map(|n| {
                    [
                        format!("{}=b", long(n)),
                        format!("a={}", long(n)),
                        format!("{}/a=b", long(n)),
                    ]
                }))
                .collect(),
            ),
            (
                "hostname",
                hostname,
                [
                    "a", "press-7", "0", "", "-a", "a-", "A", "a.b", "a_b", "a b",
                ]
                .map(str::to_owned)
                .into_iter()
                .chain([long(63), long(64)])
                .collect(),
            ),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (key, read, values) in rules {
            for value in values {
                // A later line of a key that is there once takes the place of the earlier one.
                let text = good().text().unwrap().replace("end\n", "");
                let text = format!("{text}{key}={value}\nend\n");
                let here = read(&value);
                assert_eq!(
                    here.is_ok(),
                    device_takes(dir.path(), &text),
                    "{key}={value:?}"
                );
                if let Err(said) = here {
                    assert!(
                        value.len() < 5 || !said.contains(&value),
                        "{key}: a value may be a secret: {said}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_value_of_two_lines_is_refused() {
        for read in [control, token, ca_fingerprint, site, label, hostname] {
            for value in ["a\nend", "a:1\nend", "a.b\n", "a=b\n", "a\n", "a\r"] {
                assert!(read(value).is_err(), "{value:?}");
            }
        }
    }
}
