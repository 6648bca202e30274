//! What the repository keeps of a request beside its record: removed when nobody can ask for it any more.

use std::collections::{BTreeMap, HashMap, HashSet};

use kube::{Api, Client, ResourceExt as _, api::ListParams};

use crate::{
    api::{RollbackRequest, RollbackRequestStatus},
    cluster::{self, call},
    controller::context::Context,
    domain::{
        object::Digest,
        record::{self, Record},
        report::{self, Head, Stand},
        rollback,
    },
    repository::{self, Repository, Room},
};

/// Requests a page.
const PAGE: u32 = 500;

/// Removes the items that the plan of `status` is bound to: its request is over, or the plan was superseded. What cannot be removed now
/// is found by [`collect`].
pub(super) async fn let_go(context: &Context, request: &RollbackRequest, status: Option<&RollbackRequestStatus>) {
    let plan = status.and_then(|status| status.plan.as_ref());
    let Some(digest) = plan.and_then(|plan| plan.digest.parse().ok()) else {
        return;
    };
    // Nobody was asked about it.
    if request.spec.dry_run {
        return;
    }
    let Ok(repository) = super::repository(context) else {
        return;
    };
    let name = report::name(&request.uid().unwrap_or_default(), digest);
    if let Err(error) = repository.delete_document(Room::Plans, &name).await {
        tracing::debug!(%error, name, "what a plan was bound to is removed later");
    }
}

/// UIDs of requests whose reports were looked through before: nothing of them is left to remove until they are gone.
#[derive(Default)]
pub struct Settled(HashSet<String>);

/// Removes what requests that are over or gone left behind.
pub async fn collect(client: &Client, repository: &Repository, settled: &mut Settled) {
    match look_and_sweep(client, repository, settled).await {
        Ok(0) => {}
        Ok(removed) => tracing::info!(removed, "documents of rollbacks that are over are removed"),
        Err(why) => tracing::warn!(
            why,
            "documents of rollbacks that are over cannot be removed now; trying again"
        ),
    }
}

async fn look_and_sweep(client: &Client, repository: &Repository, settled: &mut Settled) -> Result<usize, String> {
    // What is written after the requests were listed must not look like nobody's.
    let left = Left::read(repository).await.map_err(|e| e.to_string())?;
    if left.is_empty() {
        return Ok(0);
    }
    let Some(requests) = Requests::read(client).await.map_err(|e| e.to_string())? else {
        tracing::warn!("RollbackRequests are not served; none of their documents are removed while that is so");
        return Ok(0);
    };
    sweep(repository, &left, &requests, settled)
        .await
        .map_err(|e| e.to_string())
}

/// Names of the documents that are there.
struct Left {
    plans: Vec<String>,
    reports: Vec<String>,
}

impl Left {
    async fn read(repository: &Repository) -> repository::Result<Self> {
        Ok(Self {
            plans: repository.documents(Room::Plans).await?,
            reports: repository.documents(Room::Reports).await?,
        })
    }

    const fn is_empty(&self) -> bool {
        self.plans.is_empty() && self.reports.is_empty()
    }
}

/// The requests that are there, by UID: whether each is over, and the digest of its last plan.
#[derive(Default)]
struct Requests(HashMap<String, (bool, Option<Digest>)>);

impl Requests {
    /// `None` where the server does not serve them.
    async fn read(client: &Client) -> cluster::Result<Option<Self>> {
        let api: Api<RollbackRequest> = Api::all(client.clone());
        let mut params = ListParams::default().limit(PAGE);
        let mut every = HashMap::new();
        loop {
            let page = call::repeat("list rollbackrequests", call::PAGE_DEADLINE, || api.list(&params)).await;
            let page = match page {
                Ok(page) => page,
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            };
            for request in page.items {
                let uid = request.uid().unwrap_or_default();
                let status = request.status.unwrap_or_default();
                let last = status.plan.and_then(|plan| plan.digest.parse().ok());
                every.insert(uid, (rollback::is_final(status.phase.unwrap_or_default()), last));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => return Ok(Some(Self(every))),
            }
        }
    }
}

