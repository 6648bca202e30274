//! What happens next to an `ApprovalRequest`: withdrawn, over, void, or where its decisions have brought it.

use jiff::Timestamp;

use super::{
    state,
    tally::{Tally, Verdict},
    vote::NotCounted,
};
use crate::api::{
    approval_request::{ApprovalPhase, Approvers, RequestStage},
    reasons,
};

/// What is known of one `ApprovalRequest`, read just now.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `status.phase`.
    pub phase: ApprovalPhase,
    /// `spec.expiresAt`.
    pub expires: Timestamp,
    /// `status.approvalExpiresAt`; of one that ran without approval: by when it must be reviewed.
    pub over: Option<Timestamp>,
    /// `status.guardEpoch`.
    pub epoch: Option<&'a str>,
    /// Whether the seal is the one that this operator makes.
    pub seal_is_ours: bool,
    /// The guard.
    pub guard: GuardFact<'a>,
    /// The request that is approved.
    pub request: RequestFact,
    /// The policy.
    pub policy: PolicyFact,
    /// `spec.stages`.
    pub stages: &'a [RequestStage],
    /// `spec.policy.name`.
    pub policy_name: &'a str,
    /// The count, where the decisions could be counted.
    pub tally: Option<&'a Tally>,
    /// When each stage times out.
    pub ends: &'a [Timestamp],
    /// How somebody approves it, for people: a command.
    pub command: &'a str,
    /// The time.
    pub now: Timestamp,
}

/// The guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardFact<'a> {
    /// Not in place; what is wrong.
    Unhealthy(&'a [String]),
    /// In place, in this epoch.
    Healthy(&'a str),
}

/// The request that is approved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestFact {
    /// It waits for approval, or executes.
    Open,
    /// Nothing will execute it (any more), and why.
    Withdrawn(&'static str),
}

/// The policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyFact {
    /// As it was.
    Same,
    /// Changed since.
    Changed,
    /// Deleted since.
    Gone,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing any more.
    Rest,
    /// It stays as it is.
    Stay {
        /// Reason of the condition.
        reason: &'static str,
        /// What it waits for.
        message: String,
        /// When time alone may change that.
        again: Option<Timestamp>,
    },
    /// It moves on.
    Move {
        /// Where to.
        to: ApprovalPhase,
        /// Reason of the condition.
        reason: &'static str,
        /// Why.
        message: String,
    },
}

fn to(phase: ApprovalPhase, reason: &'static str, message: impl Into<String>) -> Step {
    Step::Move {
        to: phase,
        reason,
        message: message.into(),
    }
}

/// Decides, in this order:
/// 1. final: nothing; ran without approval: the review;
/// 2. its request is withdrawn: `Cancelled` · its time is over: `Expired`;
/// 3. the guard is not in place: stay, nothing counts · another guard epoch, a broken seal, a changed policy: `Superseded`;
/// 4. break-glass: stay until it runs · else what the decisions add up to.
pub fn next(facts: &Facts<'_>) -> Step {
    match facts.phase {
        phase if state::is_final(phase) => return Step::Rest,
        ApprovalPhase::AwaitingReview | ApprovalPhase::ReviewOverdue => return review(facts),
        _ => {}
    }
    if let RequestFact::Withdrawn(why) = facts.request {
        return to(ApprovalPhase::Cancelled, reasons::CANCELLED, why);
    }
    let emergency = facts.phase == ApprovalPhase::BreakGlass;
    let over = match facts.phase {
        // An approval without an end is not usable.
        ApprovalPhase::Approved => facts.over.unwrap_or(facts.now),
        _ => facts.expires,
    };
    if facts.now >= over {
        return match facts.phase {
            ApprovalPhase::BreakGlass => to(
                ApprovalPhase::Cancelled,
                reasons::EXPIRED,
                "break-glass was not used in time; make a new request",
            ),
            ApprovalPhase::Approved => to(
                ApprovalPhase::Expired,
                reasons::EXPIRED,
                "the approval was not used in time; make a new request",
            ),
            _ => to(
                ApprovalPhase::Expired,
                reasons::EXPIRED,
                format!("{}; make a new request", undecided(facts)),
            ),
        };
    }
    let epoch = match facts.guard {
        GuardFact::Healthy(epoch) => epoch,
        GuardFact::Unhealthy(missing) => return unhealthy(missing, Some(over)),
    };
    let void = if facts.epoch != Some(epoch) {
        Some("the admission policies or kinds changed since it was asked for, so nobody vouches for its decisions")
    } else if !facts.seal_is_ours {
        Some("the recorded decisions do not carry this operator's seal")
    } else {
        match facts.policy {
            PolicyFact::Same => None,
            PolicyFact::Changed => Some("its ApprovalPolicy changed since it was asked for"),
            PolicyFact::Gone => Some("its ApprovalPolicy was deleted or replaced since it was asked for"),
        }
    };
    if let Some(why) = void {
        let message = format!("{why}; it is planned and asked for again");
        return to(ApprovalPhase::Superseded, reasons::SUPERSEDED, message);
    }
    if emergency {
        return Step::Stay {
            reason: reasons::BREAK_GLASS,
            message: "break-glass: it may run at once, and others must acknowledge it afterwards".to_owned(),
            again: Some(over),
        };
    }
    counted(facts, over)
}

