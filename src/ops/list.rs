//! Snapshots of one or all namespaces, whole or page by page.

use std::fmt::Debug;

use kube::{Api, ResourceExt as _, api::ListParams};

use serde::de::DeserializeOwned;

use super::{Result, Session, reference};
use crate::api::Snapshot;
use crate::cluster::call;

/// Objects asked for at once when everything is read.
const PAGE: u32 = 500;

/// Where to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The session's namespace.
    Namespace,
    /// Every namespace; needs `list` on snapshots cluster-wide.
    All,
}

/// One page of snapshots, in the API server's order.
#[derive(Debug)]
pub struct Page {
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Passed to the next call to go on; absent after the last page.
    pub next: Option<String>,
    /// How many are left, where the server says so.
    pub remaining: Option<i64>,
}

fn api(session: &Session, scope: Scope) -> Api<Snapshot> {
    match scope {
        Scope::Namespace => session.snapshots(),
        Scope::All => Api::all(session.client.clone()),
    }
}

fn what(session: &Session, scope: Scope) -> String {
    match scope {
        Scope::Namespace => format!("list snapshots in {}", session.namespace),
        Scope::All => "list snapshots in all namespaces".to_owned(),
    }
}

/// One page of what `params` asks for.
pub async fn page(session: &Session, scope: Scope, params: &ListParams) -> Result<Page> {
    let api = api(session, scope);
    let list = call::repeat(&what(session, scope), session.page_deadline(), || api.list(params)).await?;
    Ok(Page {
        snapshots: list.items,
        next: list.metadata.continue_.filter(|token| !token.is_empty()),
        remaining: list.metadata.remaining_item_count,
    })
}

/// Everything that `params` asks for, sorted by namespace, lineage, version and name.
pub async fn all(session: &Session, scope: Scope, params: &ListParams) -> Result<Vec<Snapshot>> {
    let mut snapshots = every(session, &what(session, scope), &api(session, scope), params).await?;
    sort(&mut snapshots);
    Ok(snapshots)
}

/// Every object of `api` that `params` asks for, read in pages; `what` says it in errors.
pub(super) async fn every<K>(session: &Session, what: &str, api: &Api<K>, params: &ListParams) -> Result<Vec<K>>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.clone();
    params.limit = Some(PAGE);
    let mut objects = Vec::new();
    loop {
        let list = call::repeat(what, session.page_deadline(), || api.list(&params)).await?;
        objects.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(objects),
        }
    }
}

/// By namespace, lineage, version (those without one last) and name.
pub fn sort(snapshots: &mut [Snapshot]) {
    snapshots.sort_by_cached_key(|s| {
        let version = s.status.as_ref().and_then(|s| s.version).unwrap_or(i64::MAX);
        (s.namespace(), reference::lineage(s).to_owned(), version, s.name_any())
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SnapshotStatus;

    #[test]
    fn versions_sort_as_numbers_and_unversioned_snapshots_come_last() {
        let named = |name: &str, version: Option<i64>| {
            let mut snapshot = Snapshot::new(name, crate::api::SnapshotSpec::default());
            snapshot.status = Some(SnapshotStatus {
                version,
                ..SnapshotStatus::default()
            });
            snapshot
        };
        let mut all = vec![named("c", None), named("b", Some(10)), named("a", Some(9))];
        sort(&mut all);
        assert_eq!(
            all.iter().map(kube::ResourceExt::name_any).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
    }
}
