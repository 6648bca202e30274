//! Which decisions count, and what they add up to. Pure: everything it knows is handed in, the time too.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    identity::{Person, service_account},
    satisfiable::{Places, is_anyone},
    vote::{Access, Ballot, Evidence, NotCounted, Vote},
};
use crate::api::{
    approval_request::{ApprovalPhase, Approvers, Decision, RequestStage, TimeoutAction},
    duration,
};

/// How far a stage is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its name.
    pub stage: String,
    /// Distinct people that count for it.
    pub approved: usize,
    /// Distinct people that must.
    pub required: usize,
    /// Distinct people that reject.
    pub rejected: usize,
    /// Whether its time is up and more approvers are asked.
    pub escalated: bool,
}

/// What the decisions add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided yet; the index of the stage that is.
    Pending(usize),
    /// Every stage has its quorum and nobody objects.
    Approved,
    /// Enough people of a stage reject; its index.
    Rejected(usize),
    /// Somebody took it back after it was approved, or it lost its quorum.
    Revoked,
    /// Its time, or that of a stage, is up.
    Expired,
    /// Somebody objects, and whether it may could not be found out: neither yes nor no.
    Undetermined,
    /// It ran without approval, and nobody has acknowledged it.
    AwaitingReview,
    /// Somebody else has acknowledged it.
    Reviewed,
}

/// The count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Each decision by UID, in the order given, and whether it counts.
    pub votes: Vec<(String, Result<(), NotCounted>)>,
    /// Each stage in order.
    pub stages: Vec<Progress>,
    /// The result.
    pub verdict: Verdict,
    /// Who objects, with a decision that counts. During an execution one is enough to cancel it.
    pub vetoes: Vec<String>,
}

/// When each stage times out: the times of the stages add up from the creation of the request, whatever was approved early, so
/// that an early approval never shortens a later stage. A stage without a time ends with the request.
pub fn deadlines(stages: &[RequestStage], created: Timestamp, expires: Timestamp) -> Vec<Timestamp> {
    let mut end = created;
    stages
        .iter()
        .map(|stage| {
            let time = stage.timeout.as_deref().and_then(|text| duration::parse(text).ok());
            end = time
                .and_then(|time| end.checked_add(time).ok())
                .map_or(expires, |end| end.min(expires));
            end
        })
        .collect()
}

fn escalates(stage: &RequestStage) -> bool {
    stage
        .on_timeout
        .as_ref()
        .is_some_and(|then| then.action == TimeoutAction::Escalate)
}

/// What the stages themselves say of one decision, before it is compared with others. In this order: request, plan, policy,
/// stage · times · listed · excluded · comment and evidence · access.
fn eligible(ballot: &Ballot<'_>, ends: &[Timestamp], vote: &Vote<'_>) -> Result<usize, NotCounted> {
    if vote.request_uid != ballot.request_uid {
        return Err(NotCounted::OtherRequest);
    }
    if vote.plan_digest != Some(ballot.plan_digest) {
        return Err(NotCounted::StalePlan);
    }
    if vote.policy != ballot.policy {
        return Err(NotCounted::OtherPolicy);
    }
    let named = ballot.stages.iter().position(|stage| stage.name == vote.stage);
    let index = named.ok_or(NotCounted::UnknownStage)?;
    let (stage, end) = (&ballot.stages[index], ends[index]);
    if vote.at < ballot.created {
        return Err(NotCounted::BeforeRequest);
    }
    if vote.at < ballot.epoch {
        return Err(NotCounted::BeforeEpoch);
    }
    // An objection is never too late: an approval is used after its request has expired.
    if vote.decision == Decision::Approve {
        if vote.at >= ballot.expires {
            return Err(NotCounted::AfterExpiry);
        }
        if vote.at >= end && !escalates(stage) {
            return Err(NotCounted::AfterStageTimeout);
        }
    }
    let asked_later = stage
        .on_timeout
        .as_ref()
        .filter(|then| then.action == TimeoutAction::Escalate && vote.at >= end)
        .and_then(|then| then.approvers.as_ref());
    let anyone = stage.approvers.as_ref().is_none_or(is_anyone);
    // An escalation that names nobody adds nobody.
    let listed = anyone
        || stage.approvers.as_ref().is_some_and(|list| lists(list, vote))
        || asked_later.is_some_and(|list| lists(list, vote));
    if !listed {
        return Err(NotCounted::NotListed);
    }
    if let Some(exclusion) = ballot.exclusions.of(vote.username, ballot.people) {
        return Err(NotCounted::Excluded(exclusion));
    }
    if !vote.has_comment && (ballot.require_comment || vote.decision != Decision::Approve) {
        return Err(NotCounted::NoComment);
    }
    if vote.evidence == Evidence::Invalid {
        return Err(NotCounted::InvalidEvidence);
    }
    match vote.access {
        Access::Allowed => Ok(index),
        Access::Denied => Err(NotCounted::NotAllowed),
        Access::Unknown => Err(NotCounted::AccessUnknown),
    }
}

