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
    if !asked_site.is_empty() && asked_site != site {
        return Err(TokenError::Site {
            id: id(),
            site,
            asked: asked_site.to_owned(),
        });
    }
    Ok((site, left))
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
    let name = format!("join-token-{}", presented.id);
    let api = |e: kube::Error| TokenError::Api(presented.id.to_owned(), Box::new(e));
    loop {
        let Some(mut stored) = secrets.get_opt(&name).await.map_err(api)? else {
            return Err(TokenError::Wrong(presented.id.to_owned()));
        };
        let (site, left) = verify(&presented, &stored, asked_site, Timestamp::now())?;
        let data = stored.data.get_or_insert_with(BTreeMap::new);
        data.insert(
            "uses-left".to_owned(),
            ByteString((left - 1).to_string().into_bytes()),
        );
        match secrets
            .replace(&name, &PostParams::default(), &stored)
            .await
        {
            Ok(_) => return Ok(site),
            // Somebody else took a use meanwhile: look again.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(e) => return Err(api(e)),
        }
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
