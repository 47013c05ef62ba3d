//! Measurements of nodes from a Prometheus server: for nodes without an agent, whose telemetry
//! nobody streams.
//!
//! One instant query for each measure, over Prometheus' HTTP API
//! (`GET /api/v1/query`, <https://prometheus.io/docs/prometheus/latest/querying/api/>).

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Full;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::feeds::http::Http;
use crate::feeds::{Failure, Reason};

/// What is asked, in PromQL. A file of this form takes the place of [`Queries::default`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queries {
    /// Share of each node's CPU in use, 0 to 1.
    pub cpu_utilization: Query,
}

/// A query and how its answer is read.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Query {
    /// PromQL with one sample for each node.
    pub query: String,
    /// Label that has the node's name.
    pub node_label: String,
    /// Label that has the name of its HyperionCluster; a sample without it is of the one node of
    /// that name.
    #[serde(default)]
    pub cluster_label: Option<String>,
}

impl Default for Queries {
    /// Those of node_exporter, whose `node_uname_info` has the host's name: that of the Kubernetes
    /// node with EKS, GKE and AKS.
    fn default() -> Self {
        Self {
            cpu_utilization: Query {
                query: "(1 - avg by (cluster, instance) (rate(node_cpu_seconds_total{mode=\"idle\"}[2m]))) \
                        * on (cluster, instance) group_left (nodename) node_uname_info"
                    .to_owned(),
                node_label: "nodename".to_owned(),
                cluster_label: Some("cluster".to_owned()),
            },
        }
    }
}

/// One node's value.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the HyperionCluster, where a label says it.
    pub cluster: Option<String>,
    /// Name of the node.
    pub node: String,
    /// Finite.
    pub value: f64,
}

/// An answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// One for each node.
    pub samples: Vec<Sample>,
    /// Samples without the node's label, with a value that is no number, or of a node that had one
    /// already.
    pub left_out: usize,
}

/// A Prometheus server.
#[derive(Debug, Clone)]
pub struct Prometheus {
    http: Http,
    query: String,
    authorization: Option<HeaderValue>,
}

impl Prometheus {
    /// The server at an address such as `http://prometheus.monitoring:9090`, also with a path in
    /// front of `/api/v1`; `token` is sent as a bearer token.
    ///
    /// # Errors
    /// The address or the token can't be used.
    pub fn new(http: Http, address: &str, token: Option<&str>) -> Result<Self, String> {
        let uri: Uri = address
            .parse()
            .map_err(|e| format!("{address:?} is no address: {e}"))?;
        let ok = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !ok || uri.query().is_some() {
            return Err(format!(
                "{address:?} is no address of a Prometheus server, such as http://HOST:9090"
            ));
        }
        let authorization = token
            .map(|token| HeaderValue::from_str(&format!("Bearer {}", token.trim())))
            .transpose()
            .map_err(|_| "the token has characters that no header takes".to_owned())?;
        Ok(Self {
            http,
            query: format!("{}/api/v1/query?query=", address.trim_end_matches('/')),
            authorization,
        })
    }

    /// Asks a query.
    ///
    /// # Errors
    /// No answer, one that is not of the documented form, or the server's own words.
    pub async fn ask(&self, query: &Query) -> Result<Answer, Failure> {
        const WHAT: &str = "Prometheus";
        let fault = |text: String| Failure::new(Reason::Fault, WHAT, text);
        let text = utf8_percent_encode(&query.query, NON_ALPHANUMERIC);
        let mut request = Request::get(format!("{}{text}", self.query));
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        let request = request
            .body(Full::<Bytes>::default())
            .map_err(|e| fault(e.to_string()))?;
        let body = self.http.send(request, WHAT).await?;
        read(&body, query).map_err(|text| Failure::new(Reason::Malformed, WHAT, text))
    }
}

#[derive(Deserialize)]
struct Body {
    status: String,
    #[serde(default)]
    error: String,
    data: Option<Data>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: serde_json::Value,
}

#[derive(Deserialize)]
struct Row {
    metric: BTreeMap<String, String>,
    /// Seconds, and the value as text.
    value: (f64, String),
}

