//! What every controller is given.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder},
};
use tokio::sync::{OnceCell, watch};

use super::{answers::Handover, snapshot::queue::Captures, store::Store};
use crate::{
    cluster::{
        self, call, clock,
        guard::{self, Mutators},
        key,
    },
    config::{ForeignMutators, RunOptions},
    domain::object::FingerprintKey,
    telemetry::metrics::Metrics,
};

/// Shared by every reconcile.
pub struct Context {
    /// Client with the operator's own rights.
    pub client: Client,
    /// Options of this process.
    pub options: RunOptions,
    /// Metrics.
    pub metrics: Metrics,
    /// Where contents live.
    pub store: Store,
    /// Captures under way.
    pub captures: Captures,
    /// What executions know of the objects that the Snapshots after them will find.
    pub answers: Handover,
    /// What must be in place before anything may be done.
    pub guard: GuardState,
    key: OnceCell<[u8; 32]>,
    recorder: Recorder,
}

/// What was seen of the guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// What is missing before anything may be done; empty is healthy.
    pub missing: Vec<String>,
    /// The present epoch; `None` before the first look.
    pub epoch: Option<String>,
    /// From when on somebody may be asked for approval: every server knows the policies of this epoch by then.
    pub settled: Option<Timestamp>,
}

/// What was seen of the guard, for everybody who asks; cheap to clone.
#[derive(Clone)]
pub struct GuardState(Arc<watch::Sender<Guard>>);

impl Default for GuardState {
    fn default() -> Self {
        let unseen = Guard {
            missing: vec!["the guard has not been looked at yet".into()],
            ..Guard::default()
        };
        Self(Arc::new(watch::Sender::new(unseen)))
    }
}

impl GuardState {
    /// Takes in what a look found at `now`; returns whether anything changed. An epoch that is new, or healthy for the first
    /// time, settles first.
    pub fn observe(&self, seen: Result<guard::Report, cluster::Error>, now: Timestamp, settle: Duration) -> bool {
        self.0.send_if_modified(|guard| {
            let before = guard.clone();
            match seen {
                Ok(report) => {
                    let was_sound = guard.settled.is_some() && guard.epoch.as_deref() == Some(report.epoch.as_str());
                    guard.settled = match (report.missing.is_empty(), was_sound) {
                        (false, _) => None,
                        (true, true) => guard.settled,
                        (true, false) => Some(now.checked_add(settle).unwrap_or(Timestamp::MAX)),
                    };
                    guard.epoch = Some(report.epoch);
                    guard.missing = report.missing;
                }
                // Not known is never "in place".
                Err(error) => guard.missing = vec![format!("the guard cannot be looked at: {error}")],
            }
            *guard != before
        })
    }

    /// What is missing; empty is healthy.
    pub fn missing(&self) -> Vec<String> {
        self.0.borrow().missing.clone()
    }

    /// What was seen last.
    pub fn seen(&self) -> Guard {
        self.0.borrow().clone()
    }

    /// Told of every change.
    pub fn changes(&self) -> watch::Receiver<Guard> {
        self.0.subscribe()
    }
}

impl Context {
    /// Puts the parts together.
    pub fn new(
        client: Client,
        options: RunOptions,
        metrics: Metrics,
        store: Store,
        captures: Captures,
        recorder: Recorder,
    ) -> Self {
        Self {
            client,
            options,
            metrics,
            store,
            captures,
            answers: Handover::default(),
            guard: GuardState::default(),
            key: OnceCell::new(),
            recorder,
        }
    }

    /// Looks at the guard now, by quorum reads, and tells everybody. Mutators of others are looked for only where they block.
    pub async fn look_at_guard(&self) -> Guard {
        self.look(Mutators::Ignore).await
    }

    /// The same, and counts the mutators of others.
    pub async fn survey_guard(&self) -> Guard {
        self.look(Mutators::Report).await
    }

