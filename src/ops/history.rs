//! What was rolled back, by whom and why; newest first.

use std::{collections::BTreeMap, str::FromStr};

use jiff::Timestamp;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{
    Class, Error, Result, Session, approval,
    contents::{Contents, failed},
    list::{self, Scope},
    rollback,
    store::Location,
};
use crate::{
    api::{
        RollbackRequest,
        approval_request::{Decision, RecordedDecision},
        conditions,
        rollback_request::{ReasonType, RollbackPhase},
    },
    domain::record,
    repository::Room,
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
    /// The request is gone; this is what the repository kept of it.
    pub archived: bool,
}

/// Where a page ended: everything newer has been shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// When the last request shown was created, Unix time in milliseconds.
    millis: i64,
    uid: String,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.millis, self.uid)
    }
}

impl FromStr for Cursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid =
            || Error::usage(format!("`{text}` is no token of history")).fix("pass what the last page printed");
        let (millis, uid) = text.split_once('/').ok_or_else(invalid)?;
        Ok(Self {
            millis: millis.parse().map_err(|_| invalid())?,
            uid: uid.to_owned(),
        })
    }
}

/// One page of history.
#[derive(Debug)]
pub struct Page {
    /// Newest first, by when they were asked for.
    pub records: Vec<Record>,
    /// Where to go on; absent after the last page.
    pub next: Option<Cursor>,
    /// Why records of requests that are gone are missing; absent where they were read.
    pub without_archive: Option<String>,
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

/// Where a record is.
enum Source {
    Live(Box<RollbackRequest>),
    Stored(String),
}

/// Finished requests, newest first: those that are there, and of those that are gone what the repository keeps, where the user may
/// read it.
pub async fn history(session: &Session, chosen: Option<&Location>, query: &Query) -> Result<Page> {
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
    let mut sources: BTreeMap<Cursor, Source> = BTreeMap::new();
    let archive = match stored(session, chosen, query, &mut sources).await {
        Ok(contents) => Ok(contents),
        // Damage must never look like a missing right.
        Err(error) if error.class == Class::Corrupt => return Err(error),
        Err(error) => Err(error.what),
    };
    // Listed after the archive: what is archived meanwhile is still found here, and what is there is never shown twice.
    for request in list::every(session, &what, &api, &ListParams::default()).await? {
        let at = Cursor {
            millis: request.creation_timestamp().map_or(0, |t| t.0.as_millisecond()),
            uid: request.uid().unwrap_or_default(),
        };
        if rollback::is_over(&request) {
            sources.insert(at, Source::Live(Box::new(request)));
        } else {
            sources.remove(&at);
        }
    }
    let approvers = approvers(session, query.scope).await?;
    let mut page = Page {
        records: Vec::new(),
        next: None,
        without_archive: archive.as_ref().err().cloned(),
    };
    let mut last = None;
    for (at, source) in sources.into_iter().rev() {
        if query.after.as_ref().is_some_and(|after| at >= *after) {
            continue;
        }
        let record = match source {
            Source::Live(request) => Some((request.spec.dry_run, live(&request, approvers.as_ref()))),
            Source::Stored(name) => match &archive {
                Ok(contents) => {
                    let document = contents.repository().document(Room::History, &name).await;
                    let document: Option<record::Record> = document.map_err(|e| failed(&e))?;
                    document.map(|record| (record.spec.dry_run, archived(record, at.millis)))
                }
                Err(_) => None,
            },
        };
        let Some((dry_run, record)) = record else { continue };
        if dry_run && !query.dry_runs {
            continue;
        }
        if query.limit == Some(page.records.len()) {
            page.next = last;
            break;
        }
        page.records.push(record);
        last = Some(at);
    }
    Ok(page)
}

/// What is kept of one finished rollback, and why it may not be all.
#[derive(Debug)]
pub struct Kept {
    /// The record.
    pub record: record::Record,
    /// Why the repository was not asked; the record is what the request itself tells then.
    pub without_archive: Option<String>,
}

/// The record of the finished request `name`, also where the request is gone: then the newest of that name.
///
/// # Errors
/// `Refused` while it is not over; `NotFound` where nothing is kept of it; those of the store where only the store can tell.
pub async fn one(session: &Session, chosen: Option<&Location>, name: &str) -> Result<Kept> {
    let request = match rollback::find(session, name).await {
        Ok(request) => request,
        Err(error) if error.class == Class::NotFound => {
            let contents = Contents::open(session, chosen).await?;
            let record = gone(session, &contents, name).await?.ok_or(error)?;
            return Ok(Kept {
                record,
                without_archive: None,
            });
        }
        Err(error) => return Err(error),
    };
    let name = request.name_any();
    if !rollback::is_over(&request) {
        let phase = rollback::phase(&request);
        return Err(
            Error::new(Class::Refused, format!("rollbackrequest {name} is not over"))
                .because(format!("it is {phase:?}"))
                .fix(format!(
                    "follow it: kubectl backstep watch {name} -n {}",
                    session.namespace
                )),
        );
    }
    let archived = match Contents::open(session, chosen).await {
        Ok(contents) => Ok(of(&contents, &request).await?),
        Err(error) if error.class == Class::Corrupt => return Err(error),
        Err(error) => Err(error.what),
    };
    Ok(match archived {
        Ok(Some(record)) => Kept {
            record,
            without_archive: None,
        },
        Ok(None) => Kept {
            record: told(&request),
            without_archive: Some("the repository keeps no record of it".to_owned()).filter(|_| !request.spec.dry_run),
        },
        Err(why) => Kept {
            record: told(&request),
            without_archive: Some(why),
        },
    })
}

/// The record that the repository keeps of `request`.
async fn of(contents: &Contents, request: &RollbackRequest) -> Result<Option<record::Record>> {
    let created = request.creation_timestamp().map_or(0, |t| t.0.as_millisecond());
    let namespace = request.namespace().unwrap_or_default();
    let name = record::name(&namespace, created, &request.uid().unwrap_or_default());
    let document = contents.repository().document(Room::History, &name).await;
    document.map_err(|e| failed(&e))
}

/// The newest record of a request `name` of the session's namespace that is gone.
pub(super) async fn gone(session: &Session, contents: &Contents, name: &str) -> Result<Option<record::Record>> {
    let name = rollback::bare_name(name, &rollback::KINDS)?;
    let names = contents.repository().documents(Room::History).await;
    let place = record::place(&session.namespace);
    // Their names tell the time, not the request's name.
    for document in names
        .map_err(|e| failed(&e))?
        .iter()
        .rev()
        .filter(|n| n.starts_with(&place))
    {
        let found: Option<record::Record> = contents
            .repository()
            .document(Room::History, document)
            .await
            .map_err(|e| failed(&e))?;
        if let Some(record) = found.filter(|record| record.name == name) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// Finds the records that the repository keeps of the namespaces asked for.
async fn stored(
    session: &Session,
    chosen: Option<&Location>,
    query: &Query,
    sources: &mut BTreeMap<Cursor, Source>,
) -> Result<Contents> {
    let contents = Contents::open(session, chosen).await?;
    let names = contents.repository().documents(Room::History).await;
    let place = match query.scope {
        Scope::Namespace => record::place(&session.namespace),
        Scope::All => String::new(),
    };
    for name in names
        .map_err(|e| failed(&e))?
        .into_iter()
        .filter(|n| n.starts_with(&place))
    {
        if let Some((millis, uid)) = record::parse(&name) {
            let uid = uid.to_owned();
            sources.insert(Cursor { millis, uid }, Source::Stored(name));
        }
    }
    Ok(contents)
}

/// Whose approvals counted, by UID of the request; `None` where they may not be read.
async fn approvers(session: &Session, scope: Scope) -> Result<Option<BTreeMap<String, Vec<String>>>> {
    let approvals = match approval::list(session, scope, &ListParams::default()).await {
        Ok(approvals) => approvals,
        Err(error) if error.class == Class::Forbidden => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut by_request: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for approval in &approvals {
        let of = by_request.entry(approval.spec.request_ref.uid.clone()).or_default();
        for person in people(approval::recorded(approval)) {
            if !of.contains(&person) {
                of.push(person);
            }
        }
    }
    Ok(Some(by_request))
}

/// What the request itself tells.
fn told(request: &RollbackRequest) -> record::Record {
    record::Record {
        namespace: request.namespace().unwrap_or_default(),
        name: request.name_any(),
        uid: request.uid().unwrap_or_default(),
        spec: request.spec.clone(),
        status: request.status.clone().unwrap_or_default(),
        decisions: Vec::new(),
        failures: Vec::new(),
        results: Vec::new(),
        notes: Vec::new(),
    }
}

fn live(request: &RollbackRequest, approvers: Option<&BTreeMap<String, Vec<String>>>) -> Record {
    let kept = told(request);
    let approvers = approvers.map(|a| a.get(&kept.uid).cloned().unwrap_or_default());
    let created = request.creation_timestamp().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    record(kept, approvers, created, false)
}

fn archived(kept: record::Record, millis: i64) -> Record {
    let approvers = people(&kept.decisions);
    let created = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
    record(kept, Some(approvers), created, true)
}

/// Who approved or acknowledged, each once.
fn people<'a>(decisions: impl IntoIterator<Item = &'a RecordedDecision>) -> Vec<String> {
    let mut people: Vec<String> = Vec::new();
    for decision in decisions {
        let yes = matches!(decision.decision, Decision::Approve | Decision::Acknowledge);
        if yes && decision.counted == Some(true) && !people.contains(&decision.username) {
            people.push(decision.username.clone());
        }
    }
    people
}

fn record(kept: record::Record, approvers: Option<Vec<String>>, created: Timestamp, archived: bool) -> Record {
    let record::Record { spec, status, .. } = kept;
    let reason = spec.reason.unwrap_or_default();
    let asked = spec.requested_by.and_then(|r| r.username);
    let ready = status.conditions.iter().find(|c| c.type_ == conditions::READY);
    Record {
        namespace: kept.namespace,
        name: kept.name,
        uid: kept.uid,
        phase: status.phase.unwrap_or_default(),
        target: status
            .resolved
            .as_ref()
            .map(|r| r.name.clone())
            .or(spec.target.snapshot),
        version: status.resolved.as_ref().map(|r| r.version),
        by: spec.on_behalf_of.map(|o| o.username).or(asked),
        reason: reason.type_,
        message: reason.message,
        emergency: spec.emergency.is_some(),
        approvers,
        plan_digest: status.plan.as_ref().map(|p| p.digest.clone()),
        changes: status
            .plan
            .as_ref()
            .map(|p| p.create + p.update + p.recreate + p.delete),
        end: ready.map(|c| c.reason.clone()),
        safety_snapshot: status.safety_snapshot.map(|s| s.name),
        at: status.completed_at.map_or(created, |t| t.0),
        duration_seconds: status.duration_seconds,
        archived,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_as_what_was_written_and_nothing_else_is_one() {
        let cursor = Cursor {
            millis: 1_795_000_000_123,
            uid: "uid-1".into(),
        };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "abc", "yesterday/uid"] {
            assert_eq!(text.parse::<Cursor>().unwrap_err().class, Class::Usage, "{text}");
        }
    }

    #[test]
    fn newer_is_by_time_and_not_by_the_text_of_the_time() {
        let at = |millis| Cursor {
            millis,
            uid: "u".into(),
        };
        assert!(at(999) < at(1000));
    }
}
