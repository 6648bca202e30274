//! Captures as a user sees them: from the creation of Snapshots until all are Ready.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use backstep::api::snapshot::{Snapshot, SnapshotPhase, SnapshotSpec};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use testbed::{Access, ApiRequest, ApiRequests};

use super::load::WRITERS;
use super::operator::Operator;
use super::raw::{self, Resource};

/// A kind's group in requests of Backstep itself.
const OWN_GROUP: &str = backstep::api::names::GROUP;

/// What a capture took.
#[derive(Clone, Debug)]
pub struct Captured {
    /// From the first creation to the last Ready, as a watch shows it.
    pub wall: Duration,
    /// What the API server counted meanwhile.
    pub requests: ApiRequests,
    /// The Snapshots by namespace.
    pub snapshots: BTreeMap<String, Snapshot>,
}

/// How the Snapshots come.
#[derive(Clone, Copy)]
pub enum Arrival<'a> {
    /// As fast as clients create them; the time begins with the first creation.
    Created,
    /// All at once: the operator is stopped until they are there, and the time begins when it goes on.
    AtOnce(&'a Operator),
}

/// Creates a Snapshot called `name` in each of `namespaces` and waits until all are Ready.
///
/// # Errors
/// A Snapshot that Failed, with its conditions; or those that are not Ready after `deadline`, with their phases.
pub async fn capture(
    access: &Access,
    client: &Client,
    namespaces: &[String],
    name: &str,
    arrival: Arrival<'_>,
    deadline: Duration,
) -> Result<Captured> {
    let every: Api<Snapshot> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher(every, config).boxed();
    let end = tokio::time::Instant::now() + deadline;
    // The watch is open before the first creation, so that no time is lost or won by it.
    loop {
        match next(&mut events, end).await? {
            Some(watcher::Event::InitDone) => break,
            Some(_) => {}
            None => bail!("the watch of Snapshots did not open within {} s", deadline.as_secs()),
        }
    }
    let before = access.api_requests().await?;
    let create = futures::stream::iter(namespaces).map(|namespace| create(client, namespace, name));
    let create = create.buffer_unordered(WRITERS).try_collect::<()>();
    let (started, snapshots) = match arrival {
        Arrival::Created => {
            let started = Instant::now();
            let ((), snapshots) = futures::try_join!(create, all_ready(&mut events, namespaces, end))?;
            (started, snapshots)
        }
        Arrival::AtOnce(operator) => {
            operator.pause().await?;
            create.await?;
            operator.resume().await?;
            (Instant::now(), all_ready(&mut events, namespaces, end).await?)
        }
    };
    let wall = started.elapsed();
    let requests = access.api_requests().await?.since(&before);
    Ok(Captured {
        wall,
        requests,
        snapshots,
    })
}

async fn all_ready<S>(
    events: &mut S,
    namespaces: &[String],
    end: tokio::time::Instant,
) -> Result<BTreeMap<String, Snapshot>>
where
    S: futures::Stream<Item = watcher::Result<watcher::Event<Snapshot>>> + Unpin,
{
    let mut waiting: BTreeSet<&str> = namespaces.iter().map(String::as_str).collect();
    let mut snapshots = BTreeMap::new();
    while !waiting.is_empty() {
        let Some(event) = next(events, end).await? else {
            let seen: Vec<_> = waiting.iter().take(5).map(|n| describe(n, snapshots.get(*n))).collect();
            bail!(
                "{} of {} Snapshots are not Ready in time, such as {}",
                waiting.len(),
                namespaces.len(),
                seen.join("; ")
            );
        };
        let (watcher::Event::Apply(snapshot) | watcher::Event::InitApply(snapshot)) = event else {
            continue;
        };
        let namespace = snapshot.namespace().unwrap_or_default();
        match snapshot.status.as_ref().and_then(|status| status.phase) {
            Some(SnapshotPhase::Ready) => {
                waiting.remove(namespace.as_str());
            }
            Some(SnapshotPhase::Failed | SnapshotPhase::Expired) => {
                bail!("a Snapshot failed: {}", describe(&namespace, Some(&snapshot)));
            }
            Some(SnapshotPhase::Pending | SnapshotPhase::Capturing) | None => {}
        }
        snapshots.insert(namespace, snapshot);
    }
    Ok(snapshots)
}

/// The next event, or `None` when `end` has come.
async fn next<S>(events: &mut S, end: tokio::time::Instant) -> Result<Option<watcher::Event<Snapshot>>>
where
    S: futures::Stream<Item = watcher::Result<watcher::Event<Snapshot>>> + Unpin,
{
    match tokio::time::timeout_at(end, events.try_next()).await {
        // The watcher itself goes on after an error, such as the API server's restart.
        Ok(Err(error)) => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if tokio::time::Instant::now() >= end {
                return Err(error).context("Snapshots cannot be watched");
            }
            Ok(Some(watcher::Event::Init))
        }
        Ok(Ok(event)) => Ok(Some(event.context("the watch of Snapshots ended")?)),
        Err(_) => Ok(None),
    }
}