    async fn look(&self, mutators: Mutators) -> Guard {
        let mutators = match self.options.foreign_mutators {
            ForeignMutators::Block => Mutators::Block,
            ForeignMutators::Warn => mutators,
        };
        let seen = guard::look(&self.client, &self.options.installation(), mutators).await;
        if let Ok(Some(foreign)) = seen.as_ref().map(|report| &report.foreign_mutators) {
            self.metrics
                .guard_foreign_mutators
                .set(i64::try_from(foreign.len()).unwrap_or(i64::MAX));
            for mutator in foreign {
                tracing::debug!(mutator, "a mutator of somebody else sees decisions");
            }
        }
        let changed = self.guard.observe(seen, clock::now(), self.options.guard_settle);
        let guard = self.guard.seen();
        let healthy = guard.missing.is_empty();
        self.metrics.guard_healthy.set(i64::from(healthy));
        if changed && healthy {
            tracing::info!(epoch = guard.epoch, settled = ?guard.settled, "CRDs and admission policies are in place");
        } else if changed {
            tracing::warn!(missing = guard.missing.join("; "), "the guard is not in place");
        }
        guard
    }

    /// The installation's own key, read once.
    ///
    /// # Errors
    /// It cannot be read, or made.
    pub async fn key(&self) -> cluster::Result<FingerprintKey> {
        let read = || key::installation_key(&self.client, &self.options.namespace);
        self.key
            .get_or_try_init(read)
            .await
            .map(|key| FingerprintKey::new(*key))
    }

    /// Records an Event about `object`; a failure is logged and forgotten, for Events are best effort.
    pub async fn event<K>(&self, object: &K, warning: bool, reason: &str, action: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        self.event_about(object, None, warning, reason, action, note).await;
    }

    /// The same with a second object that it is about; of events that are equal but for the note only the first is kept.
    pub async fn event_about<K>(
        &self,
        object: &K,
        secondary: Option<ObjectReference>,
        warning: bool,
        reason: &str,
        action: &str,
        note: &str,
    ) where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            // The API refuses notes above 1 KiB.
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary,
        };
        let reference = object.object_ref(&());
        let published = self.recorder.publish(&event, &reference);
        if let Err(error) = call::once("record an event", call::DEADLINE, published).await {
            tracing::debug!(%error, reason, "the event was not recorded");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(30);

    fn report(epoch: &str, missing: &[&str]) -> guard::Report {
        guard::Report {
            epoch: epoch.into(),
            missing: missing.iter().map(|what| (*what).to_owned()).collect(),
            ..guard::Report::default()
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn an_epoch_settles_once_and_a_look_that_failed_does_not_begin_another() {
        let state = GuardState::default();
        assert!(!state.missing().is_empty(), "nothing was looked at yet");
        assert!(state.observe(Ok(report("a", &[])), at(0), SETTLE));
        assert_eq!(state.seen().settled, Some(at(30)));
        assert!(!state.observe(Ok(report("a", &[])), at(60), SETTLE), "nothing changed");
        let unreachable = cluster::Error::Config("no answer".into());
        assert!(state.observe(Err(unreachable), at(70), SETTLE));
        assert_eq!(state.missing().len(), 1);
        state.observe(Ok(report("a", &[])), at(80), SETTLE);
        assert_eq!(state.seen().settled, Some(at(30)), "it was the same all the time");
    }

    #[test]
    fn a_new_epoch_and_one_that_was_not_sound_settle_from_the_first_sound_look_on() {
        let state = GuardState::default();
        state.observe(Ok(report("a", &["a binding"])), at(0), SETTLE);
        assert_eq!(state.seen().settled, None);
        state.observe(Ok(report("a", &[])), at(10), SETTLE);
        assert_eq!(state.seen().settled, Some(at(40)));
        state.observe(Ok(report("b", &[])), at(100), SETTLE);
        assert_eq!(state.seen().settled, Some(at(130)));
        assert_eq!(state.seen().epoch.as_deref(), Some("b"));
    }
}
