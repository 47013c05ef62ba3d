//! AWS: the instance metadata service, version 2 only. A token comes first; without it nothing is
//! asked, so that a service which only knows version 1 is none. In a container that has a network of
//! its own the token does not arrive where the machine's hop limit is 1, which is EC2's default.

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use hyperion_proto::agent_v1::{Interruption, InterruptionKind};
use serde::Deserialize;

use super::ask::{Answer, Client, Trouble, odd, words};
use super::feed::read_rfc3339;

const TOKEN: &str = "/latest/api/token";
const ACTION: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE: &str = "/latest/meta-data/events/recommendations/rebalance";
/// Six hours, the longest that AWS gives.
const TOKEN_SECONDS: &str = "21600";
/// A token is asked for anew after half of that.
const TOKEN_LIFE: Duration = Duration::from_secs(3 * 3600);
/// The service answers within milliseconds where it is there.
const PATIENCE: Duration = Duration::from_secs(3);

/// Both notices: the action, and the recommendation that may come before.
#[derive(Debug)]
pub(super) struct Aws {
    client: Client,
    token: Option<(String, Instant)>,
}

#[derive(Deserialize)]
struct Action {
    action: String,
    time: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rebalance {
    notice_time: String,
}

impl Aws {
    pub fn new(client: Client) -> Self {
        Self {
            client,
            token: None,
        }
    }

    pub async fn ask(&mut self) -> Result<Vec<Interruption>, Trouble> {
        let mut notices = Vec::new();
        if let Some(answer) = self.get(ACTION).await? {
            let said: Action = serde_json::from_str(&answer.body).map_err(|e| odd(ACTION, e))?;
            // terminate, stop or hibernate: containers end in each case.
            let time = read_rfc3339(&said.time).ok_or_else(|| odd(ACTION, "no time"))?;
            notices.push(Interruption {
                kind: InterruptionKind::Spot.into(),
                deadline_unix_ms: time,
                id: words(&format!("instance-action {}", said.time)),
                detail: words(&format!("aws spot instance-action: {}", said.action)),
            });
        }
        if let Some(answer) = self.get(REBALANCE).await? {
            let said: Rebalance =
                serde_json::from_str(&answer.body).map_err(|e| odd(REBALANCE, e))?;
            notices.push(Interruption {
                kind: InterruptionKind::Rebalance.into(),
                deadline_unix_ms: 0,
                id: words(&format!("rebalance {}", said.notice_time)),
                detail: "aws rebalance recommendation".to_owned(),
            });
        }
        Ok(notices)
    }

    async fn get(&mut self, path: &str) -> Result<Option<Answer>, Trouble> {
        let token = self.token().await?;
        let headers = [("x-aws-ec2-metadata-token", token.as_str())];
        let answer = self.client.get(path, &headers, PATIENCE).await;
        if let Err(Trouble::Status {
            status: StatusCode::UNAUTHORIZED,
            ..
        }) = &answer
        {
            self.token = None;
        }
        answer
    }

    async fn token(&mut self) -> Result<String, Trouble> {
        if let Some((token, since)) = &self.token
            && since.elapsed() < TOKEN_LIFE
        {
            return Ok(token.clone());
        }
        let headers = [("x-aws-ec2-metadata-token-ttl-seconds", TOKEN_SECONDS)];
        let answer = self
            .client
            .ask(Method::PUT, TOKEN, &headers, PATIENCE)
            .await?;
        if answer.status != StatusCode::OK {
            return Err(Trouble::Status {
                path: TOKEN.to_owned(),
                status: answer.status,
            });
        }
        let token = answer.body.trim();
        let sane = |c: char| c.is_ascii_graphic();
        if token.is_empty() || token.len() > 1024 || !token.chars().all(sane) {
            return Err(odd(TOKEN, "the answer is no token"));
        }
        self.token = Some((token.to_owned(), Instant::now()));
        Ok(token.to_owned())
    }
}
