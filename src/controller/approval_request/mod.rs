//! What a rollback asks of approval.
use std::collections::BTreeSet;

use crate::{
    api::{
        ApprovalRequest, RollbackPlan, RollbackRequest, approval_request::ApprovalPhase, reference::RiskLevel,
        snapshot::Component,
    },
    capture::Failure,
    controller::context::Context,
    domain::{
        approval::{
            Chosen, NoRoute, Verdict,
            gate::{Approval, Guard, Hold, Known},
            permit::Latch,
            policy::Traits,
        },
        object::Digest,
    },
};

pub(in crate::controller) struct PlanFacts {
    pub risk: RiskLevel,
    pub traits: Traits,
    pub components: BTreeSet<Component>,
    pub snapshot: String,
}
pub(in crate::controller) enum Asked {
    Made(Box<ApprovalRequest>),
    Settling { until: jiff::Timestamp },
    Held { reason: &'static str, message: String },
}
pub(in crate::controller) struct ApprovalFacts {
    pub guard: Known<Guard>,
    pub approval: Known<Approval>,
    pub hold: Hold,
    pub policy_digest: Known<Option<Digest>>,
    pub verdict: Known<Verdict>,
}
pub(in crate::controller) async fn choose(
    _: &Context,
    _: &RollbackRequest,
    _: &PlanFacts,
) -> Result<Result<Chosen, NoRoute>, Failure> {
    Ok(Err(NoRoute::NoMatchingPolicy))
}
pub(in crate::controller) async fn ask(
    _: &Context,
    _: &RollbackRequest,
    _: &RollbackPlan,
    _: &Chosen,
) -> Result<Asked, Failure> {
    Ok(Asked::Held {
        reason: "x",
        message: String::new(),
    })
}
pub(in crate::controller) async fn facts(_: &Context, _: &RollbackRequest, _: &str) -> ApprovalFacts {
    ApprovalFacts {
        guard: Known::Unknown(String::new()),
        approval: Known::Unknown(String::new()),
        hold: Hold::NoEnd,
        policy_digest: Known::Unknown(String::new()),
        verdict: Known::Unknown(String::new()),
    }
}
pub(in crate::controller) async fn consume(_: &Context, _: &ApprovalFacts, _: ApprovalPhase, _: &str) -> Latch {
    Latch::Lost
}
pub(in crate::controller) async fn close(
    _: &Context,
    _: &str,
    _: &str,
    _: ApprovalPhase,
    _: &str,
) -> crate::cluster::Result<()> {
    Ok(())
}
