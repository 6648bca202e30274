//! Conditions as kstatus reads them: `Ready`, `Reconciling`, `Stalled`, and kind-specific ones.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The object does what its spec asks.
pub const READY: &str = "Ready";
/// Work is under way; the reason says what for.
pub const RECONCILING: &str = "Reconciling";
/// No progress without a change by somebody; the reason says why.
pub const STALLED: &str = "Stalled";
/// Snapshot: the contents were read back and their digests are right.
pub const VERIFIED: &str = "Verified";
/// `RollbackRequest`: what must approve it has approved it.
pub const APPROVED: &str = "Approved";

/// `RollbackRequest`: the GitOps owner of the target is suspended until it is handed back.
pub const GITOPS_PAUSED: &str = "GitOpsPaused";

/// A condition value before it is merged into a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCondition {
    /// Condition type.
    pub type_: &'static str,
    /// `Some(true)` is "True", `None` is "Unknown".
    pub status: Option<bool>,
    /// `CamelCase`, at most 1024 characters.
    pub reason: String,
    /// What, why, and how to fix; at most 32768 characters.
    pub message: String,
}

/// Merges `new` into `conditions`. `lastTransitionTime` moves only with the status value (API conventions).
/// Returns whether anything changed.
pub fn set(conditions: &mut Vec<Condition>, new: &NewCondition, generation: Option<i64>, now: &Time) -> bool {
    let status = match new.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let Some(c) = conditions.iter_mut().find(|c| c.type_ == new.type_) else {
        conditions.push(Condition {
            type_: new.type_.to_owned(),
            status: status.to_owned(),
            reason: new.reason.clone(),
            message: new.message.clone(),
            observed_generation: generation,
            last_transition_time: now.clone(),
        });
        return true;
    };
    if c.status == status && c.reason == new.reason && c.message == new.message && c.observed_generation == generation {
        return false;
    }
    if c.status != status {
        status.clone_into(&mut c.status);
        c.last_transition_time = now.clone();
    }
    c.reason.clone_from(&new.reason);
    c.message.clone_from(&new.message);
    c.observed_generation = generation;
    true
}

/// Removes the condition `type_`. Returns whether it was there.
pub fn remove(conditions: &mut Vec<Condition>, type_: &str) -> bool {
    let before = conditions.len();
    conditions.retain(|c| c.type_ != type_);
    conditions.len() != before
}

/// Whether the condition `type_` is "True".
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}
