//! One pass: what waits is read into the repository and committed at once.

mod sink;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use tokio::sync::Mutex;

use self::sink::{Lane, RepositorySink};
use super::queue::{CaptureFailure, CaptureOutcome, CaptureRequest, Captured};
use crate::{
    api::{
        reasons,
        snapshot::{Capture, ComponentCount, DeletionPolicy, SecretsMode, VolumeMethod},
    },
    capture::{self, Catalog, Failure, Pass, Target},
    cluster::{Class, clock},
    controller::{context::Context, earlier::Earlier},
    domain::{
        object::FingerprintKey,
        snapshot::{Extras, KindRead, Selection},
    },
    repository::{self, BuiltManifest, LineageKey, ManifestBuilder, ParentHint, SnapshotDraft, SnapshotRecord},
};

/// How often a pass is made again because the repository was tidied underneath it.
const REDO: usize = 3;

/// Name of a lineage that the spec does not name.
pub const DEFAULT_LINEAGE: &str = "default";

/// Makes one pass. The outcomes are in the order of the requests.
pub async fn pass(context: &Context, catalog: &Mutex<Catalog>, requests: Vec<CaptureRequest>) -> Vec<CaptureOutcome> {
    let count = requests.len();
    let mut outcomes: Vec<Option<CaptureOutcome>> = (0..count).map(|_| None).collect();
    let mut last = None;
    for _ in 0..REDO {
        match attempt(context, catalog, &requests, &mut outcomes).await {
            Ok(()) => break,
            Err(error) => {
                let redo = matches!(&error, PassError::Repository(error) if error.needs_new_capture());
                last = Some(error.into_failure());
                if !redo {
                    break;
                }
            }
        }
    }
    let missed = last.unwrap_or_else(|| CaptureFailure {
        class: Class::Transient,
        reason: reasons::API_UNAVAILABLE,
        message: "the capture ended without an outcome; it is tried again".into(),
    });
    outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap_or_else(|| Err(missed.clone())))
        .collect()
}

enum PassError {
    Capture(Failure),
    Repository(repository::Error),
    Closed(String, bool),
}

impl From<Failure> for PassError {
    fn from(failure: Failure) -> Self {
        Self::Capture(failure)
    }
}

impl From<repository::Error> for PassError {
    fn from(error: repository::Error) -> Self {
        Self::Repository(error)
    }
}

impl PassError {
    fn into_failure(self) -> CaptureFailure {
        match self {
            Self::Capture(failure) => to_failure(failure),
            Self::Repository(error) => to_failure(store_failure(&error)),
            Self::Closed(message, corrupt) => to_failure(closed(message, corrupt)),
        }
    }
}

fn to_failure(failure: Failure) -> CaptureFailure {
    CaptureFailure {
        class: failure.class,
        reason: failure.reason,
        message: failure.message,
    }
}

fn closed(message: String, corrupt: bool) -> Failure {
    if corrupt {
        Failure::new(Class::Corrupt, reasons::CORRUPT, message)
    } else {
        Failure::new(Class::Transient, reasons::STORE_UNAVAILABLE, message)
    }
}

/// What a repository's error means for a Snapshot.
fn store_failure(error: &repository::Error) -> Failure {
    let (class, reason) = match error {
        repository::Error::Corrupt { .. } => (Class::Corrupt, reasons::CORRUPT),
        repository::Error::QuotaExceeded { .. } => (Class::Invalid, reasons::QUOTA_EXCEEDED),
        repository::Error::Forbidden { .. } => (Class::Forbidden, reasons::FORBIDDEN),
        repository::Error::NewerFormat { .. } => (Class::Invalid, reasons::NEWER_FORMAT),
        error if error.is_transient() => (Class::Transient, reasons::STORE_UNAVAILABLE),
        _ => (Class::Invalid, reasons::STORE_UNAVAILABLE),
    };
    Failure::new(class, reason, error.to_string())
}