fn unhealthy(missing: &[String], again: Option<Timestamp>) -> Step {
    Step::Stay {
        reason: reasons::GUARD_UNHEALTHY,
        message: format!("nothing counts until the guard is in place: {}", missing.join("; ")),
        again,
    }
}

/// What the decisions of a request that is open add up to.
fn counted(facts: &Facts<'_>, over: Timestamp) -> Step {
    let Some(tally) = facts.tally else {
        return Step::Stay {
            reason: reasons::API_UNAVAILABLE,
            message: "the decisions could not be counted; this is tried again".to_owned(),
            again: Some(over),
        };
    };
    let again = facts
        .ends
        .iter()
        .copied()
        .filter(|end| *end > facts.now)
        .chain([over])
        .min();
    let objectors = || tally.vetoes.join(", ");
    match (&tally.verdict, facts.phase) {
        (Verdict::Undetermined, _) => undetermined(again),
        (_, ApprovalPhase::Approved) if tally.is_unsure() => undetermined(again),
        (Verdict::Approved, ApprovalPhase::Approved) => Step::Stay {
            reason: reasons::APPROVED,
            // Word for word as when it moved there: another write would come in the way of whoever uses it.
            message: approved(facts, tally),
            again,
        },
        (_, ApprovalPhase::Approved) => {
            let why = if tally.vetoes.is_empty() {
                "an approver lost the right, or a decision is gone, so it lost its quorum".to_owned()
            } else {
                format!("objected after the approval: {}", objectors())
            };
            to(ApprovalPhase::Revoked, reasons::REVOKED, why)
        }
        (Verdict::Approved, _) => to(ApprovalPhase::Approved, reasons::APPROVED, approved(facts, tally)),
        (Verdict::Rejected(stage), _) => {
            let stage = facts.stages.get(*stage).map_or("", |stage| stage.name.as_str());
            let why = format!("rejected in stage {stage} by {}", objectors());
            to(ApprovalPhase::Rejected, reasons::REJECTED, why)
        }
        (Verdict::Expired, _) => {
            let why = format!("{}; make a new request", undecided(facts));
            to(ApprovalPhase::Expired, reasons::EXPIRED, why)
        }
        (Verdict::Pending(_) | Verdict::Revoked | Verdict::AwaitingReview | Verdict::Reviewed, _) => Step::Stay {
            reason: reasons::AWAITING_APPROVAL,
            message: waits_for(facts, tally),
            again,
        },
    }
}

fn undetermined(again: Option<Timestamp>) -> Step {
    Step::Stay {
        reason: reasons::API_UNAVAILABLE,
        message: "whether somebody who decided may do so could not be found out; this is tried again".to_owned(),
        again,
    }
}