fn read(body: &[u8], query: &Query) -> Result<Answer, String> {
    let body: Body = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let data = match (body.status.as_str(), body.data) {
        ("success", Some(data)) => data,
        ("success", None) => return Err("an answer without data".to_owned()),
        _ => return Err(format!("{}: {}", body.status, body.error)),
    };
    if data.result_type != "vector" {
        return Err(format!(
            "the query gives a {}, and a vector with one sample for each node is needed",
            data.result_type
        ));
    }
    let rows: Vec<Row> = serde_json::from_value(data.result).map_err(|e| e.to_string())?;
    let mut answer = Answer::default();
    let mut seen: BTreeMap<(Option<String>, String), f64> = BTreeMap::new();
    for mut row in rows {
        let cluster = query.cluster_label.as_ref();
        let cluster = cluster.and_then(|label| row.metric.remove(label));
        let node = row.metric.remove(&query.node_label);
        let value = row.value.1.parse::<f64>().ok().filter(|v| v.is_finite());
        let (Some(node), Some(value)) = (node.filter(|n| !n.is_empty()), value) else {
            answer.left_out += 1;
            continue;
        };
        let cluster = cluster.filter(|name| !name.is_empty());
        if seen.insert((cluster, node), value).is_some() {
            answer.left_out += 1;
        }
    }
    answer.samples = seen
        .into_iter()
        .map(|((cluster, node), value)| Sample {
            cluster,
            node,
            value,
        })
        .collect();
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeds::http::Limits;

    fn by(cluster_label: Option<&str>) -> Query {
        Query {
            query: "q".to_owned(),
            node_label: "node".to_owned(),
            cluster_label: cluster_label.map(str::to_owned),
        }
    }

    fn vector(rows: &str) -> String {
        format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{rows}]}}}}"#)
    }

    #[test]
    fn each_node_has_one_finite_value() {
        let rows = r#"
            {"metric":{"node":"a","cluster":"eks"},"value":[1764000000.1,"0.5"]},
            {"metric":{"node":"a","cluster":""},"value":[1764000000.1,"0.25"]},
            {"metric":{"node":"b"},"value":[1764000000.1,"NaN"]},
            {"metric":{"node":"c"},"value":[1764000000.1,"+Inf"]},
            {"metric":{"node":"d"},"value":[1764000000.1,"much"]},
            {"metric":{"instance":"10.0.0.1:9100"},"value":[1764000000.1,"1"]}"#;
        let answer = read(vector(rows).as_bytes(), &by(Some("cluster"))).unwrap();
        let sample = |cluster: Option<&str>, value| Sample {
            cluster: cluster.map(str::to_owned),
            node: "a".to_owned(),
            value,
        };
        assert_eq!(
            answer.samples,
            [sample(None, 0.25), sample(Some("eks"), 0.5)]
        );
        assert_eq!(answer.left_out, 4);
        // Without that label they are of one node.
        let answer = read(vector(rows).as_bytes(), &by(None)).unwrap();
        assert_eq!((answer.samples.len(), answer.left_out), (1, 5));
    }

    #[test]
    fn answers_of_another_form_are_refused_by_what_is_wrong() {
        let scalar = r#"{"status":"success","data":{"resultType":"scalar","result":[1,"2"]}}"#;
        let error = r#"{"status":"error","errorType":"bad_data","error":"parse error at char 3"}"#;
        for (body, word) in [
            ("", "EOF"),
            ("{\"status\":\"succ", "EOF"),
            ("[]", "invalid"),
            (r#"{"status":"success"}"#, "without data"),
            (error, "parse error at char 3"),
            (scalar, "a scalar"),
            (&vector(r#"{"metric":{},"value":["x"]}"#), "invalid"),
            (
                &vector(r#"{"metric":{"node":7},"value":[1,"2"]}"#),
                "invalid",
            ),
        ] {
            let refused = read(body.as_bytes(), &by(None)).unwrap_err();
            assert!(refused.contains(word), "{body}: {refused}");
        }
    }

    #[test]
    fn addresses_that_lead_nowhere_are_refused() {
        for bad in [
            "",
            "prometheus:9090",
            "ftp://a",
            "http://",
            "http://a/?x=1",
            "a b",
        ] {
            let http = Http::new(Limits::default()).unwrap();
            assert!(Prometheus::new(http, bad, None).is_err(), "{bad}");
        }
        let http = Http::new(Limits::default()).unwrap();
        let at = Prometheus::new(http.clone(), "http://a:9090/prom/", Some("t\n")).unwrap();
        assert_eq!(at.query, "http://a:9090/prom/api/v1/query?query=");
        assert!(Prometheus::new(http, "http://a", Some("a\nb")).is_err());
    }
}
