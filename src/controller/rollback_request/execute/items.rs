//! Single items: written in parallel within a step, each until it is as planned, has moved, or has failed for good.

use std::{borrow::Cow, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::{StreamExt as _, stream::FuturesUnordered};
use kube::ResourceExt as _;
use serde_json::Value;

use super::{Stop, Work};
use crate::{
    api::{
        reasons,
        rollback_request::{Conflict, ItemFailure},
    },
    cluster::{
        Class, call, list,
        write::{self, Place, WriteError, Written},
    },
    domain::{
        object::{ObjectId, SecretValues, normalise},
        plan::{Action, Again, Item, Now, write::Around},
    },
};

/// Items of one step that are written at once.
const AT_ONCE: usize = 16;

/// One thing to do.
#[derive(Clone, Copy)]
pub(super) enum Task<'a> {
    /// Write or delete.
    Item(&'a Item),
    /// Restart this workload.
    Restart(&'a ObjectId),
}

/// What is known of the object that an item writes to.
enum Look {
    Nothing,
    There { content: Value, raw: Value },
}

impl Work<'_> {
    /// Brings about `items`, in parallel, and counts them.
    pub(super) async fn write(&self, items: &[&Item]) -> Result<(), Stop> {
        let tasks: Vec<Task<'_>> = items.iter().map(|item| Task::Item(item)).collect();
        self.every(&tasks).await
    }

    /// Does `tasks`, in parallel, and counts them; on the first failure or a cancellation nothing more is begun, unless the
    /// request wants to go on.
    pub(super) async fn every(&self, tasks: &[Task<'_>]) -> Result<(), Stop> {
        let report = &self.execution.report;
        let mut waiting = tasks.iter();
        let mut running = FuturesUnordered::new();
        let mut failures: Vec<ItemFailure> = Vec::new();
        loop {
            let halted = (!failures.is_empty() && !self.goes_on()) || self.cancel.is_cancelled();
            while !halted && running.len() < AT_ONCE {
                let Some(task) = waiting.next() else { break };
                running.push(self.task(*task));
            }
            match running.next().await {
                None => break,
                Some(Ok(())) if self.is_back => {}
                Some(Ok(())) => report.item_done(),
                Some(Err(failure)) => {
                    tracing::info!(
                        namespace = self.namespace,
                        request = self.request().name_any(),
                        object = failure.object,
                        reason = failure.reason,
                        message = failure.message,
                        "an item failed"
                    );
                    if self.is_back {
                        report.failed(failure.clone());
                    } else {
                        report.item_failed(failure.clone());
                    }
                    failures.push(failure);
                }
            }
        }
        self.settle(failures)?;
        self.check()
    }

    async fn task(&self, task: Task<'_>) -> Result<(), ItemFailure> {
        match task {
            Task::Item(item) => self.one(item).await,
            Task::Restart(workload) => self.restart_one(workload).await,
        }
    }

    /// Brings one item about: writes, and where the write met something else, looks what is there and decides.
    async fn one(&self, item: &Item) -> Result<(), ItemFailure> {
        let place = self.place(&item.id)?;
        let mut item = Cow::Borrowed(item);
        let mut delays = delays();
        // Whether one of our writes may have got through without an answer.
        let mut unsure = false;
        loop {
            let why = match self.try_once(&item, &place).await? {
                Ok(()) => return Ok(()),
                Err(WriteError::Drift(why)) => why,
                Err(WriteError::Failed(error)) if error.class() == Class::Transient => {
                    unsure = true;
                    error.to_string()
                }
                Err(WriteError::Failed(error)) => {
                    return Err(failure(&item.id, reason(error.class()), error.to_string()));
                }
            };
            let look = self.look(&item.id, &place).await?;
            let now = match &look {
                Look::Nothing => None,
                Look::There { content, raw } => Some(Now { content, raw }),
            };
            match item.again(now) {
                Again::Reached => {
                    if let Look::There { raw, .. } = &look {
                        self.reached(&item, raw);
                    }
                    return Ok(());
                }
                Again::Planned(again) => item = Cow::Owned(*again),
                Again::Leaving => {}
                Again::Moved(how) => {
                    if !unsure {
                        self.forget(&item.id);
                    }
                    return self.drifted(&item.id, how);
                }
            }
            let delay = delays.next().unwrap_or(Duration::from_secs(4));
            if tokio::time::timeout_at(self.deadline, tokio::time::sleep(delay))
                .await
                .is_err()
            {
                return Err(Self::late(&item.id, &why));
            }
        }
    }

    /// One try of the calls that the item needs. The outer error is final.
    async fn try_once(&self, item: &Item, place: &Place) -> Result<Result<(), WriteError>, ItemFailure> {
        let owners = self.owners_of(item);
        let around = Around {
            owners: &owners,
            restarted_at: self.restarted_at,
        };
        let calls = crate::domain::plan::write::calls(item, &around)
            .map_err(|refusal| failure(&item.id, reasons::WRITE_REFUSED, refusal.to_string()))?;
        if calls.is_empty() {
            return Ok(Ok(()));
        }
        self.remember(&item.id);
        let client = &self.execution.context.client;
        match tokio::time::timeout_at(self.deadline, write::perform(client, place, &calls, false)).await {
            Ok(Ok(written)) => {
                self.wrote(item, written);
                Ok(Ok(()))
            }
            Ok(Err(error)) => Ok(Err(error)),
            Err(_) => Err(Self::late(&item.id, "the API server did not answer")),
        }
    }

    fn drifted(&self, id: &ObjectId, how: &'static str) -> Result<(), ItemFailure> {
        match self.request().spec.conflict {
            Conflict::KeepLive => {
                self.execution.report.note(format!("{id} stays as it is: {how}"));
                self.except([id.clone()]);
                Ok(())
            }
            Conflict::FailOnDrift => Err(failure(
                id,
                reasons::DRIFT,
                format!("{how}, and conflict is FailOnDrift; make a new request, or use Overwrite or KeepLive"),
            )),
            Conflict::Overwrite => Err(failure(
                id,
                reasons::DRIFT,
                format!(
                    "{how}: what was approved does not fit any more; make a new request, which plans and asks again"
                ),
            )),
        }
    }

    /// The object as it is now.
    async fn look(&self, id: &ObjectId, place: &Place) -> Result<Look, ItemFailure> {
        let Some(raw) = self.read(id, place).await? else {
            return Ok(Look::Nothing);
        };
        let unreadable = |why: String| failure(id, reasons::API_UNAVAILABLE, why);
        let kind = self.kind(id)?;
        let object = normalise(raw.clone(), &kind.info, &kind.shape, SecretValues::Keep)
            .map_err(|error| unreadable(error.to_string()))?;
        let content = serde_json::from_slice(&object.content).map_err(|error| unreadable(error.to_string()))?;
        Ok(Look::There { content, raw })
    }

    /// The object as the server gives it; `None` where there is none.
    pub(super) async fn read(&self, id: &ObjectId, place: &Place) -> Result<Option<Value>, ItemFailure> {
        let kind = self.kind(id)?;
        let uri = kind
            .collection(Some(&self.namespace))
            .object_path(&self.namespace, &id.name);
        let what = format!("get {} {}/{}", place.plural, self.namespace, id.name);
        let client = &self.execution.context.client;
        let mut delays = delays();
        loop {
            let read = tokio::time::timeout_at(self.deadline, list::get_object(client, &uri, &what)).await;
            let error = match read {
                Err(_) => return Err(Self::late(id, "the API server did not answer")),
                Ok(Ok(bytes)) => {
                    return serde_json::from_slice(&bytes)
                        .map(Some)
                        .map_err(|error| failure(id, reasons::API_UNAVAILABLE, format!("{what}: {error}")));
                }
                Ok(Err(error)) if error.is_not_found() => return Ok(None),
                Ok(Err(error)) => error,
            };
            if error.class() != Class::Transient {
                return Err(failure(id, reason(error.class()), error.to_string()));
            }
            let delay = delays.next().unwrap_or(call::DEADLINE);
            if tokio::time::timeout_at(self.deadline, tokio::time::sleep(delay))
                .await
                .is_err()
            {
                return Err(Self::late(id, &error.to_string()));
            }
        }
    }

    /// Where the object of `id` is.
    pub(super) fn place(&self, id: &ObjectId) -> Result<Place, ItemFailure> {
        let collection = self.kind(id)?.collection(Some(&self.namespace));
        Ok(Place {
            group: collection.group,
            version: collection.version,
            plural: collection.plural,
            namespace: collection.namespace,
            name: id.name.clone(),
        })
    }

    fn late(id: &ObjectId, last: &str) -> ItemFailure {
        failure(
            id,
            reasons::DEADLINE_EXCEEDED,
            format!("the time of the execution was over; the last try said: {last}"),
        )
    }

    fn reached(&self, item: &Item, raw: &Value) {
        let text = |field: &str| raw["metadata"][field].as_str().unwrap_or_default().to_owned();
        self.wrote(
            item,
            Written {
                uid: text("uid"),
                resource_version: text("resourceVersion"),
                object: raw.clone().into(),
            },
        );
    }
}

/// Tries that follow each other soon, then every few seconds, as long as the deadline allows.
pub(super) fn delays() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(4))
        .without_max_times()
        .build()
}

/// Why an item failed.
pub(super) fn failure(id: &ObjectId, reason: &str, message: impl Into<String>) -> ItemFailure {
    ItemFailure {
        object: id.to_string(),
        reason: reason.to_owned(),
        message: Some(message.into()),
    }
}

const fn reason(class: Class) -> &'static str {
    match class {
        Class::Forbidden => reasons::FORBIDDEN,
        Class::Invalid | Class::Corrupt => reasons::WRITE_REFUSED,
        Class::Transient | Class::Waiting => reasons::API_UNAVAILABLE,
    }
}

/// Whether the item brings an object (back) or changes one.
pub(super) const fn is_write(action: &Action) -> bool {
    matches!(action, Action::Create | Action::Update | Action::Recreate(_))
}
