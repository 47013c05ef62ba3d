//! Join tokens: `<id>.<secret>`, kept as Secrets that hold the secret's hash only.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::NAMESPACE;

/// Why a token was refused. Never shows the secret.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not `<id>.<secret>`.
    #[error("join token is malformed: expected <id>.<secret>")]
    Malformed,
    /// No such token, or the secret part is wrong: the two are not told apart.
    #[error("join token {0}: unknown, or its secret is wrong")]
    Wrong(String),
    /// Too late.
    #[error("join token {0} expired at {1}")]
    Expired(String, String),
    /// Used up.
    #[error("join token {0} has been used already")]
    Used(String),
    /// Revoked.
    #[error("join token {0} is revoked")]
    Revoked(String),
    /// For another site.
    #[error("join token {id} is for site {site:?}, not {asked:?}")]
    Site {
        /// Token id.
        id: String,
        /// The token's site.
        site: String,
        /// What the device said.
        asked: String,
    },
    /// The stored token is damaged.
    #[error("join token {0}: field {1} of its Secret is missing or invalid")]
    Damaged(String, &'static str),
    /// API server.
    #[error("join token {0}: {1}")]
    Api(String, Box<kube::Error>),
}

/// A token as a device presents it.
#[derive(Debug, PartialEq, Eq)]
pub struct Presented<'a> {
    /// Public part.
    pub id: &'a str,
    secret: &'a str,
}

impl Presented<'_> {
    /// Name of its Secret.
    fn name(&self) -> String {
        format!("join-token-{}", self.id)
    }
}

/// Splits `<id>.<secret>`.
///
/// # Errors
/// It has another form.
pub fn parse(token: &str) -> Result<Presented<'_>, TokenError> {
    let (id, secret) = token.trim().split_once('.').ok_or(TokenError::Malformed)?;
    let plain = |s: &str, max| {
        !s.is_empty()
            && s.len() <= max
            && s.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if plain(id, 32) && plain(secret, 128) {
        Ok(Presented { id, secret })
    } else {
        Err(TokenError::Malformed)
    }
}

/// Checks a presented token against its Secret; gives its site and the uses that were left.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(
    token: &Presented<'_>,
    stored: &Secret,
    asked_site: &str,
    now: Timestamp,
) -> Result<(String, u64), TokenError> {
    let id = || token.id.to_owned();
    let field = |key: &'static str| -> Result<String, TokenError> {
        let bytes = stored.data.as_ref().and_then(|d| d.get(key));
        let bytes = bytes.ok_or_else(|| TokenError::Damaged(id(), key))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| TokenError::Damaged(id(), key))
    };
    let hash: String = Sha256::digest(token.secret)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    if !bool::from(hash.as_bytes().ct_eq(field("secret-sha256")?.as_bytes())) {
        return Err(TokenError::Wrong(id()));
    }
    if field("revoked").is_ok_and(|v| v == "true") {
        return Err(TokenError::Revoked(id()));
    }
    let expires = field("expires")?;
    let until: Timestamp = expires
        .parse()
        .map_err(|_| TokenError::Damaged(id(), "expires"))?;
    if now >= until {
        return Err(TokenError::Expired(id(), expires));
    }
    let left: u64 = field("uses-left")?
        .parse()
        .map_err(|_| TokenError::Damaged(id(), "uses-left"))?;
    if left == 0 {
        return Err(TokenError::Used(id()));
    }
    let site = field("site")?;
    if !is_site(&site) {
        return Err(TokenError::Damaged(id(), "site"));
    }
    if !asked_site.is_empty() && asked_site != site {
        return Err(TokenError::Site {
            id: id(),
            site,
            asked: asked_site.to_owned(),
        });
    }
    Ok((site, left))
}

/// Node ids begin with the site: it must be good for the name of an object.
fn is_site(site: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = [site.bytes().next(), site.bytes().last()];
    ends.into_iter().all(|b| b.is_some_and(plain))
        && site.len() <= 63
        && site.bytes().all(|b| plain(b) || b == b'-')
}

