//! Restarts of consumers. The value of the annotation is the time of the execution, so that after a crash a restart that was done
//! is recognised and not repeated.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Stop, Work,
    items::{Done, delays, failure},
};
use crate::{
    api::{names, reasons, rollback_request::ItemFailure},
    cluster::{
        Class,
        write::{self, WriteError},
    },
    domain::{
        object::ObjectId,
        plan::{Content, desired::RESTARTED_AT, write::Call},
    },
};

const TEMPLATE_ANNOTATIONS: &str = "/spec/template/metadata/annotations";

/// The value that marks a restart of this execution, as kubectl writes it: whole seconds.
pub(super) fn mark(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

/// Whether the workload carries this mark.
pub(super) fn is_marked(workload: &Value, mark: &str) -> bool {
    workload
        .pointer(TEMPLATE_ANNOTATIONS)
        .is_some_and(|annotations| annotations[RESTARTED_AT] == mark)
}
