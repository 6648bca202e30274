//! Why the gate does not open.

use jiff::Timestamp;

use super::tally::Verdict;
use crate::{
    api::{approval_request::ApprovalPhase, reference::RiskLevel},
    domain::{object::ObjectId, plan::listed},
};

/// Why nothing may be written, in the order of the gate's steps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 1: the guard could not be checked.
    #[error("the guard could not be checked ({0}); nothing runs until it can")]
    GuardUnknown(String),
    /// 1: the guard is not healthy.
    #[error(
        "the admission policies that vouch for decisions are not in place; restore them (kubectl backstep doctor names them)"
    )]
    GuardUnhealthy,
    /// 1: the approval was made in another epoch.
    #[error("the admission policies changed since the approval was asked for; it is asked for again")]
    EpochChanged,
    /// 2: namespace or request could not be read.
    #[error("namespace and request could not be read ({0}); this is tried again")]
    TargetUnknown(String),
    /// 2: another namespace of the same name.
    #[error("the namespace was deleted and created again since the plan was made; make a new request")]
    NamespaceReplaced,
    /// 2: the namespace goes.
    #[error("the namespace is being deleted")]
    NamespaceTerminating,
    /// 2: another request of the same name.
    #[error("the RollbackRequest was deleted and created again; the new one needs its own approval")]
    RequestReplaced,
    /// 2: the request goes.
    #[error("the RollbackRequest is being deleted")]
    RequestTerminating,
    /// 2: `spec.suspend`.
    #[error("the request is suspended; set spec.suspend to false to go on")]
    Suspended,
    /// 2: `spec.cancel`.
    #[error("the request is cancelled")]
    Cancelled,
    /// 3: the approval could not be read.
    #[error("the ApprovalRequest could not be read ({0}); this is tried again")]
    ApprovalUnknown(String),
    /// 3: it is not approved.
    #[error("the ApprovalRequest is {0:?}, which lets nothing run")]
    NotApproved(ApprovalPhase),
    /// 3: it is of another request.
    #[error("the approval is for another RollbackRequest (compare the UID); this one needs its own")]
    OtherRequest,
    /// 3: it was not used in time.
    #[error("the approval was not used in time; make a new request")]
    ApprovalExpired,
    /// 3: `notBefore`.
    #[error("the request may not run before {0}")]
    TooEarly(Timestamp),
    /// 3: outside every window, or inside a freeze.
    #[error("{}", match .0 {
        Some(end) => format!("a window or freeze of the policy holds it until {end}"),
        None => "a window or freeze of the policy holds it, and no end is in sight; change the policy".to_owned(),
    })]
    Held(Option<Timestamp>),
    /// 3: the status was not written by this operator.
    #[error("the recorded decisions do not carry this operator's seal; the approval is asked for again")]
    BrokenSeal,
    /// 4: the policy could not be read.
    #[error("the ApprovalPolicy could not be read ({0}); this is tried again")]
    PolicyUnknown(String),
    /// 4: the policy changed or is gone.
    #[error("the ApprovalPolicy changed since the approval was asked for; it is asked for again")]
    PolicyChanged,
    /// 5: the decisions could not be counted.
    #[error("the decisions could not be counted ({0}); this is tried again")]
    CountUnknown(String),
    /// 5: they do not add up to an approval now.
    #[error(
        "the decisions no longer add up to an approval ({0:?}): an approver objected or lost the right; make a new request"
    )]
    NotApprovedAnyMore(Verdict),
    /// 6: the Snapshot could not be read.
    #[error("the Snapshot could not be read ({0}); this is tried again")]
    SnapshotUnknown(String),
    /// 6: the Snapshot is gone.
    #[error("the Snapshot is gone; choose another target")]
    SnapshotGone,
    /// 6: another Snapshot of the same name.
    #[error("the Snapshot is not the one that was approved (compare UID and digest); make a new request")]
    SnapshotChanged,
    /// 7: live moved, or the plan is bound to something else.
    #[error("the plan is no longer the approved one{}; it is planned and asked for again", about(.0))]
    PlanChanged(Vec<ObjectId>),
    /// 7: it is more dangerous than it was.
    #[error("the risk rose from {approved:?} to {now:?} since the approval; it is asked for again")]
    RiskHigher {
        /// What was approved.
        approved: RiskLevel,
        /// What it is now.
        now: RiskLevel,
    },
    /// 7: items that may not run.
    #[error("the plan holds items that may not run{}; exclude them or change them by hand", about(.0))]
    PlanRefused(Vec<ObjectId>),
    /// 8: rights could not be reviewed.
    #[error("the requester's rights could not be reviewed ({0}); this is tried again")]
    RightsUnknown(String),
    /// 8: rights are missing.
    #[error("the requester may not do this by hand: {}; grant it, or let somebody ask who may", .0.join(", "))]
    MissingRights(Vec<String>),
    /// 9: the ledger could not be read.
    #[error("the ledger of executions could not be read ({0}); this is tried again")]
    LedgerUnknown(String),
    /// 9, and 3 where the approval says so: it ran before.
    #[error("execution {0} has used this approval; a finished request never runs again, make a new one")]
    AlreadyExecuted(String),
    /// 10: somebody else was first.
    #[error("somebody else changed the ApprovalRequest first; it is read again")]
    LatchLost,
    /// 10: no answer.
    #[error("whether the approval was consumed is not known ({0}); it is read again")]
    LatchUnknown(String),
}

fn about(objects: &[ObjectId]) -> String {
    if objects.is_empty() {
        return String::new();
    }
    format!(" ({})", listed(objects.iter()))
}

/// What follows from a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// Nothing is lost: try again, at the latest at this time.
    Wait(Option<Timestamp>),
    /// The approval is void; plan again and ask again.
    Supersede,
    /// The approval is over.
    Expire,
    /// The approval was taken back.
    Revoke,
    /// The request is withdrawn.
    Cancel,
    /// The request fails.
    Fail,
}

impl Refusal {
    /// What follows.
    pub const fn consequence(&self) -> Consequence {
        match self {
            Self::GuardUnknown(_)
            | Self::GuardUnhealthy
            | Self::TargetUnknown(_)
            | Self::Suspended
            | Self::ApprovalUnknown(_)
            | Self::NotApproved(_)
            | Self::PolicyUnknown(_)
            | Self::CountUnknown(_)
            | Self::SnapshotUnknown(_)
            | Self::RightsUnknown(_)
            | Self::LedgerUnknown(_)
            | Self::LatchLost
            | Self::LatchUnknown(_) => Consequence::Wait(None),
            Self::TooEarly(start) => Consequence::Wait(Some(*start)),
            Self::Held(end) => Consequence::Wait(*end),
            Self::EpochChanged
            | Self::OtherRequest
            | Self::BrokenSeal
            | Self::PolicyChanged
            | Self::PlanChanged(_)
            | Self::RiskHigher { .. } => Consequence::Supersede,
            Self::ApprovalExpired => Consequence::Expire,
            Self::NotApprovedAnyMore(_) => Consequence::Revoke,
            Self::RequestTerminating | Self::Cancelled => Consequence::Cancel,
            Self::NamespaceReplaced
            | Self::NamespaceTerminating
            | Self::RequestReplaced
            | Self::SnapshotGone
            | Self::SnapshotChanged
            | Self::PlanRefused(_)
            | Self::MissingRights(_)
            | Self::AlreadyExecuted(_) => Consequence::Fail,
        }
    }
}