fn lists(approvers: &Approvers, vote: &Vote<'_>) -> bool {
    approvers.users.iter().any(|user| user == vote.username)
        || approvers.groups.iter().any(|group| vote.groups.contains(group))
        || service_account(vote.username).is_some_and(|(namespace, name)| {
            let account = format!("{namespace}/{name}");
            approvers.service_accounts.contains(&account)
        })
}

/// Later ones win; of two in the same second the more cautious one.
fn caution(decision: Decision) -> u8 {
    match decision {
        Decision::Approve => 0,
        Decision::Acknowledge => 1,
        Decision::Revoke => 2,
        Decision::Reject => 3,
    }
}

/// Counts `votes` on `ballot` at the time `now`.
///
/// More approvals never make it less approved, and more objections never more: people are placed into stages so that as many
/// stages as possible are met, not in the order in which they came.
pub fn tally(ballot: &Ballot<'_>, votes: &[Vote<'_>], now: Timestamp) -> Tally {
    let ends = deadlines(ballot.stages, ballot.created, ballot.expires);
    let mut results: Vec<Result<usize, NotCounted>> = votes.iter().map(|vote| eligible(ballot, &ends, vote)).collect();
    let under_review = matches!(
        ballot.phase,
        ApprovalPhase::AwaitingReview | ApprovalPhase::ReviewOverdue | ApprovalPhase::Reviewed
    );
    let standing = standing(ballot, votes, &mut results, under_review);

    let mut approving: BTreeMap<usize, BTreeSet<Person>> = BTreeMap::new();
    let mut rejecting: BTreeMap<usize, BTreeSet<Person>> = BTreeMap::new();
    let mut vetoes = Vec::new();
    for ((stage, person), vote) in &standing {
        match votes[*vote].decision {
            Decision::Approve => drop(approving.entry(*stage).or_default().insert(person.clone())),
            Decision::Reject => {
                rejecting.entry(*stage).or_default().insert(person.clone());
                vetoes.push(*vote);
            }
            Decision::Revoke => vetoes.push(*vote),
            Decision::Acknowledge => {}
        }
    }

    let mut places = Places::default();
    let mut open = 0;
    let mut stages = Vec::new();
    for (index, stage) in ballot.stages.iter().enumerate() {
        let required = usize::try_from(stage.required).unwrap_or(0);
        let mut approved = 0;
        if open == index {
            places.offer(index, approving.get(&index).cloned().unwrap_or_default());
            approved = places.fill(index, required);
            if approved >= required {
                open = index + 1;
            }
        }
        stages.push(Progress {
            stage: stage.name.clone(),
            approved,
            required,
            rejected: rejecting.get(&index).map_or(0, BTreeSet::len),
            escalated: escalates(stage) && now >= ends[index] && ends[index] < ballot.expires,
        });
    }

    for ((stage, person), vote) in &standing {
        if votes[*vote].decision == Decision::Approve {
            results[*vote] = match places.stage_of(person) {
                _ if *stage > open => Err(NotCounted::StageNotOpen),
                Some(other) if other != *stage => Err(NotCounted::CountsElsewhere),
                _ => Ok(*stage),
            };
        }
    }
    let count = Count {
        ballot,
        votes,
        results: &results,
        ends: &ends,
        stages: &stages,
        open,
        vetoes: &vetoes,
        now,
    };
    let verdict = count.verdict();
    Tally {
        votes: votes
            .iter()
            .zip(&results)
            .map(|(vote, result)| (vote.uid.to_owned(), result.map(|_| ())))
            .collect(),
        stages,
        verdict,
        vetoes: vetoes.iter().map(|vote| votes[*vote].username.to_owned()).collect(),
    }
}

