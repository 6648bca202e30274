//! Restarts of consumers. The value of the annotation is the time of the execution, so that after a crash a restart that was done
//! is recognised and not repeated.

use serde_json::Value;

use super::{
    Stop, Work,
    items::{Task, delays, failure},
};
use crate::{
    api::{reasons, rollback_request::ItemFailure},
    cluster::{
        Class,
        write::{self, WriteError},
    },
    domain::{
        object::ObjectId,
        plan::{
            desired::RESTARTED_AT,
            write::{restart, seconds},
        },
    },
};

const TEMPLATE_ANNOTATIONS: &str = "/spec/template/metadata/annotations";

/// Whether the workload carries this mark.
pub(super) fn is_marked(workload: &Value, mark: &str) -> bool {
    workload
        .pointer(TEMPLATE_ANNOTATIONS)
        .is_some_and(|annotations| annotations[RESTARTED_AT] == mark)
}

impl Work<'_> {
    /// Restarts `workloads`, in parallel, and counts them.
    pub(super) async fn restart(&self, workloads: &[ObjectId]) -> Result<(), Stop> {
        let tasks: Vec<Task<'_>> = workloads.iter().map(Task::Restart).collect();
        self.every(&tasks).await
    }

    pub(super) async fn restart_one(&self, id: &ObjectId) -> Result<(), ItemFailure> {
        let place = self.place(id)?;
        let mark = seconds(self.restarted_at);
        let planned = self.live.get(id).map(|live| &live.uid);
        let mut delays = delays();
        loop {
            let Some(raw) = self.read(id, &place).await? else {
                self.execution
                    .report
                    .note(format!("{id} was deleted meanwhile and is not restarted"));
                return Ok(());
            };
            let uid = raw["metadata"]["uid"].as_str().unwrap_or_default();
            if planned.is_some_and(|planned| planned != uid) {
                self.execution
                    .report
                    .note(format!("{id} was created again meanwhile and is not restarted"));
                return Ok(());
            }
            if is_marked(&raw, &mark) {
                self.restarted(id, &raw);
                return Ok(());
            }
            let call = restart(uid, self.restarted_at);
            self.remember(id);
            let client = &self.execution.context.client;
            let written = tokio::time::timeout_at(self.deadline, write::perform(client, &place, &[call], false)).await;
            let why = match written {
                Ok(Ok(written)) => {
                    self.restarted(id, &written.object);
                    return Ok(());
                }
                Ok(Err(WriteError::Drift(why))) => why,
                Ok(Err(WriteError::Failed(error))) if error.class() == Class::Transient => error.to_string(),
                Ok(Err(WriteError::Failed(error))) => {
                    return Err(failure(id, reasons::WRITE_REFUSED, error.to_string()));
                }
                Err(_) => "the API server did not answer".to_owned(),
            };
            let delay = delays.next().unwrap_or_default();
            if tokio::time::timeout_at(self.deadline, tokio::time::sleep(delay))
                .await
                .is_err()
            {
                let why = format!("it was not restarted in time; the last try said: {why}");
                return Err(failure(id, reasons::DEADLINE_EXCEEDED, why));
            }
        }
    }
}
