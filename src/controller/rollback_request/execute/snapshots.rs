//! The snapshots around an execution: ordinary Snapshots through the ordinary queue, whose names follow from the request, so
//! that after a crash they are found and not taken again.

use std::collections::BTreeSet;

use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};
use tokio::time::Instant;

use super::{Stop, Work};
use crate::{
    api::{
        RollbackRequest, Snapshot, SnapshotSpec, conditions, names, reasons,
        reference::{Identity, OnBehalfOf, ResolvedSnapshot},
        rollback_request::SnapshotVersion,
        snapshot::{Capture, SnapshotPhase},
    },
    cluster::{
        self, call,
        list::Collection,
        watch::{self, Seen, Subject},
    },
    domain::plan::Item,
};

/// What a snapshot around an execution is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Right before the first write.
    Safety,
    /// After success.
    Result,
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Self::Safety => "Safety",
            Self::Result => "Result",
        }
    }

    /// `<request>-safety-<start of its UID>`: another request of the same name has its own.
    fn name(self, request: &RollbackRequest) -> String {
        let uid: String = request.uid().unwrap_or_default().chars().take(8).collect();
        format!("{}-{}-{uid}", request.name_any(), self.label().to_lowercase())
    }

    fn source(self, request: &RollbackRequest) -> String {
        format!("RollbackRequest/{}/{}", request.name_any(), self.label())
    }
}

/// A snapshot that is there.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    /// As a target for a plan.
    pub resolved: ResolvedSnapshot,
}

impl Taken {
    /// As a status names it.
    pub(super) fn version(&self) -> SnapshotVersion {
        SnapshotVersion {
            name: self.resolved.name.clone(),
            version: self.resolved.version,
        }
    }
}

