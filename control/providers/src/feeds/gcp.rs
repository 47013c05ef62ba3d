//! GCP: the Cloud Billing Catalog. It has no prices of machines but of their parts, which are put
//! together by [`sku`].

mod sku;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use gcp_auth::TokenProvider;
use http::{HeaderValue, Request, header};
use http_body_util::Full;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::OnceCell;

use super::http::{CREDENTIALS, Http, address, chain};
use super::pages::Pages;
use super::{Failure, Fetched, Reason};
use sku::Parts;

/// Where the catalog is. Compute Engine is service 6F81-5844-456A.
pub const ENDPOINT: &str = "https://cloudbilling.googleapis.com";
const PATH: &str = "v1/services/6F81-5844-456A/skus";
/// The least that reads the catalog.
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-billing.readonly";
const WHAT: &str = "GCP billing catalog";

/// Who asks.
#[derive(Clone)]
pub enum Access {
    /// An API key; it goes into a header, never into an address.
    Key(String),
    /// Application default credentials, found at the first request: the file that
    /// `GOOGLE_APPLICATION_CREDENTIALS` names, that of `gcloud`, the metadata server.
    Default(Arc<OnceCell<Arc<dyn TokenProvider>>>),
    /// These.
    Given(Arc<dyn TokenProvider>),
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key",
            Self::Default(_) => "Default",
            Self::Given(_) => "Given",
        })
    }
}

/// The feed.
#[derive(Debug, Clone)]
pub struct Gcp {
    http: Http,
    endpoint: String,
    access: Access,
    regions: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    skus: Vec<serde_json::Value>,
    #[serde(default)]
    next_page_token: String,
}

impl Gcp {
    /// Of these regions.
    #[must_use]
    pub fn new(http: Http, endpoint: &str, access: Access, regions: Vec<String>) -> Self {
        Self {
            http,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            access,
            regions: regions.into_iter().collect(),
        }
    }

    /// Asks for the whole catalog. Parts on pages that did not come are missing: what can be put
    /// together without them counts.
    pub async fn fetch(&self, now: Timestamp) -> Fetched {
        let mut fetched = Fetched::default();
        let mut parts = Parts::new(self.regions.clone());
        if let Err(failure) = self.pages(&mut parts, &mut fetched, now).await {
            fetched.failures.push(failure);
        }
        let complete = fetched.failures.is_empty();
        parts.machines(now, complete, &mut fetched);
        fetched
    }

    async fn pages(
        &self,
        parts: &mut Parts,
        fetched: &mut Fetched,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let mut pages = Pages::new(WHAT);
        let mut token = None;
        loop {
            let body = self.page(token.as_deref()).await?;
            let page: Page = serde_json::from_slice(&body).map_err(|e| pages.malformed(e))?;
            for sku in &page.skus {
                parts.take(sku, now, fetched);
            }
            token = pages.read(page.skus.len(), Some(page.next_page_token))?;
            if token.is_none() {
                return Ok(());
            }
        }
    }

    async fn page(&self, token: Option<&str>) -> Result<Bytes, Failure> {
        let mut uri = format!("{}/{PATH}?currencyCode=USD&pageSize=1000", self.endpoint);
        if let Some(token) = token {
            let token = utf8_percent_encode(token, NON_ALPHANUMERIC);
            uri = format!("{uri}&pageToken={token}");
        }
        let wrong = |text: String| Failure::new(Reason::Credentials, WHAT, text);
        let late = |_| {
            let text = format!("no token within {} s", CREDENTIALS.as_secs());
            Failure::new(Reason::Timeout, WHAT, text)
        };
        let (name, secret) = tokio::time::timeout(CREDENTIALS, self.secret())
            .await
            .map_err(late)??;
        let mut secret = HeaderValue::from_str(&secret)
            .map_err(|_| wrong("the key or token holds what no header can".to_owned()))?;
        secret.set_sensitive(true);
        let request = Request::get(address(&uri, WHAT)?)
            .header(name, secret)
            .body(Full::default())
            .map_err(|e| wrong(e.to_string()))?;
        self.http.send(request, WHAT).await
    }

    /// Header and value.
    async fn secret(&self) -> Result<(header::HeaderName, String), Failure> {
        let failed = |e: gcp_auth::Error| Failure::new(Reason::Credentials, WHAT, chain(&e));
        let provider = match &self.access {
            Access::Key(key) => {
                return Ok((
                    header::HeaderName::from_static("x-goog-api-key"),
                    key.clone(),
                ));
            }
            Access::Default(cell) => cell
                .get_or_try_init(gcp_auth::provider)
                .await
                .map_err(failed)?,
            Access::Given(provider) => provider,
        };
        let token = provider.token(&[SCOPE]).await.map_err(failed)?;
        Ok((header::AUTHORIZATION, format!("Bearer {}", token.as_str())))
    }
}