/// Takes one use of a token, by compare-and-swap on its Secret; gives the site.
///
/// # Errors
/// The token is refused, or the API server can't be asked.
pub async fn redeem(
    client: &kube::Client,
    token: &str,
    asked_site: &str,
) -> Result<String, TokenError> {
    let presented = parse(token)?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let api = |e: kube::Error| TokenError::Api(presented.id.to_owned(), Box::new(e));
    loop {
        let stored = secrets.get_opt(&presented.name()).await.map_err(api)?;
        let Some(stored) = stored else {
            return Err(TokenError::Wrong(presented.id.to_owned()));
        };
        let (site, left) = verify(&presented, &stored, asked_site, Timestamp::now())?;
        // Somebody else may take a use meanwhile: then look again.
        if set_uses(&secrets, &presented, stored, left - 1)
            .await
            .map_err(api)?
        {
            return Ok(site);
        }
    }
}

/// Gives a use back after an enrolment that failed for no fault of the device.
pub async fn give_back(client: &kube::Client, token: &str) {
    let Ok(presented) = parse(token) else { return };
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    while let Ok(Some(stored)) = secrets.get_opt(&presented.name()).await {
        let uses = stored.data.as_ref().and_then(|d| d.get("uses-left"));
        let left = uses.and_then(|b| std::str::from_utf8(&b.0).ok()?.parse::<u64>().ok());
        let Some(left) = left else { return };
        let written = set_uses(&secrets, &presented, stored, left.saturating_add(1)).await;
        if !matches!(written, Ok(false)) {
            return;
        }
    }
}

/// Writes the uses left; false where the Secret changed meanwhile.
async fn set_uses(
    secrets: &Api<Secret>,
    token: &Presented<'_>,
    mut stored: Secret,
    left: u64,
) -> Result<bool, kube::Error> {
    let data = stored.data.get_or_insert_with(BTreeMap::new);
    data.insert(
        "uses-left".to_owned(),
        ByteString(left.to_string().into_bytes()),
    );
    let params = PostParams::default();
    match secrets.replace(&token.name(), &params, &stored).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(pairs: &[(&str, &str)]) -> Secret {
        let hash: String = Sha256::digest("s3cret")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let mut data = BTreeMap::from([
            ("secret-sha256".to_owned(), ByteString(hash.into_bytes())),
            ("site".to_owned(), ByteString(b"lab".to_vec())),
            (
                "expires".to_owned(),
                ByteString(b"2030-01-01T00:00:00Z".to_vec()),
            ),
            ("uses-left".to_owned(), ByteString(b"1".to_vec())),
        ]);
        for (k, v) in pairs {
            data.insert((*k).to_owned(), ByteString(v.as_bytes().to_vec()));
        }
        Secret {
            data: Some(data),
            ..Default::default()
        }
    }

    fn try_token(token: &str, site: &str, pairs: &[(&str, &str)]) -> Result<String, String> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let presented = parse(token).map_err(|e| e.to_string())?;
        verify(&presented, &stored(pairs), site, now)
            .map(|(s, _)| s)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_good_token_gives_its_site() {
        assert_eq!(try_token("abc.s3cret", "", &[]), Ok("lab".to_owned()));
        assert_eq!(try_token("abc.s3cret", "lab", &[]), Ok("lab".to_owned()));
    }

    #[test]
    fn each_bad_token_has_its_own_words_and_never_shows_the_secret() {
        let cases = [
            ("abc.wrong", "", vec![], "secret is wrong"),
            (
                "abc.s3cret",
                "",
                vec![("expires", "2020-01-01T00:00:00Z")],
                "expired at 2020",
            ),
            ("abc.s3cret", "", vec![("uses-left", "0")], "used already"),
            ("abc.s3cret", "", vec![("revoked", "true")], "revoked"),
            (
                "abc.s3cret",
                "attic",
                vec![],
                "for site \"lab\", not \"attic\"",
            ),
            (
                "abc.s3cret",
                "",
                vec![("uses-left", "many")],
                "field uses-left",
            ),
            ("abc.s3cret", "", vec![("site", "My Site")], "field site"),
            ("abc.s3cret", "", vec![("site", "")], "field site"),
            ("nodot", "", vec![], "malformed"),
            ("../x.y", "", vec![], "malformed"),
        ];
        for (token, site, pairs, expected) in cases {
            let error = try_token(token, site, &pairs).unwrap_err();
            assert!(error.contains(expected), "{token}: {error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