impl Work<'_> {
    /// The safety snapshot where it exists already.
    pub(super) async fn find(&self, kind: Kind) -> cluster::Result<Option<Snapshot>> {
        let name = kind.name(self.request());
        let what = format!("get snapshot {}/{name}", self.namespace);
        let api = self.snapshots();
        call::repeat(&what, call::DEADLINE, || api.get_opt(&name)).await
    }

    fn snapshots(&self) -> Api<Snapshot> {
        Api::namespaced(self.execution.context.client.clone(), &self.namespace)
    }

    /// Takes it, or goes on with the one that an interrupted execution began, and waits until it is Ready.
    pub(super) async fn take(&self, kind: Kind, items: &[&Item], deadline: Instant) -> Result<Taken, Stop> {
        let stop = |message: String| Stop::failed(kind.failure(), message);
        let snapshot = self
            .create(kind, items)
            .await
            .map_err(|error| stop(error.to_string()))?;
        let request = self.request();
        let source = snapshot.spec.on_behalf_of.as_ref().and_then(|by| by.source.clone());
        if source != Some(kind.source(request)) {
            return Err(stop(format!(
                "snapshot {} is in the way of the {} snapshot; delete it and make a new request",
                snapshot.name_any(),
                kind.label().to_lowercase()
            )));
        }
        let ready = match ended(&snapshot) {
            Some(_) => snapshot,
            None => self.ready(&snapshot, deadline).await.ok_or_else(|| {
                stop(format!(
                    "snapshot {} was not Ready in time; its conditions say what it waits for",
                    snapshot.name_any()
                ))
            })?,
        };
        resolved(&ready).map_err(|why| stop(format!("snapshot {}: {why}", ready.name_any())))
    }

    async fn create(&self, kind: Kind, items: &[&Item]) -> cluster::Result<Snapshot> {
        let request = self.request();
        let context = &self.execution.context;
        let whom = request.spec.on_behalf_of.clone();
        let by = request.spec.requested_by.clone().unwrap_or_default();
        let snapshot = Snapshot {
            metadata: ObjectMeta {
                name: Some(kind.name(request)),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: SnapshotSpec {
                lineage: Some(self.lineage.lineage.clone()),
                description: Some(match kind {
                    Kind::Safety => format!(
                        "before rollbackrequest {} went back to {}",
                        request.name_any(),
                        self.execution.resolved.name
                    ),
                    Kind::Result => format!(
                        "after rollbackrequest {} went back to {}",
                        request.name_any(),
                        self.execution.resolved.name
                    ),
                }),
                capture: self.capture(kind, items),
                requested_by: Some(Identity {
                    username: Some(format!(
                        "system:serviceaccount:{}:{}",
                        context.options.namespace, context.options.service_account
                    )),
                    ..Identity::default()
                }),
                on_behalf_of: Some(OnBehalfOf {
                    username: whom
                        .as_ref()
                        .map(|whom| whom.username.clone())
                        .or(by.username)
                        .unwrap_or_default(),
                    groups: whom.and_then(|whom| whom.groups).or(by.groups),
                    source: Some(kind.source(request)),
                }),
                ..SnapshotSpec::default()
            },
            status: None,
        };
        if let (Kind::Result, Some(answers)) = (kind, &self.answers) {
            context.answers.leave(&self.namespace, &snapshot.name_any(), answers);
        }
        let api = self.snapshots();
        let what = format!("create snapshot {}/{}", self.namespace, snapshot.name_any());
        let params = PostParams {
            field_manager: Some(names::FIELD_MANAGER.into()),
            ..PostParams::default()
        };
        match call::repeat(&what, call::DEADLINE, || api.create(&params, &snapshot)).await {
            Err(error) if error.is_conflict() => {
                let name = snapshot.name_any();
                call::repeat(&what, call::DEADLINE, || api.get(&name)).await
            }
            other => other,
        }
    }

    /// As the target was captured. An object that is written although those filters do not take it in now (its labels changed,
    /// say) would be missing from a safety snapshot, which then takes in everything of the same components.
    fn capture(&self, kind: Kind, items: &[&Item]) -> Option<Capture> {
        let capture = self.extras.capture.clone()?;
        let outside: BTreeSet<_> = self
            .live
            .values()
            .filter(|live| !live.in_capture)
            .map(|live| &live.id)
            .collect();
        if kind == Kind::Safety && items.iter().any(|item| outside.contains(&item.id)) {
            return Some(Capture {
                selector: None,
                include: Vec::new(),
                ..capture
            });
        }
        Some(capture)
    }

    async fn ready(&self, snapshot: &Snapshot, deadline: Instant) -> Option<Snapshot> {
        let subject = Subject {
            collection: Collection {
                group: names::GROUP.into(),
                version: names::VERSION.into(),
                plural: "snapshots".into(),
                namespace: Some(self.namespace.clone()),
            },
            name: Some(snapshot.name_any()),
            from: snapshot.resource_version(),
        };
        let client = &self.execution.context.client;
        watch::until(client, &subject, deadline, |seen| match seen {
            Seen::There(object) => serde_json::from_value::<Snapshot>(object.clone())
                .ok()
                .filter(|snapshot| ended(snapshot).is_some()),
            // It is as good as failed: its status says so.
            Seen::Gone(object) => serde_json::from_value(object.clone()).ok(),
        })
        .await
    }
}

impl Kind {
    const fn failure(self) -> &'static str {
        match self {
            Self::Safety => reasons::SAFETY_SNAPSHOT_FAILED,
            Self::Result => reasons::RESULT_SNAPSHOT_FAILED,
        }
    }
}

fn ended(snapshot: &Snapshot) -> Option<SnapshotPhase> {
    let phase = snapshot.status.as_ref()?.phase?;
    match phase {
        SnapshotPhase::Ready | SnapshotPhase::Failed | SnapshotPhase::Expired => Some(phase),
        SnapshotPhase::Pending | SnapshotPhase::Capturing => None,
    }
}

/// What a Ready snapshot is known by, or why it is none.
pub(super) fn resolved(snapshot: &Snapshot) -> Result<Taken, String> {
    let status = snapshot.status.clone().unwrap_or_default();
    if let (Some(SnapshotPhase::Ready), Some(version), Some(digest), Some(uid)) =
        (status.phase, status.version, status.digest, snapshot.uid())
    {
        return Ok(Taken {
            resolved: ResolvedSnapshot {
                name: snapshot.name_any(),
                uid,
                version,
                digest,
            },
        });
    }
    let why = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == conditions::READY)
        .map(|condition| format!("{}: {}", condition.reason, condition.message));
    Err(why.unwrap_or_else(|| "it could not be taken".into()))
}
