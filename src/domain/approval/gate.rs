//! What the gate asks: answers from quorum reads made just now.

use jiff::Timestamp;

use super::{refusal::Refusal, tally::Verdict};
use crate::{
    api::{approval_request::ApprovalPhase, reference::RiskLevel, rollback_request::Conflict},
    domain::{object::Digest, plan::digest::BoundItem},
};

/// An answer that may be missing. Not known is never yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known<T> {
    /// It was read just now.
    Is(T),
    /// It could not be read, and why.
    Unknown(String),
}

impl<T> Known<T> {
    pub(super) fn or(&self, refusal: impl FnOnce(String) -> Refusal) -> Result<&T, Refusal> {
        match self {
            Self::Is(value) => Ok(value),
            Self::Unknown(why) => Err(refusal(why.clone())),
        }
    }
}

/// The guard: admission policies and CRDs as they must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Whether everything is in place and the canaries are refused.
    pub healthy: bool,
    /// The present epoch.
    pub epoch: String,
}

/// Namespace and `RollbackRequest`, read just now.
#[derive(Clone, Debug, PartialEq, Eq)]
// Four things that are so or not, and none rules another out.
#[allow(clippy::struct_excessive_bools)]
pub struct Target {
    /// UID of the namespace.
    pub namespace_uid: String,
    /// Whether the namespace is being deleted.
    pub namespace_terminating: bool,
    /// UID of the request.
    pub request_uid: String,
    /// Whether the request is being deleted.
    pub request_terminating: bool,
    /// `spec.suspend`.
    pub suspended: bool,
    /// `spec.cancel`.
    pub cancelled: bool,
}

/// The `ApprovalRequest`, read just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// UID of the `RollbackRequest` that it names.
    pub request_uid: String,
    /// `status.phase`.
    pub phase: ApprovalPhase,
    /// `status.executionID`.
    pub execution: Option<String>,
    /// `spec.planDigest`.
    pub plan_digest: Digest,
    /// Digest of the policy that was frozen.
    pub policy_digest: Digest,
    /// `status.guardEpoch`.
    pub epoch: Option<String>,
    /// `status.approvalExpiresAt`; without one an `Approved` request is not usable.
    pub usable_until: Option<Timestamp>,
    /// `spec.notBefore`.
    pub not_before: Option<Timestamp>,
    /// Risk that was approved.
    pub risk: RiskLevel,
    /// Whether the seal over the counted decisions is the one that this operator makes.
    pub seal_is_ours: bool,
}

/// Whether windows and freezes let it run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// They do.
    None,
    /// They do not, until then.
    Until(Timestamp),
    /// They do not, and no end is in sight.
    NoEnd,
}

/// Everything that the gate asks, from quorum reads made just now.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The time.
    pub now: Timestamp,
    /// UID of the namespace when the plan was made.
    pub namespace_uid: String,
    /// UID of the `RollbackRequest`.
    pub request_uid: String,
    /// 1: the guard.
    pub guard: Known<Guard>,
    /// 2: namespace and request.
    pub target: Known<Target>,
    /// 3: the approval.
    pub approval: Known<Approval>,
    /// 3: windows and freezes.
    pub hold: Hold,
    /// 4: digest of the policy now; `None` where it is gone.
    pub policy_digest: Known<Option<Digest>>,
    /// 5: the decisions, counted again with fresh access reviews. Break-glass does not ask for it.
    pub verdict: Known<Verdict>,
    /// 6: UID and digest of the Snapshot now; `None` where it is gone.
    pub snapshot: Known<Option<(String, Digest)>>,
    /// 7: the items of the approved plan, kept with it.
    pub approved_items: Vec<BoundItem>,
    /// 7: what happens to objects that moved.
    pub conflict: Conflict,
    /// 7: the risk level, computed again.
    pub risk: RiskLevel,
    /// 8: items for which the acting user lacks a right, with verb and resource; empty where it has them all.
    pub missing_rights: Known<Vec<String>>,
    /// 9: the execution of this request that the ledger holds.
    pub executed: Known<Option<String>>,
}
