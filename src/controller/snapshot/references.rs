//! Snapshots that rollbacks under way still need. Looked up only where something is about to be let go.

use std::collections::HashSet;

use kube::{Api, Client, api::ListParams};

use crate::{
    api::RollbackRequest,
    cluster::{Result, call},
    domain::lifecycle,
};

/// Requests a page.
const PAGE: u32 = 500;

/// Whether a rollback that is not finished needs `snapshot`. What cannot be looked up is needed.
pub(super) async fn is_needed(client: &Client, namespace: &str, uid: &str, name: &str) -> bool {
    match requests(&Api::namespaced(client.clone(), namespace), namespace).await {
        Ok(requests) => lifecycle::is_needed(uid, name, requests.iter().filter_map(|r| r.status.as_ref())),
        Err(error) => {
            tracing::warn!(%error, namespace, name, "it is not known whether a rollback needs the snapshot, so it is kept");
            true
        }
    }
}

/// Of the contents in `records` (UID, namespace, name), those that no rollback under way needs.
pub(super) async fn free(client: &Client, records: Vec<(String, String, String)>) -> Vec<String> {
    let namespaces: HashSet<String> = records.iter().map(|(_, namespace, _)| namespace.clone()).collect();
    let mut free = Vec::new();
    for namespace in namespaces {
        let found = requests(&Api::namespaced(client.clone(), &namespace), &namespace).await;
        let requests = match found {
            Ok(requests) => requests,
            Err(error) => {
                tracing::warn!(%error, namespace, "it is not known whether a rollback needs these contents, so they are kept");
                continue;
            }
        };
        let of_it = records.iter().filter(|(_, at, _)| *at == namespace);
        free.extend(
            of_it
                .filter(|(uid, _, name)| {
                    !lifecycle::is_needed(uid, name, requests.iter().filter_map(|r| r.status.as_ref()))
                })
                .map(|(uid, _, _)| uid.clone()),
        );
    }
    free
}

async fn requests(api: &Api<RollbackRequest>, namespace: &str) -> Result<Vec<RollbackRequest>> {
    let what = format!("list rollbackrequests in {namespace}");
    let mut params = ListParams::default().limit(PAGE);
    let mut every = Vec::new();
    loop {
        let page = call::repeat(&what, call::PAGE_DEADLINE, || api.list(&params)).await?;
        every.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(every),
        }
    }
}
