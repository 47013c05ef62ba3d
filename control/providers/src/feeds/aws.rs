//! AWS: spot prices from EC2's `DescribeSpotPriceHistory`, by region and zone, and on-demand prices
//! from the price list's `GetProducts`.
//!
//! Both requests are ours, signed by `aws-sigv4`; credentials come from the standard chain
//! (`aws-config`: environment, profile, web identity, container, instance). The EC2 client of the
//! SDK would bring some 700 operations for the one that is needed here.

mod list;
mod spot;

use std::time::SystemTime;

use aws_config::BehaviorVersion;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use aws_smithy_http_client::tls;
use aws_smithy_runtime_api::client::identity::Identity;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::Full;
use hyperion_placement::model::Provider;
use jiff::Timestamp;

use super::http::{CREDENTIALS, Http, address, chain};
use super::{Failure, Fetched, Reason};
use crate::shapes::SHAPES;

/// Where the price list is served from, for all regions.
const LIST_REGION: &str = "us-east-1";

/// The feed.
#[derive(Debug, Clone)]
pub struct Aws {
    http: Http,
    regions: Vec<String>,
    access: Access,
}

/// Who asks, and whom.
#[derive(Debug, Clone)]
enum Access {
    /// The standard chain, and `AWS_ENDPOINT_URL` or the profile's `endpoint_url` where one is set.
    Standard,
    /// These.
    Given {
        credentials: SharedCredentialsProvider,
        endpoint: String,
    },
}

/// Ready to ask.
struct Session<'a> {
    http: &'a Http,
    identity: Identity,
    endpoint: Option<String>,
}

/// What a request is for.
struct Call<'a> {
    service: &'a str,
    region: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: String,
    what: &'a str,
}

impl Aws {
    /// Of these regions, with the standard chain of credentials.
    #[must_use]
    pub fn new(http: Http, regions: Vec<String>) -> Self {
        Self {
            http,
            regions,
            access: Access::Standard,
        }
    }

    /// With these credentials, at this address instead of AWS's.
    #[must_use]
    pub fn with_access(self, credentials: Credentials, endpoint: &str) -> Self {
        Self {
            access: Access::Given {
                credentials: SharedCredentialsProvider::new(credentials),
                endpoint: endpoint.to_owned(),
            },
            ..self
        }
    }

    /// Asks for the prices of all regions.
    pub async fn fetch(&self, now: Timestamp) -> Fetched {
        let mut fetched = Fetched::default();
        let late = |_| {
            let text = format!("none within {} s", CREDENTIALS.as_secs());
            Err(Failure::new(Reason::Timeout, "AWS credentials", text))
        };
        let session = tokio::time::timeout(CREDENTIALS, self.session()).await;
        let session = match session.unwrap_or_else(late) {
            Ok(session) => session,
            Err(failure) => {
                fetched.failures.push(failure);
                return fetched;
            }
        };
        for region in &self.regions {
            let results = [
                spot::fetch(&session, region, now, &mut fetched).await,
                list::fetch(&session, region, now, &mut fetched).await,
            ];
            fetched
                .failures
                .extend(results.into_iter().filter_map(Result::err));
        }
        fetched
    }

    async fn session(&self) -> Result<Session<'_>, Failure> {
        let (provider, endpoint) = match &self.access {
            Access::Given {
                credentials,
                endpoint,
            } => (Some(credentials.clone()), Some(endpoint.clone())),
            Access::Standard => {
                let client = aws_smithy_http_client::Builder::new()
                    .tls_provider(tls::Provider::Rustls(
                        tls::rustls_provider::CryptoMode::Ring,
                    ))
                    .build_https();
                let config = aws_config::defaults(BehaviorVersion::latest())
                    .http_client(client)
                    .load()
                    .await;
                let endpoint = config.endpoint_url().map(str::to_owned);
                (config.credentials_provider(), endpoint)
            }
        };
        let wrong = |text: String| Failure::new(Reason::Credentials, "AWS credentials", text);
        let provider = provider.ok_or_else(|| wrong("there is no chain of them".to_owned()))?;
        let credentials = provider
            .provide_credentials()
            .await
            .map_err(|e| wrong(chain(&e)))?;
        Ok(Session {
            http: &self.http,
            identity: credentials.into(),
            endpoint,
        })
    }
}

impl Session<'_> {
    async fn call(&self, call: Call<'_>) -> Result<Bytes, Failure> {
        let Call {
            service,
            region,
            headers,
            body,
            what,
        } = call;
        // China's regions are under a domain of their own.
        let domain = if region.starts_with("cn-") {
            "amazonaws.com.cn"
        } else {
            "amazonaws.com"
        };
        let host = if service == "pricing" {
            "api.pricing"
        } else {
            service
        };
        let uri = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("https://{host}.{region}.{domain}/"),
        };
        let uri: Uri = address(&uri, what)?;
        let unsigned = |text: String| Failure::new(Reason::Malformed, what, text);
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request
            .body(Full::new(Bytes::from(body.clone())))
            .map_err(|e| unsigned(e.to_string()))?;
        let params = v4::SigningParams::builder()
            .identity(&self.identity)
            .region(region)
            .name(service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|e| unsigned(chain(&e)))?
            .into();
        let signable = SignableRequest::new(
            "POST",
            request.uri().to_string(),
            headers.iter().copied(),
            SignableBody::Bytes(body.as_bytes()),
        )
        .map_err(|e| unsigned(chain(&e)))?;
        let (instructions, _) = sign(signable, &params)
            .map_err(|e| unsigned(chain(&e)))?
            .into_parts();
        instructions.apply_to_request_http1x(&mut request);
        self.http.send(request, what).await
    }
}

/// The types that are known.
fn known_types() -> impl Iterator<Item = &'static str> {
    let ours = SHAPES.iter().filter(|s| s.provider == Provider::Aws);
    ours.map(|s| s.instance_type)
}