async fn create(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let snapshots: Api<Snapshot> = Api::namespaced(client.clone(), namespace);
    let snapshot = Snapshot::new(name, SnapshotSpec::default());
    snapshots
        .create(&PostParams::default(), &snapshot)
        .await
        .with_context(|| format!("cannot create the Snapshot {namespace}/{name}"))?;
    Ok(())
}

fn describe(namespace: &str, snapshot: Option<&Snapshot>) -> String {
    let status = snapshot.and_then(|snapshot| snapshot.status.as_ref());
    let Some(status) = status else {
        return format!("{namespace}: no status");
    };
    let conditions: Vec<_> = status
        .conditions
        .iter()
        .map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message))
        .collect();
    format!("{namespace}: {:?}, {}", status.phase, conditions.join(", "))
}

/// Deletes every Snapshot and waits until none is left.
///
/// # Errors
/// The API server's; or what is left after a minute.
pub async fn delete_all(client: &Client) -> Result<()> {
    let every: Api<Snapshot> = Api::all(client.clone());
    let left: BTreeSet<_> = every
        .list_metadata(&ListParams::default())
        .await?
        .iter()
        .filter_map(ResourceExt::namespace)
        .collect();
    futures::stream::iter(left)
        .map(|namespace| async move {
            let snapshots: Api<Snapshot> = Api::namespaced(client.clone(), &namespace);
            snapshots
                .delete_collection(&DeleteParams::default(), &ListParams::default())
                .await
                .map(drop)
        })
        .buffer_unordered(WRITERS)
        .try_collect::<()>()
        .await?;
    testbed::wait_until(Duration::from_secs(60), "no Snapshot to be left", async || match every
        .list_metadata(&ListParams::default())
        .await?
        .items
        .len()
    {
        0 => Ok(Some(())),
        left => bail!("{left} are left"),
    })
    .await
}

/// Kinds that tell the operator about the cluster, and are not content of a namespace.
const ABOUT_THE_CLUSTER: [&str; 1] = ["namespaces"];

/// Groups that the operator reads whatever is captured: its own kinds, its Lease, and what the guard watches.
const NOT_CAPTURED: [&str; 4] = [
    OWN_GROUP,
    "coordination.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
];

/// Whether `request` is part of a capture.
fn of_others(request: &ApiRequest) -> bool {
    !request.resource.is_empty() && !NOT_CAPTURED.contains(&request.group.as_str())
}

/// LIST requests, of whatever but Backstep's own kinds.
pub fn lists(requests: &ApiRequests) -> u64 {
    requests.count(|request| request.verb == "LIST" && of_others(request))
}

/// GET requests for single objects that a Snapshot may hold.
pub fn gets(requests: &ApiRequests) -> u64 {
    requests.count(|request| {
        request.verb == "GET" && of_others(request) && !ABOUT_THE_CLUSTER.contains(&request.resource.as_str())
    })
}

/// Writes of the status of Snapshots.
pub fn status_writes(requests: &ApiRequests) -> u64 {
    requests.count(|request| {
        request.group == OWN_GROUP
            && request.resource == "snapshots"
            && request.subresource == "status"
            && matches!(request.verb.as_str(), "PUT" | "PATCH" | "APPLY")
    })
}

fn listed_if(requests: &ApiRequests, wanted: impl Fn(&ApiRequest) -> bool) -> Vec<Resource> {
    let kinds: BTreeSet<_> = requests
        .iter()
        .filter(|(request, _)| request.verb == "LIST" && of_others(request) && wanted(request))
        .map(|(request, _)| Resource {
            group: request.group.clone(),
            version: request.version.clone(),
            plural: request.resource.clone(),
        })
        .collect();
    kinds.into_iter().collect()
}

/// The kinds of a namespace's objects that were listed: what RAW has to list as well.
pub fn listed(requests: &ApiRequests) -> Vec<Resource> {
    listed_if(requests, |request| {
        !ABOUT_THE_CLUSTER.contains(&request.resource.as_str())
    })
}

/// The least LIST requests for the kinds that `captured` listed, in `namespace` or in all; the lists about the cluster
/// (which namespaces there are) are kinds like others.
///
/// # Errors
/// The API server's.
pub async fn least(client: &Client, captured: &Captured, namespace: Option<&str>) -> Result<u64> {
    let about = listed_if(&captured.requests, |request| {
        ABOUT_THE_CLUSTER.contains(&request.resource.as_str())
    });
    let objects = raw::counts(client, &listed(&captured.requests), namespace).await?;
    let cluster = raw::counts(client, &about, None).await?;
    Ok(raw::least_requests(objects.values().chain(cluster.values())))
}
