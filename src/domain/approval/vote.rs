//! One decision, what it is about, and why it may not count.

use std::fmt;

use jiff::Timestamp;

use super::identity::{Exclusion, Exclusions, People, service_account};
use crate::{
    api::approval_request::{ApprovalPhase, Decision, RequestStage},
    domain::object::Digest,
};

/// What is decided on: an `ApprovalRequest` and what its policy says.
#[derive(Clone, Debug)]
pub struct Ballot<'a> {
    /// UID of the `ApprovalRequest`.
    pub request_uid: &'a str,
    /// `spec.planDigest`.
    pub plan_digest: Digest,
    /// `spec.policy.name`.
    pub policy: &'a str,
    /// `spec.stages`, frozen.
    pub stages: &'a [RequestStage],
    /// When it was created, by the server's clock.
    pub created: Timestamp,
    /// `spec.expiresAt`.
    pub expires: Timestamp,
    /// Its phase.
    pub phase: ApprovalPhase,
    /// `status.approvedAt`.
    pub approved: Option<Timestamp>,
    /// When the guard epoch had settled, rounded up to a second.
    pub epoch: Timestamp,
    /// Who may not decide.
    pub exclusions: &'a Exclusions,
    /// The policy's alias list.
    pub people: &'a People,
    /// Whether an approval needs a comment, too.
    pub require_comment: bool,
}

/// Whether the author of a decision holds the verb for it, asked just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It does.
    Allowed,
    /// It does not.
    Denied,
    /// The review failed. Not the same as denied.
    Unknown,
}

/// The verb that `username` needs for `decision`, on `approvalstages` named [`stage_key`]; admission asks for the same.
pub fn verb(decision: Decision, username: &str) -> &'static str {
    match decision {
        Decision::Acknowledge => "review",
        Decision::Approve | Decision::Reject | Decision::Revoke if service_account(username).is_some() => {
            "approve-automated"
        }
        Decision::Approve | Decision::Reject | Decision::Revoke => "approve",
    }
}

/// Name of the virtual resource that rights on a stage are granted on.
pub fn stage_key(policy: &str, stage: &str) -> String {
    format!("{policy}:{stage}")
}

/// What is known of the signature that a decision carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// It carries none.
    None,
    /// It is good.
    Valid,
    /// It is not.
    Invalid,
}

/// One `ApprovalDecision`.
#[derive(Clone, Debug)]
pub struct Vote<'a> {
    /// UID of the decision.
    pub uid: &'a str,
    /// Its author, vouched for by admission.
    pub username: &'a str,
    /// Groups that the author claimed, checked by admission.
    pub groups: &'a [String],
    /// UID of the `ApprovalRequest` it names.
    pub request_uid: &'a str,
    /// The plan it is about; `None` where that is no digest.
    pub plan_digest: Option<Digest>,
    /// The policy it names.
    pub policy: &'a str,
    /// The stage it names.
    pub stage: &'a str,
    /// What it says.
    pub decision: Decision,
    /// Whether it says why.
    pub has_comment: bool,
    /// Its signature.
    pub evidence: Evidence,
    /// When it was created, by the server's clock.
    pub at: Timestamp,
    /// A fresh access review of its author.
    pub access: Access,
}

/// Why a decision does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotCounted {
    /// It names another `ApprovalRequest`, perhaps an earlier one of the same name.
    OtherRequest,
    /// It is about another plan.
    StalePlan,
    /// It names another policy.
    OtherPolicy,
    /// The request has no such stage.
    UnknownStage,
    /// It is older than the request.
    BeforeRequest,
    /// It is older than the guard epoch: nobody vouches for its author.
    BeforeEpoch,
    /// An approval that came after the request had expired.
    AfterExpiry,
    /// An approval that came after its stage had timed out.
    AfterStageTimeout,
    /// The stage does not list its author.
    NotListed,
    /// Its author does not hold the verb now.
    NotAllowed,
    /// Whether its author holds the verb could not be found out.
    AccessUnknown,
    /// Its author may not decide on this request.
    Excluded(Exclusion),
    /// It must say why.
    NoComment,
    /// Its signature does not prove what it says.
    InvalidEvidence,
    /// The same person decided on this stage again.
    Replaced,
    /// Stages before it are not approved yet.
    StageNotOpen,
    /// The same person counts in another stage.
    CountsElsewhere,
    /// There is nothing to acknowledge: nothing ran without approval.
    NothingToReview,
}

impl fmt::Display for NotCounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::OtherRequest => "it names another ApprovalRequest (compare the UID)",
            Self::StalePlan => "it is about another plan; read the present one and decide again",
            Self::OtherPolicy => "it names another policy",
            Self::UnknownStage => "the request has no such stage",
            Self::BeforeRequest => "it is older than the request",
            Self::BeforeEpoch => "it is older than the present guard epoch; decide again",
            Self::AfterExpiry => "the request had expired",
            Self::AfterStageTimeout => "the stage had timed out",
            Self::NotListed => "the stage does not list the author (kubectl auth whoami shows names and groups)",
            Self::NotAllowed => "the author does not hold the verb on approvalstages <policy>:<stage>",
            Self::AccessUnknown => "the access review failed and is tried again",
            Self::Excluded(exclusion) => return fmt::Display::fmt(exclusion, f),
            Self::NoComment => "it must say why, in comment",
            Self::InvalidEvidence => "its evidence does not prove it",
            Self::Replaced => "the same person decided on this stage again",
            Self::StageNotOpen => "earlier stages are not approved yet; it counts once they are",
            Self::CountsElsewhere => "the same person counts in another stage",
            Self::NothingToReview => "nothing ran without approval",
        };
        f.write_str(text)
    }
}