/// The one decision of each person on each stage that stands; the others are marked as replaced. Acknowledgements are apart: they
/// replace nothing and are replaced by nothing.
fn standing(
    ballot: &Ballot<'_>,
    votes: &[Vote<'_>],
    results: &mut [Result<usize, NotCounted>],
    under_review: bool,
) -> BTreeMap<(usize, Person), usize> {
    let mut in_time: Vec<usize> = (0..votes.len()).collect();
    in_time.sort_by_key(|index| (votes[*index].at, caution(votes[*index].decision), votes[*index].uid));
    let mut standing: BTreeMap<(usize, Person), usize> = BTreeMap::new();
    for index in in_time {
        let Ok(stage) = results[index] else {
            continue;
        };
        if votes[index].decision == Decision::Acknowledge {
            if !under_review {
                results[index] = Err(NotCounted::NothingToReview);
            }
            continue;
        }
        let key = (stage, ballot.people.person(votes[index].username));
        if let Some(&earlier) = standing.get(&key) {
            // Taking an approval back does not take a rejection back.
            let takes_back = votes[index].decision == Decision::Revoke;
            if takes_back && votes[earlier].decision == Decision::Reject {
                results[index] = Err(NotCounted::Replaced);
                continue;
            }
            results[earlier] = Err(NotCounted::Replaced);
        }
        standing.insert(key, index);
    }
    standing
}

struct Count<'a> {
    ballot: &'a Ballot<'a>,
    votes: &'a [Vote<'a>],
    results: &'a [Result<usize, NotCounted>],
    ends: &'a [Timestamp],
    stages: &'a [Progress],
    /// The first stage without its quorum; the number of stages where there is none.
    open: usize,
    vetoes: &'a [usize],
    now: Timestamp,
}

impl Count<'_> {
    fn verdict(&self) -> Verdict {
        match self.ballot.phase {
            ApprovalPhase::BreakGlass
            | ApprovalPhase::AwaitingReview
            | ApprovalPhase::ReviewOverdue
            | ApprovalPhase::Reviewed => self.review(),
            ApprovalPhase::Approved | ApprovalPhase::Consumed | ApprovalPhase::Revoked => self.of_approved(),
            ApprovalPhase::Pending
            | ApprovalPhase::Rejected
            | ApprovalPhase::Expired
            | ApprovalPhase::Cancelled
            | ApprovalPhase::Superseded => self.of_pending(),
        }
    }

    fn review(&self) -> Verdict {
        let acknowledged = self
            .votes
            .iter()
            .zip(self.results)
            .any(|(vote, result)| vote.decision == Decision::Acknowledge && result.is_ok());
        if acknowledged {
            Verdict::Reviewed
        } else {
            Verdict::AwaitingReview
        }
    }

    fn is_complete(&self) -> bool {
        // Nothing is approved by nobody asking.
        !self.stages.is_empty() && self.open == self.stages.len()
    }

    fn rejected(&self) -> Option<usize> {
        self.ballot
            .stages
            .iter()
            .zip(self.stages)
            .position(|(stage, progress)| {
                progress.rejected >= usize::try_from(stage.rejections_to_deny).unwrap_or(1).max(1)
            })
    }

    /// Whether somebody objects who might be entitled to.
    fn unknown_veto(&self) -> bool {
        self.votes.iter().zip(self.results).any(|(vote, result)| {
            *result == Err(NotCounted::AccessUnknown) && matches!(vote.decision, Decision::Reject | Decision::Revoke)
        })
    }

    fn of_pending(&self) -> Verdict {
        if let Some(stage) = self.rejected() {
            return Verdict::Rejected(stage);
        }
        let timed_out = |stage: usize| {
            !escalates(&self.ballot.stages[stage]) && self.ends.get(stage).is_some_and(|end| self.now >= *end)
        };
        if self.now >= self.ballot.expires || (self.open..self.stages.len()).any(timed_out) {
            return Verdict::Expired;
        }
        if self.unknown_veto() {
            return Verdict::Undetermined;
        }
        if self.is_complete() {
            return Verdict::Approved;
        }
        Verdict::Pending(self.open.min(self.stages.len().saturating_sub(1)))
    }

    fn of_approved(&self) -> Verdict {
        // Times are whole seconds: what is as old as the approval may have come after it.
        let afterwards = |vote: &usize| {
            let approved = self.ballot.approved.unwrap_or(Timestamp::MIN);
            self.votes[*vote].at.as_second() >= approved.as_second()
        };
        if self.vetoes.iter().any(afterwards) || self.rejected().is_some() {
            return Verdict::Revoked;
        }
        if self.unknown_veto() {
            return Verdict::Undetermined;
        }
        if self.is_complete() {
            Verdict::Approved
        } else {
            Verdict::Revoked
        }
    }
}

#[cfg(test)]
#[path = "tally_laws.rs"]
mod laws;
#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