/// Removes of `left` what nobody can ask for any more.
async fn sweep(
    repository: &Repository,
    left: &Left,
    requests: &Requests,
    settled: &mut Settled,
) -> repository::Result<usize> {
    let mut removed = 0;
    let mut reports: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for name in &left.reports {
        if let Some(uid) = report::owner(name) {
            reports.entry(uid).or_default().push(name);
        }
    }
    let records = if reports.keys().any(|uid| !requests.0.contains_key(*uid)) {
        recorded(repository).await?
    } else {
        HashMap::new()
    };
    let stand = |uid: &str| match requests.0.get(uid) {
        Some((false, _)) => Stand::Working,
        Some((true, _)) => Stand::Over,
        None if records.contains_key(uid) => Stand::Recorded,
        None => Stand::Gone,
    };
    for name in &left.plans {
        if report::owner(name).is_some_and(|uid| !report::needs_bound_items(stand(uid))) {
            repository.delete_document(Room::Plans, name).await?;
            removed += 1;
        }
    }
    settled
        .0
        .retain(|uid| reports.contains_key(uid.as_str()) && stand(uid) != Stand::Gone);
    for (uid, mut names) in reports {
        let stand = stand(uid);
        if stand == Stand::Working || settled.0.contains(uid) {
            continue;
        }
        let last = match (stand, requests.0.get(uid), records.get(uid)) {
            (Stand::Over, Some((_, last)), _) => *last,
            (Stand::Recorded, _, Some(name)) => {
                let record: Option<Record> = repository.document(Room::History, name).await?;
                record.and_then(|record| record.status.plan?.digest.parse().ok())
            }
            _ => None,
        };
        let head = last.map(|digest| report::name(uid, digest));
        let parts: Vec<String> = match &head {
            Some(head) if names.contains(&head) => {
                let head: Option<Head> = repository.document(Room::Reports, head).await?;
                head.map(|head| head.parts).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        // Parts go last: what names them must not outlive them.
        names.sort_by_key(|name| report::is_part(name));
        for name in names {
            let is_last = head.as_ref() == Some(name) || parts.contains(name);
            if !report::needs_whole_plan(stand, is_last) {
                repository.delete_document(Room::Reports, name).await?;
                removed += 1;
            }
        }
        if stand != Stand::Gone {
            settled.0.insert(uid.to_owned());
        }
    }
    Ok(removed)
}

/// Names of the records by the UID of the request.
async fn recorded(repository: &Repository) -> repository::Result<HashMap<String, String>> {
    let names = repository.documents(Room::History).await?;
    Ok(names
        .into_iter()
        .filter_map(|name| Some((record::parse(&name)?.1.to_owned(), name)))
        .collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use serde_json::json;

    use super::*;
    use crate::{
        cluster::clock,
        repository::{
            Backend, ObjectStoreBackend, Options,
            backend::fault::{Crash, FaultBackend, Faults},
        },
    };

    const WORKING: &str = "00000000-0000-0000-0000-000000000001";
    const OVER: &str = "00000000-0000-0000-0000-000000000002";
    const RECORDED: &str = "00000000-0000-0000-0000-000000000003";
    const GONE: &str = "00000000-0000-0000-0000-000000000004";

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    async fn open(backend: &Arc<dyn Backend>) -> Repository {
        Repository::open(backend.clone(), Options::new(clock::now))
            .await
            .unwrap()
    }

    fn head(uid: &str, plan: &str) -> serde_json::Value {
        json!({
            "namespace": "shop", "name": plan, "items": 1, "parts": [report::part(uid, digest(plan))],
            "spec": {
                "requestRef": {"name": "back", "uid": uid}, "digest": digest(plan).to_string(), "summary": {},
                "target": {"snapshot": "good", "version": 1, "digest": digest("good").to_string()},
                "risk": {"level": "Low", "score": 1, "factors": []},
            },
        })
    }

    /// Of each request an older and a newer plan, each with its items and, in two documents, its whole.
    async fn everything(repository: &Repository) {
        for uid in [WORKING, OVER, RECORDED, GONE] {
            for plan in ["old", "new"] {
                let name = report::name(uid, digest(plan));
                repository.put_document(Room::Plans, &name, &json!({})).await.unwrap();
                let part = report::part(uid, digest(plan));
                repository
                    .put_document(Room::Reports, &part, &json!({"items": []}))
                    .await
                    .unwrap();
                repository
                    .put_document(Room::Reports, &name, &head(uid, plan))
                    .await
                    .unwrap();
            }
        }
        let record = json!({
            "namespace": "shop", "name": "back", "uid": RECORDED, "spec": {"target": {"snapshot": "good"}},
            "status": {"phase": "Completed", "plan": {"name": "back-1", "digest": digest("new").to_string()}},
        });
        let name = record::name("shop", 1_795_000_000_123, RECORDED);
        repository.put_document(Room::History, &name, &record).await.unwrap();
    }

    fn requests() -> Requests {
        Requests(HashMap::from([
            (WORKING.to_owned(), (false, Some(digest("new")))),
            (OVER.to_owned(), (true, Some(digest("new")))),
        ]))
    }

    async fn once(repository: &Repository, settled: &mut Settled) -> repository::Result<usize> {
        let left = Left::read(repository).await?;
        sweep(repository, &left, &requests(), settled).await
    }

    fn wanted() -> (Vec<String>, Vec<String>) {
        let plans = ["old", "new"].map(|plan| report::name(WORKING, digest(plan)));
        let mut reports: Vec<String> = ["old", "new"]
            .into_iter()
            .flat_map(|plan| [report::name(WORKING, digest(plan)), report::part(WORKING, digest(plan))])
            .collect();
        for uid in [OVER, RECORDED] {
            reports.extend([report::name(uid, digest("new")), report::part(uid, digest("new"))]);
        }
        let (mut plans, mut reports) = (plans.to_vec(), reports);
        plans.sort();
        reports.sort();
        (plans, reports)
    }

    #[tokio::test]
    async fn a_sweep_that_dies_at_any_removal_is_finished_by_the_next_and_takes_nothing_that_is_needed() {
        let mut deaths = 0;
        for write in 0.. {
            for after in [false, true] {
                let backend: Arc<dyn Backend> = Arc::new(ObjectStoreBackend::new(Arc::new(InMemory::new()), "memory"));
                everything(&open(&backend).await).await;
                let faults = Faults::crash_at(Crash { write, after });
                let breaks: Arc<dyn Backend> = Arc::new(FaultBackend::new(backend.clone(), faults.clone()));
                let first = once(&open(&breaks).await, &mut Settled::default()).await;
                assert_eq!(first.is_err(), faults.is_dead(), "{first:?}");
                deaths += usize::from(faults.is_dead());
                let repository = open(&backend).await;
                let mut settled = Settled::default();
                once(&repository, &mut settled).await.unwrap();
                let (plans, reports) = wanted();
                assert_eq!(
                    repository.documents(Room::Plans).await.unwrap(),
                    plans,
                    "death at {write}"
                );
                assert_eq!(
                    repository.documents(Room::Reports).await.unwrap(),
                    reports,
                    "death at {write}"
                );
                assert!(repository.verify(|_| {}).await.unwrap().is_clean());
                assert_eq!(once(&repository, &mut settled).await.unwrap(), 0);
                if !faults.is_dead() {
                    // Six plans; of the requests that are over one plan with two documents each, of the one that is gone both.
                    assert_eq!(deaths, 2 * (6 + 2 + 2 + 4));
                    return;
                }
            }
        }
    }
}
