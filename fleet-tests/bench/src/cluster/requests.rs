//! What the API server was asked, by its own count.

use std::collections::BTreeMap;

use anyhow::Result;
use hyperion_lab::Kubectl;

/// Requests that change something, by verb and resource, since the API server started: what is only
/// read costs it little beside them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Requests(BTreeMap<String, f64>);

impl Requests {
    /// Asks the API server.
    pub(super) fn read(kubectl: &Kubectl) -> Result<Self> {
        Ok(Self::parse(&kubectl.run(&["get", "--raw", "/metrics"])?))
    }

    fn parse(text: &str) -> Self {
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let Some(line) = line.strip_prefix("apiserver_request_total{") else {
                continue;
            };
            let Some((labels, value)) = line.rsplit_once("} ") else {
                continue;
            };
            let label = |name: &str| {
                let found = labels.split_once(&format!("{name}=\""))?.1;
                Some(found.split_once('"')?.0)
            };
            let verb = label("verb").unwrap_or_default();
            if !["APPLY", "DELETE", "PATCH", "POST", "PUT"].contains(&verb) {
                continue;
            }
            let mut what = format!("{verb} {}", label("resource").unwrap_or_default());
            if let Some(part) = label("subresource").filter(|part| !part.is_empty()) {
                what = format!("{what}/{part}");
            }
            *all.entry(what).or_default() += value.parse().unwrap_or(0.0);
        }
        Self(all)
    }

    /// Those since an earlier count, for each of `count` things, the most frequent first; none that
    /// are fewer than one in ten.
    pub(super) fn since(&self, before: &Self, count: usize) -> Vec<(String, f64)> {
        let each = |(what, now): (&String, &f64)| {
            let had = before.0.get(what).copied().unwrap_or_default();
            (what.clone(), (now - had) / count as f64)
        };
        let mut all: Vec<(String, f64)> =
            self.0.iter().map(each).filter(|(_, n)| *n >= 0.1).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted_by_what_they_change() {
        let before = Requests::parse(
            "apiserver_request_total{code=\"201\",resource=\"pods\",subresource=\"\",verb=\"POST\"} 5\n",
        );
        let after = Requests::parse(
            "# HELP apiserver_request_total Counter\n\
             apiserver_request_total{code=\"201\",resource=\"pods\",subresource=\"\",verb=\"POST\"} 25\n\
             apiserver_request_total{code=\"409\",resource=\"pods\",subresource=\"\",verb=\"POST\"} 2\n\
             apiserver_request_total{code=\"200\",resource=\"pods\",subresource=\"status\",verb=\"PATCH\"} 60\n\
             apiserver_request_total{code=\"200\",resource=\"leases\",subresource=\"\",verb=\"PUT\"} 1\n\
             apiserver_request_total{code=\"200\",resource=\"nodes\",subresource=\"\",verb=\"LIST\"} 900\n",
        );
        let each = after.since(&before, 20);
        let expected = [("PATCH pods/status", 3.0), ("POST pods", 1.1)];
        assert_eq!(each, expected.map(|(what, n)| (what.to_owned(), n)));
    }
}
