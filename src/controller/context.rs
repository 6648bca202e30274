//! What every controller is given.

use std::sync::{Arc, RwLock};

use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder},
};

use super::{snapshot::queue::Captures, store::Store};
use crate::{cluster::call, config::RunOptions, telemetry::metrics::Metrics};

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
    /// What is missing before anything may be done.
    pub guard: GuardState,
    recorder: Recorder,
}

/// What is missing before anything may be done; cheap to clone.
#[derive(Clone, Default)]
pub struct GuardState(Arc<RwLock<Vec<String>>>);

impl GuardState {
    /// Replaces what is missing; returns whether it changed.
    pub fn set(&self, missing: Vec<String>) -> bool {
        match self.0.write() {
            Ok(mut guard) => {
                let changed = *guard != missing;
                *guard = missing;
                changed
            }
            Err(_) => false,
        }
    }

    /// What is missing; empty is healthy. A poisoned state counts as missing.
    pub fn missing(&self) -> Vec<String> {
        self.0
            .read()
            .map_or_else(|_| vec!["the guard's state is lost".into()], |guard| guard.clone())
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
            guard: GuardState::default(),
            recorder,
        }
    }

    /// Records an Event about `object`; a failure is logged and forgotten, for Events are best effort.
    pub async fn event<K>(&self, object: &K, warning: bool, reason: &str, action: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: if warning { EventType::Warning } else { EventType::Normal },
            reason: reason.to_owned(),
            // The API refuses notes above 1 KiB.
            note: Some(note.chars().take(1000).collect()),
            action: action.to_owned(),
            secondary: None,
        };
        let reference = object.object_ref(&());
        let published = self.recorder.publish(&event, &reference);
        if let Err(error) = call::once("record an event", call::DEADLINE, published).await {
            tracing::debug!(%error, reason, "the event was not recorded");
        }
    }
}