fn review(facts: &Facts<'_>) -> Step {
    if let GuardFact::Unhealthy(missing) = facts.guard {
        return unhealthy(missing, facts.over);
    }
    if facts.tally.is_some_and(|tally| tally.verdict == Verdict::Reviewed) {
        return to(
            ApprovalPhase::Reviewed,
            reasons::REVIEWED,
            "ran without approval, and was acknowledged afterwards",
        );
    }
    let stages: Vec<String> = facts.stages.iter().map(may_decide(facts.policy_name)).collect();
    let who = stages.join("; ");
    match facts.over {
        Some(by) if facts.now < by => Step::Stay {
            reason: reasons::AWAITING_REVIEW,
            message: format!(
                "ran without approval; to be acknowledged before {by} by others than the requester: {who}"
            ),
            again: Some(by),
        },
        _ if facts.phase == ApprovalPhase::AwaitingReview => to(
            ApprovalPhase::ReviewOverdue,
            reasons::REVIEW_OVERDUE,
            format!("ran without approval, and nobody has acknowledged it in time: {who}"),
        ),
        _ => Step::Stay {
            reason: reasons::REVIEW_OVERDUE,
            message: format!("ran without approval, and nobody has acknowledged it in time: {who}"),
            again: None,
        },
    }
}

fn approved(facts: &Facts<'_>, tally: &Tally) -> String {
    if facts.stages.iter().all(|stage| stage.required == 0) {
        return format!("approved by ApprovalPolicy {} itself (autoApprove)", facts.policy_name);
    }
    let stages: Vec<String> = tally
        .stages
        .iter()
        .map(|stage| format!("{} of {} in stage {}", stage.approved, stage.required, stage.stage))
        .collect();
    format!("approved: {}", stages.join(", "))
}

fn undecided(facts: &Facts<'_>) -> String {
    match facts.tally.and_then(|tally| tally.open()) {
        Some(stage) => format!(
            "time is over with {} of {} approvals of stage {}",
            stage.approved, stage.required, stage.stage
        ),
        None => "time is over".to_owned(),
    }
}

/// Who still has to decide.
fn waits_for(facts: &Facts<'_>, tally: &Tally) -> String {
    let Some((at, progress)) = tally
        .stages
        .iter()
        .enumerate()
        .find(|(_, stage)| stage.approved < stage.required)
    else {
        return "the decisions are counted".to_owned();
    };
    let stage = &facts.stages[at.min(facts.stages.len().saturating_sub(1))];
    let who = may_decide(facts.policy_name)(stage);
    let mut text = format!(
        "{} of {} approvals of stage {}; {who}: {}",
        progress.approved, progress.required, progress.stage, facts.command
    );
    if progress.escalated {
        text.push_str(" (escalated: its time is up, and more people are asked)");
    }
    let later: Vec<&str> = facts
        .stages
        .iter()
        .skip(at + 1)
        .map(|stage| stage.name.as_str())
        .collect();
    if !later.is_empty() {
        text = format!("{text}; then stage {}", later.join(", "));
    }
    text
}

/// Who may decide on a stage, for people.
fn may_decide(policy: &str) -> impl Fn(&RequestStage) -> String {
    move |stage| {
        let lists = [
            stage.approvers.as_ref(),
            stage.on_timeout.as_ref().and_then(|then| then.approvers.as_ref()),
        ];
        let names: Vec<String> = lists.into_iter().flatten().flat_map(named).collect();
        let key = format!("{policy}:{}", stage.name);
        if names.is_empty() {
            format!("whoever holds the verb approve on approvalstages {key} may decide")
        } else {
            format!("{} may decide (verb approve on approvalstages {key})", names.join(", "))
        }
    }
}

fn named(list: &Approvers) -> impl Iterator<Item = String> {
    let users = list.users.iter().cloned();
    let groups = list.groups.iter().map(|group| format!("group {group}"));
    let robots = list
        .service_accounts
        .iter()
        .map(|name| format!("service account {name}"));
    users.chain(groups).chain(robots)
}

impl Tally {
    /// The first stage without its quorum.
    pub fn open(&self) -> Option<&super::tally::Progress> {
        self.stages.iter().find(|stage| stage.approved < stage.required)
    }

    /// Whether it may be short of approvals only because somebody's right could not be looked up.
    pub fn is_unsure(&self) -> bool {
        self.verdict != Verdict::Approved
            && self.vetoes.is_empty()
            && self
                .votes
                .iter()
                .any(|(_, result)| *result == Err(NotCounted::AccessUnknown))
    }
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;
