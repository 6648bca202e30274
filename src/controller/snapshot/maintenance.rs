//! Keeps the repository in step with the Snapshots that exist, and tidy.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use super::references;
use crate::{
    api::names,
    cluster::{
        self, crds,
        list::{Collection, Pager},
    },
    controller::{context::Context, rollback_request::leftovers, store::Released},
    domain::lifecycle,
    repository::Repository,
};

/// Sweeps and tidies every `--maintenance-interval`, the first time right after the start.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let mut missing_since: HashMap<String, Instant> = HashMap::new();
    let mut settled = leftovers::Settled::default();
    let mut verified = Instant::now();
    loop {
        let interval = match context.store.repository() {
            Ok(repository) => {
                tidy(&context, &repository, &mut missing_since).await;
                leftovers::collect(&context.client, &repository, &mut settled).await;
                if verified.elapsed() >= context.options.verify_interval || context.store.wants_verification() {
                    verify(&context, &repository).await;
                    verified = Instant::now();
                }
                context
                    .options
                    .maintenance_interval
                    .min(context.options.verify_interval)
            }
            Err((_, corrupt)) => {
                let corrupt = corrupt || context.store.wants_verification();
                context.metrics.repository_corrupt.set(i64::from(corrupt));
                std::time::Duration::from_millis(500)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            () = context.store.maintenance_wanted() => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn tidy(context: &Context, repository: &Repository, missing_since: &mut HashMap<String, Instant>) {
    if let Err(error) = repository.refresh().await {
        tracing::warn!(%error, "the repository cannot be refreshed");
    }
    let released = context.store.take_released();
    match sweep(context, repository, missing_since, &released).await {
        Ok(0) => {}
        Ok(freed) => tracing::info!(freed, "contents of Snapshots that are gone are let go"),
        Err(error) => {
            tracing::warn!(
                error,
                "contents of Snapshots that are gone cannot be let go now; trying again"
            );
            context.store.put_released_back(released);
        }
    }
    match repository.maintain().await {
        Ok(report) => tracing::debug!(?report, "the repository is tidy"),
        Err(error) => tracing::warn!(%error, "the repository cannot be tidied"),
    }
    show_usage(context, repository);
}

/// Reads every stored byte, and says on each affected Snapshot what was found.
async fn verify(context: &Context, repository: &Repository) {
    let report = match repository.verify(|_| {}).await {
        Ok(report) => report,
        Err(error) => return tracing::warn!(%error, "the repository cannot be verified"),
    };
    context.metrics.repository_corrupt.set(i64::from(!report.is_clean()));
    let mut damaged = HashSet::new();
    for finding in &report.findings {
        tracing::error!(
            blob = finding.blob,
            problems = finding.problems.join("; "),
            snapshots = finding.snapshots.len(),
            "the repository is damaged"
        );
        damaged.extend(finding.snapshots.iter().cloned());
    }
    for uid in context.store.set_damaged(damaged) {
        if let Some(record) = repository.snapshot(&uid) {
            context.captures.look_again(&record.namespace, &record.name);
        }
    }
}

/// Brings the gauges up to date.
pub fn show_usage(context: &Context, repository: &Repository) {
    let usage = repository.usage();
    let metrics = &context.metrics;
    metrics
        .repository_bytes
        .set(i64::try_from(usage.stored_bytes).unwrap_or(i64::MAX));
    metrics
        .repository_quota_bytes
        .set(usage.quota.and_then(|q| i64::try_from(q).ok()).unwrap_or(0));
    metrics
        .repository_snapshots
        .set(i64::try_from(usage.snapshots).unwrap_or(i64::MAX));
}

/// Lets go of contents whose Snapshot is gone, as [`lifecycle::is_gone`] says.
async fn sweep(
    context: &Context,
    repository: &Repository,
    missing_since: &mut HashMap<String, Instant>,
    released: &Released,
) -> Result<usize, String> {
    // Asked after the deletions were seen: those of a kind that goes away come after its CRD began to.
    let served = crds::served_since(&context.client, "snapshots");
    let Some(kind_since) = served.await.map_err(|e| e.to_string())? else {
        missing_since.clear();
        tracing::warn!("Snapshots are not served; no contents are let go while that is so");
        return Ok(0);
    };
    // What is committed after the list was made must not look missing.
    let stored = repository.snapshots(None);
    let alive = live_uids(context).await.map_err(|e| e.to_string())?;
    let missing: HashSet<&str> = stored
        .iter()
        .filter(|record| !alive.contains(&record.uid))
        .map(|record| record.uid.as_str())
        .collect();
    missing_since.retain(|uid, _| missing.contains(uid.as_str()));
    let now = Instant::now();
    let mut gone = Vec::new();
    for uid in missing {
        let since = *missing_since.entry(uid.to_owned()).or_insert(now);
        let vanished = lifecycle::Vanished {
            seen_to_go: released.get(uid).copied(),
            kind_since,
            missing_for: now.duration_since(since),
        };
        if !lifecycle::is_gone(&vanished, context.options.vanished_grace) {
            continue;
        }
        // Whoever was seen to go was asked then.
        if released.contains_key(uid) {
            gone.push(uid.to_owned());
            continue;
        }
        match is_retained(repository, uid).await {
            Ok(true) => {}
            Ok(false) => gone.push(uid.to_owned()),
            // Damaged notes of one snapshot must not keep the contents of all others.
            Err(error) => tracing::warn!(
                uid,
                error,
                "it cannot be read whether contents are to be retained; they stay"
            ),
        }
    }
    let gone = unneeded(context, repository, gone).await;
    if !gone.is_empty() {
        repository.delete(&gone).await.map_err(|e| e.to_string())?;
    }
    Ok(gone.len())
}

/// Of the contents of deleted Snapshots, those that no rollback under way needs; the sweep asks again for the others.
async fn unneeded(context: &Context, repository: &Repository, uids: Vec<String>) -> Vec<String> {
    let records = uids.into_iter().filter_map(|uid| {
        let record = repository.snapshot(&uid)?;
        Some((uid, record.namespace.clone(), record.name.clone()))
    });
    references::free(&context.client, records.collect()).await
}

/// Whether the contents outlive their Snapshot.
async fn is_retained(repository: &Repository, uid: &str) -> Result<bool, String> {
    match super::capture::recall(repository, uid).await {
        Ok(captured) => Ok(captured.extras.retain),
        Err(failure) => Err(failure.message),
    }
}

async fn live_uids(context: &Context) -> cluster::Result<HashSet<String>> {
    let collection = Collection {
        group: names::GROUP.into(),
        version: names::VERSION.into(),
        plural: "snapshots".into(),
        namespace: None,
    };
    let mut uids = HashSet::new();
    let mut pager = Pager::start(context.client.clone(), collection, true);
    while let Some(mut page) = pager.next().await? {
        for metadata in page.take_metadata().into_iter().flatten() {
            if metadata.uid.is_empty() {
                // Contents of a Snapshot that is not seen would be taken for nobody's.
                let what = "list snapshots".into();
                let source = serde::de::Error::custom(format!("{} has no UID", metadata.name));
                return Err(cluster::Error::Unreadable { what, source });
            }
            uids.insert(metadata.uid);
        }
    }
    Ok(uids)
}
