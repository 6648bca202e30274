//! The operator's health as the API shows it.

use std::collections::BTreeMap;

use kube::api::ListParams;
use serde::Serialize;

use super::{
    Class, Result, Session, facts,
    list::{self, Scope},
    reference,
    store::Location,
};

/// A fact, or why it is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Seen<T> {
    /// Observed.
    Known(T),
    /// Could not be observed: no right, or no answer.
    Unknown(String),
}

impl<T> Seen<T> {
    fn from_result(result: Result<T>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Unknown(error.why.unwrap_or(error.what)),
        }
    }
}

/// The leader, for people and machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operator {
    /// Whether a process leads and renewed its Lease in time.
    pub running: bool,
    /// Which process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Seconds since the last renewal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub renewed_seconds_ago: Option<i64>,
}

/// Snapshots by phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Snapshots {
    /// Namespace that was counted; absent is all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How many.
    pub total: usize,
    /// How many in each phase.
    pub phases: BTreeMap<String, usize>,
}

/// Use of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Repository {
    /// Where it is.
    pub store: String,
    /// Bytes in the store.
    pub stored_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Snapshots whose contents are kept.
    pub snapshots: u64,
    /// Most bytes it may hold, where there is a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
}

/// Everything that `status` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the API server.
    pub server: Seen<String>,
    /// Namespace that was looked at for the operator.
    pub operator_namespace: String,
    /// The leading operator.
    pub operator: Seen<Operator>,
    /// Kinds of `backstep.dev` that are served.
    pub kinds: Seen<Vec<String>>,
    /// Validating admission policies that fail closed and deny.
    pub policies: Seen<Vec<String>>,
    /// Snapshots by phase.
    pub snapshots: Seen<Snapshots>,
    /// The store.
    pub repository: Seen<Repository>,
}

/// Looks at everything that this user may see; what cannot be seen is `Unknown`, never absent.
///
/// # Errors
/// Only when the API server cannot be reached at all.
pub async fn status(session: &Session, store: Option<&Location>) -> Result<Status> {
    // The first call alone: with no server, one clear error is better than six.
    let server = facts::server(session).await?;
    let (leader, kinds, policies, snapshots, repository) = tokio::join!(
        facts::leader(session),
        facts::served_kinds(session),
        facts::policies(session),
        count_snapshots(session),
        super::contents::usage(session, store),
    );
    Ok(Status {
        server: Seen::Known(server.version),
        operator_namespace: session.operator_namespace.clone(),
        operator: Seen::from_result(leader.map(|leader| match leader {
            Some(leader) => Operator {
                running: leader.fresh,
                holder: leader.holder,
                renewed_seconds_ago: leader.age_seconds,
            },
            None => Operator {
                running: false,
                holder: None,
                renewed_seconds_ago: None,
            },
        })),
        kinds: Seen::from_result(kinds.map(|kinds| kinds.into_iter().collect())),
        policies: Seen::from_result(policies.map(|p| p.failing_closed.intersection(&p.denying).cloned().collect())),
        snapshots: Seen::from_result(snapshots),
        repository: Seen::from_result(repository),
    })
}

/// All namespaces where the user may list them, else the session's own.
async fn count_snapshots(session: &Session) -> Result<Snapshots> {
    let every = ListParams::default();
    let (namespace, all) = match list::all(session, Scope::All, &every).await {
        Err(error) if error.class == Class::Forbidden => (
            Some(session.namespace.clone()),
            list::all(session, Scope::Namespace, &every).await?,
        ),
        other => (None, other?),
    };
    Ok(Snapshots {
        namespace,
        total: all.len(),
        phases: facts::tally(all.iter().map(|s| format!("{:?}", reference::phase(s)))),
    })
}