async fn attempt(
    context: &Context,
    catalog: &Mutex<Catalog>,
    requests: &[CaptureRequest],
    outcomes: &mut [Option<CaptureOutcome>],
) -> Result<(), PassError> {
    let repository = context
        .store
        .repository()
        .map_err(|(message, corrupt)| PassError::Closed(message, corrupt))?;
    repository.refresh().await?;
    // A capture that was committed before a crash is not made again.
    for (request, outcome) in requests.iter().zip(outcomes.iter_mut()) {
        if outcome.is_none() && repository.snapshot(&request.uid).is_some() {
            *outcome = Some(recall(&repository, &request.uid).await);
        }
    }
    let open: Vec<usize> = (0..requests.len()).filter(|i| outcomes[*i].is_none()).collect();
    if open.is_empty() {
        return Ok(());
    }
    let started = std::time::Instant::now();
    let started_at = clock::now();
    let key = fingerprint_key(context, open.iter().map(|i| &requests[*i])).await?;
    let mut targets = Vec::new();
    let mut target_of = Vec::new();
    for index in open {
        let request = &requests[index];
        let capture = request.spec.capture.clone().unwrap_or_default();
        match Selection::compile(&capture) {
            Ok(selection) => {
                let mut target = Target::new(&request.namespace, selection, key.clone());
                // Whoever asked for no volume data need not be told that there is none.
                target.lists_volume_data = request
                    .spec
                    .volumes
                    .as_ref()
                    .is_none_or(|v| v.method != Some(VolumeMethod::Skip));
                targets.push(target);
                target_of.push(index);
            }
            Err(error) => {
                outcomes[index] = Some(Err(CaptureFailure {
                    class: Class::Invalid,
                    reason: reasons::INVALID_SPEC,
                    message: error.to_string(),
                }));
            }
        }
    }
    let writer = repository.writer().await?;
    let newest: Vec<_> = target_of
        .iter()
        .map(|index| newest(&repository, &lineage_key(&requests[*index])))
        .collect();
    let mut lanes = Vec::new();
    for (((record, previous), target), index) in newest
        .iter()
        .zip(Earlier::all(&repository, &newest).await)
        .zip(&targets)
        .zip(&target_of)
    {
        let request = &requests[*index];
        let builder = writer.manifest(record.as_deref()).await?;
        let answers = context.answers.of(&request.namespace, &request.name);
        lanes.push(Lane::new(builder, previous, answers, target.selection.secrets()));
    }
    let sink = RepositorySink::new(&writer, lanes);
    let pass = Pass {
        client: &context.client,
        catalog,
        options: capture::Options {
            concurrency: usize::from(context.options.captures),
        },
    };
    let reports = capture::run(&pass, &targets, &sink).await?;

    let mut drafts = Vec::new();
    let mut committed = Vec::new();
    for ((index, report), (builder, read)) in target_of.iter().zip(reports).zip(sink.into_targets()) {
        match report.outcome {
            Err(failure) => outcomes[*index] = Some(Err(to_failure(failure))),
            Ok(captured) => {
                let request = &requests[*index];
                let namespace_uid = captured.namespace_uid.clone();
                let mut extras = extras(request, captured, read);
                let built = finish(builder, &extras).await?;
                // Only the next capture reads it, and thousands of outcomes may wait to be published.
                extras.read = BTreeMap::new();
                drafts.push(draft(request, namespace_uid, started_at, built));
                committed.push((*index, extras));
            }
        }
    }
    if !drafts.is_empty() {
        let records = writer.commit(drafts).await?;
        for ((index, extras), record) in committed.into_iter().zip(records) {
            context.metrics.objects_captured.inc_by(record.counts.captured);
            outcomes[index] = Some(Ok(Captured { record, extras }));
        }
    }
    context.metrics.capture_seconds.observe(started.elapsed().as_secs_f64());
    Ok(())
}

async fn finish(mut builder: ManifestBuilder, extras: &Extras) -> Result<BuiltManifest, PassError> {
    let json = serde_json::to_value(extras).map_err(|e| {
        Failure::new(
            Class::Invalid,
            reasons::CAPTURE_INCOMPLETE,
            format!("the manifest cannot be written: {e}"),
        )
    })?;
    builder.set_extras(json);
    builder.set_digest_extra(&extras.digest_bytes());
    Ok(builder.finish().await?)
}

fn extras(request: &CaptureRequest, captured: capture::Captured, read: BTreeMap<String, KindRead>) -> Extras {
    let images = captured.images;
    let mut components: Vec<ComponentCount> = captured
        .components
        .into_iter()
        .map(|(name, items)| ComponentCount { name, items })
        .collect();
    if !images.is_empty() {
        let items = i64::try_from(images.len()).unwrap_or(i64::MAX);
        components.push(ComponentCount {
            name: crate::api::snapshot::Component::Images,
            items,
        });
        components.sort_by_key(|c| c.name);
    }
    Extras {
        retain: request.spec.deletion_policy == Some(DeletionPolicy::Retain),
        capture: request.spec.capture.clone(),
        components,
        skipped: captured.skipped,
        images,
        unfinished_jobs: Some(captured.unfinished_jobs),
        read,
    }
}

fn draft(
    request: &CaptureRequest,
    namespace_uid: String,
    started_at: Timestamp,
    manifest: BuiltManifest,
) -> SnapshotDraft {
    SnapshotDraft {
        uid: request.uid.clone(),
        namespace: request.namespace.clone(),
        namespace_uid,
        name: request.name.clone(),
        lineage: lineage(request).to_owned(),
        manifest,
        created_at: started_at,
        author: request.spec.requested_by.as_ref().and_then(|by| by.username.clone()),
        safety: request.spec.is_safety(),
        tags: request.spec.tags.clone(),
        parent: ParentHint::Head,
    }
}

fn lineage(request: &CaptureRequest) -> &str {
    request.spec.lineage.as_deref().unwrap_or(DEFAULT_LINEAGE)
}

fn lineage_key(request: &CaptureRequest) -> LineageKey {
    LineageKey::new(&request.namespace, lineage(request))
}

fn newest(repository: &repository::Repository, key: &LineageKey) -> Option<Arc<SnapshotRecord>> {
    repository.snapshots(Some(key)).pop()
}

/// The outcome of a capture that is in the repository already.
pub async fn recall(repository: &repository::Repository, uid: &str) -> CaptureOutcome {
    let read = async {
        let reader = repository.manifest(uid).await?;
        let record = Arc::new(reader.record().clone());
        let extras = reader.extras().await?;
        Ok::<_, repository::Error>((record, extras))
    };
    match read.await {
        Ok((record, extras)) => {
            let extras = extras
                .and_then(|json| serde_json::from_value(json).ok())
                .unwrap_or_default();
            Ok(Captured { record, extras })
        }
        Err(error) => Err(to_failure(store_failure(&error))),
    }
}

/// The installation's key for fingerprints, where one of the requests needs it.
async fn fingerprint_key(
    context: &Context,
    mut requests: impl Iterator<Item = &CaptureRequest>,
) -> Result<Option<FingerprintKey>, Failure> {
    let wanted = requests.any(|r| {
        r.spec
            .capture
            .as_ref()
            .is_some_and(|c: &Capture| c.secrets == Some(SecretsMode::Fingerprint))
    });
    if !wanted {
        return Ok(None);
    }
    crate::cluster::key::installation_key(&context.client, &context.options.namespace)
        .await
        .map(|bytes| Some(FingerprintKey::new(bytes)))
        .map_err(Failure::from)
}
