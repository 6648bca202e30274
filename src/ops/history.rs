//! What was rolled back, by whom and why; newest first.

use std::{collections::BTreeMap, str::FromStr};

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{
    Class, Error, Result, Session, approval,
    list::{self, Scope},
    rollback,
};
use crate::api::{
    RollbackRequest,
    approval_request::Decision,
    rollback_request::{ReasonType, RollbackPhase},
};

/// One finished rollback.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Namespace of the request.
    pub namespace: String,
    /// Name of the request.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// How it ended.
    pub phase: RollbackPhase,
    /// The Snapshot that was gone back to; absent when none was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// Who asked, or whom the operator served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What kind of reason.
    pub reason: ReasonType,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether it broke glass.
    pub emergency: bool,
    /// Whose approvals counted; absent where approvals may not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approvers: Option<Vec<String>>,
    /// Digest of its plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_digest: Option<String>,
    /// Objects created, updated, recreated and deleted, as planned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<i64>,
    /// Reason of the end, `CamelCase`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// The snapshot that undoes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safety_snapshot: Option<String>,
    /// When it ended; the time of creation where the status does not tell.
    pub at: Timestamp,
    /// Seconds from start to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_seconds: Option<i64>,
}

/// Where a page ended: everything newer has been shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    at: Timestamp,
    uid: String,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.at, self.uid)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            || Error::usage(format!("`{text}` is no token of history")).fix("pass what the last page printed");
        let (at, uid) = text.split_once('/').ok_or_else(invalid)?;
        Ok(Self {
            at: at.parse().map_err(|_| invalid())?,
            uid: uid.to_owned(),
        })
    }
}

/// One page of history.
#[derive(Debug)]
pub struct Page {
    /// Newest first.
    pub records: Vec<Record>,
    /// Where to go on; absent after the last page.
    pub next: Option<Cursor>,
}

/// What to look for.
#[derive(Clone, Debug)]
pub struct Query {
    /// Where.
    pub scope: Scope,
    /// Plans without execution, too.
    pub dry_runs: bool,
    /// At most this many; absent is all.
    pub limit: Option<usize>,
    /// Where the last page ended.
    pub after: Option<Cursor>,
}

/// Finished requests, newest first.
pub async fn history(session: &Session, query: &Query) -> Result<Page> {
    let (api, what): (Api<RollbackRequest>, _) = match query.scope {
        Scope::Namespace => (
            session.api_in(&session.namespace),
            format!("list rollbackrequests in {}", session.namespace),
        ),
        Scope::All => (
            Api::all(session.client.clone()),
            "list rollbackrequests in all namespaces".to_owned(),
        ),
    };
    let requests = list::every(session, &what, &api, &ListParams::default()).await?;
    let approvers = approvers(session, query.scope).await?;
    let records = requests
        .iter()
        .filter(|r| rollback::is_over(r) && (query.dry_runs || !r.spec.dry_run))
        .map(|r| record(r, approvers.as_ref()))
        .collect();
    Ok(cut(records, query))
}

fn cut(mut records: Vec<Record>, query: &Query) -> Page {
    let order = |record: &Record| (record.at, record.uid.clone());
    records.sort_by_key(|record| std::cmp::Reverse(order(record)));
    if let Some(after) = &query.after {
        records.retain(|record| order(record) < (after.at, after.uid.clone()));
    }
    let mut next = None;
    if let Some(limit) = query.limit.filter(|limit| *limit < records.len()) {
        records.truncate(limit);
        next = records.last().map(|last| Cursor {
            at: last.at,
            uid: last.uid.clone(),
        });
    }
    Page { records, next }
}

/// Whose approvals counted, by UID of the request; `None` where they may not be read.
async fn approvers(session: &Session, scope: Scope) -> Result<Option<BTreeMap<String, Vec<String>>>> {
    let approvals = match approval::list(session, scope, &ListParams::default()).await {
        Ok(approvals) => approvals,
        Err(error) if error.class == Class::Forbidden => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut people: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for approval in &approvals {
        let counted = approval::recorded(approval)
            .filter(|d| d.counted == Some(true) && matches!(d.decision, Decision::Approve | Decision::Acknowledge))
            .map(|d| d.username.clone());
        let of = people.entry(approval.spec.request_ref.uid.clone()).or_default();
        for person in counted {
            if !of.contains(&person) {
                of.push(person);
            }
        }
    }
    Ok(Some(people))
}

fn record(request: &RollbackRequest, approvers: Option<&BTreeMap<String, Vec<String>>>) -> Record {
    let status = request.status.clone().unwrap_or_default();
    let spec = &request.spec;
    let uid = request.uid().unwrap_or_default();
    let reason = spec.reason.clone().unwrap_or_default();
    let asked = spec.requested_by.as_ref().and_then(|r| r.username.clone());
    let ended = status.completed_at.as_ref().map(|t| t.0);
    let end = status
        .conditions
        .iter()
        .find(|c| c.type_ == crate::api::conditions::READY);
    Record {
        namespace: request.namespace().unwrap_or_default(),
        name: request.name_any(),
        phase: rollback::phase(request),
        target: status
            .resolved
            .as_ref()
            .map(|r| r.name.clone())
            .or_else(|| spec.target.snapshot.clone()),
        version: status.resolved.as_ref().map(|r| r.version),
        by: spec.on_behalf_of.as_ref().map(|o| o.username.clone()).or(asked),
        reason: reason.type_,
        message: reason.message,
        emergency: spec.emergency.is_some(),
        approvers: approvers.map(|a| a.get(&uid).cloned().unwrap_or_default()),
        plan_digest: status.plan.as_ref().map(|p| p.digest.clone()),
        changes: status
            .plan
            .as_ref()
            .map(|p| p.create + p.update + p.recreate + p.delete),
        end: end.map(|c| c.reason.clone()),
        safety_snapshot: status.safety_snapshot.as_ref().map(|s| s.name.clone()),
        at: ended
            .or_else(|| request.creation_timestamp().map(|t| t.0))
            .unwrap_or(Timestamp::UNIX_EPOCH),
        duration_seconds: status.duration_seconds,
        uid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(limit: Option<usize>, after: Option<Cursor>) -> Page {
        let spec = rollback::spec(&crate::api::rollback_request::Target::default()).unwrap();
        let records = (0..5)
            .map(|n| {
                let mut record = record(&RollbackRequest::new(&format!("r{n}"), spec.clone()), None);
                // Two of the same second.
                record.at = Timestamp::from_second(100 + n / 2).unwrap();
                record.uid = format!("uid-{n}");
                record
            })
            .collect();
        let query = Query {
            scope: Scope::Namespace,
            dry_runs: false,
            limit,
            after,
        };
        cut(records, &query)
    }

    #[test]
    fn pages_together_are_the_whole_history_newest_first() {
        let names = |page: &Page| page.records.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        let whole = names(&page(None, None));
        assert_eq!(whole, ["r4", "r3", "r2", "r1", "r0"]);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = page(Some(2), after);
            seen.extend(names(&page));
            match page.next {
                Some(next) => after = Some(next.to_string().parse().unwrap()),
                None => break,
            }
        }
        assert_eq!(seen, whole);
    }

    #[test]
    fn a_token_that_is_none_is_refused() {
        for text in ["", "abc", "yesterday/uid"] {
            assert_eq!(text.parse::<Cursor>().unwrap_err().class, Class::Usage, "{text}");
        }
    }
}
