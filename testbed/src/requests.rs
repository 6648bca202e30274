//! What the API server counted: who asks too much shows here.

use std::collections::BTreeMap;
use std::fmt;

/// One kind of request, as the labels of the metric `apiserver_request_total` tell it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiRequest {
    /// In capitals: `GET`, `LIST`, `WATCH`, `POST`, `PUT`, `PATCH`, `APPLY`, `DELETE`, `DELETECOLLECTION`.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The API version.
    pub version: String,
    /// The resource in plural; empty for requests that are about none.
    pub resource: String,
    /// The subresource; mostly empty.
    pub subresource: String,
    /// `cluster`, `namespace` or `resource` (one object).
    pub scope: String,
    /// The HTTP status.
    pub code: u16,
    /// Whether it was a dry run.
    pub dry_run: bool,
}

/// Numbers of requests by kind since the API server started. A watch is counted when it ends, all others when answered;
/// what authorisation refuses is not counted by the API server (it is in the audit log).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiRequests(BTreeMap<ApiRequest, u64>);

impl ApiRequests {
    pub(crate) fn parse(metrics: &str) -> Self {
        let mut counts = BTreeMap::new();
        for line in metrics.lines() {
            let Some((labels, count)) = line
                .strip_prefix("apiserver_request_total{")
                .and_then(|line| line.rsplit_once("} "))
            else {
                continue;
            };
            let mut request = ApiRequest::default();
            // Label values of this metric are names, so that none holds a quote or a comma.
            for label in labels.split(',') {
                let Some((name, value)) = label.split_once('=') else {
                    continue;
                };
                let value = value.trim_matches('"');
                match name {
                    "verb" => value.clone_into(&mut request.verb),
                    "group" => value.clone_into(&mut request.group),
                    "version" => value.clone_into(&mut request.version),
                    "resource" => value.clone_into(&mut request.resource),
                    "subresource" => value.clone_into(&mut request.subresource),
                    "scope" => value.clone_into(&mut request.scope),
                    "code" => request.code = value.parse().unwrap_or_default(),
                    "dry_run" => request.dry_run = !value.is_empty(),
                    _ => {}
                }
            }
            *counts.entry(request).or_default() += whole(count);
        }
        Self(counts)
    }

    /// What came on top of `earlier`; kinds that did not grow are left out.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let grown = self.0.iter().filter_map(|(request, count)| {
            let before = earlier.0.get(request).copied().unwrap_or_default();
            (*count > before).then(|| (request.clone(), count - before))
        });
        Self(grown.collect())
    }

    /// How many requests there were of the kinds that `wanted` accepts.
    pub fn count(&self, mut wanted: impl FnMut(&ApiRequest) -> bool) -> u64 {
        self.0
            .iter()
            .filter(|(request, _)| wanted(request))
            .map(|(_, count)| count)
            .sum()
    }

    /// How many requests there were.
    pub fn total(&self) -> u64 {
        self.count(|_| true)
    }

    /// Every kind with its number, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&ApiRequest, u64)> {
        self.0.iter().map(|(request, count)| (request, *count))
    }
}

/// A counter's value: a whole number that large ones are printed of in scientific notation.
fn whole(text: &str) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a counter is whole and not negative"
    )]
    text.trim().parse::<f64>().map_or(0, |count| count as u64)
}

impl fmt::Display for ApiRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (request, count) in self.iter() {
            let slash = if request.subresource.is_empty() { "" } else { "/" };
            writeln!(
                f,
                "{count:>6} {:<16} {}{slash}{} {} ({}) → {}{}",
                request.verb,
                request.resource,
                request.subresource,
                if request.group.is_empty() {
                    "core"
                } else {
                    &request.group
                },
                request.scope,
                request.code,
                if request.dry_run { ", dry run" } else { "" }
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = r#"# TYPE apiserver_request_total counter
apiserver_request_total{code="200",component="apiserver",dry_run="",group="apps",resource="deployments",scope="namespace",subresource="",verb="LIST",version="v1"} 3
apiserver_request_total{code="201",component="apiserver",dry_run="All",group="",resource="pods",scope="resource",subresource="eviction",verb="POST",version="v1"} 1.5e+06
apiserver_request_duration_seconds_count{verb="LIST"} 9
"#;

    #[test]
    fn counts_are_read_by_kind() {
        let requests = ApiRequests::parse(FIRST);
        assert_eq!(
            requests.count(|request| request.verb == "LIST" && request.group == "apps"),
            3
        );
        assert_eq!(
            requests.count(|request| request.dry_run && request.code == 201),
            1_500_000
        );
        assert_eq!(requests.iter().count(), 2);
    }

    #[test]
    fn a_difference_holds_what_grew_and_nothing_else() {
        let before = ApiRequests::parse(FIRST);
        let after = ApiRequests::parse(&FIRST.replace("} 3\n", "} 5\n"));
        let difference = after.since(&before);
        assert_eq!(difference.total(), 2);
        assert_eq!(difference.iter().count(), 1);
    }
}
