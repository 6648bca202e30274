//! Which policy a rollback needs, and what that policy asks for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::core::{Selector, SelectorExt};

use super::{
    hold::Calendar,
    identity::{Exclusions, People, service_account},
    satisfiable::{Demand, Unsatisfiable, satisfiable},
};
use crate::{
    api::{
        approval_policy::{ApprovalPolicySpec, Limits, PolicyMatch, PolicyStage, UnknownRequester},
        approval_request::{OnTimeout, PolicyReference, RequestStage},
        duration,
        reference::RiskLevel,
        rollback_request::{Priority, ReasonType, Strategy},
        snapshot::Component,
    },
    domain::{
        object::{Digest, canonical},
        plan::{Action, Plan, scope::is_powerful},
    },
};

/// Most people that a stage may ask for, the bound of its field.
const MOST_REQUIRED: i32 = 16;

/// A policy that exists.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Its generation.
    pub generation: i64,
    /// What it says.
    pub spec: &'a ApprovalPolicySpec,
}

/// What a policy looks at.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Labels of the namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Risk of the plan.
    pub risk: RiskLevel,
    /// Components that the rollback brings back.
    pub components: &'a BTreeSet<Component>,
    /// Its strategy.
    pub strategy: Strategy,
    /// Its reason.
    pub reason: ReasonType,
    /// Groups of the effective requester.
    pub requester_groups: &'a [String],
    /// Who asks, for whom, as whom, and whose snapshot it is (the policy decides whether that one is excluded).
    pub exclusions: &'a Exclusions,
    /// What in the plan must not be approved by itself.
    pub traits: Traits,
    /// Whether it is break-glass.
    pub emergency: bool,
}

/// What in a plan must not be approved by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// It deletes, or deletes and creates again.
    pub deletes: bool,
    /// It writes Secrets.
    pub secrets: bool,
    /// It writes kinds that grant power.
    pub powerful: bool,
}

impl Traits {
    /// The traits of a plan.
    pub fn of<State>(plan: &Plan<State>) -> Self {
        let mut traits = Self::default();
        for item in plan.writes() {
            traits.deletes |= matches!(item.action, Action::Delete | Action::Recreate(_));
            traits.secrets |= item.id.group.is_empty() && item.id.kind == "Secret";
            traits.powerful |= is_powerful(&item.id);
        }
        traits
    }
}

/// How a request gets its approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// These stages, in order.
    Stages(Vec<RequestStage>),
    /// The policy approves it by itself. The stages ask for nobody, and their people may still object.
    Automatic(Vec<RequestStage>),
    /// It runs at once; others acknowledge it in this time.
    BreakGlass {
        /// How soon.
        review_within: Duration,
        /// The stages whose people may acknowledge it.
        stages: Vec<RequestStage>,
    },
}

/// The policy of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which one, as it is now.
    pub policy: PolicyReference,
    /// What it asks for.
    pub route: Route,
    /// How long the request may wait.
    pub request_ttl: Duration,
    /// How long an approval may be used.
    pub approval_ttl: Duration,
    /// How many requests there may be.
    pub limits: Option<Limits>,
}

/// Why a request is not approvable. It waits, or is refused at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// No policy matches; nothing is approved.
    #[error("no ApprovalPolicy matches this rollback, so nobody can approve it; create one that does")]
    NoMatchingPolicy,
    /// A policy cannot be read. It might match, so no weaker one takes its place.
    #[error("ApprovalPolicy {policy} cannot be used: {problem}; correct it")]
    InvalidPolicy {
        /// Its name.
        policy: String,
        /// What is wrong.
        problem: String,
    },
    /// The requester is no person.
    #[error("ApprovalPolicy {0} refuses requests of service accounts (unknownRequester: Deny); let a person ask")]
    UnknownRequester(String),
    /// Break-glass is not allowed.
    #[error("ApprovalPolicy {0} does not allow emergencies; ask without spec.emergency")]
    EmergencyNotAllowed(String),
    /// The policy has no stage for what it does not approve by itself.
    #[error("ApprovalPolicy {0} has no stage that could approve this; add one")]
    NoStage(String),
    /// The policy can never be met for this request.
    #[error("ApprovalPolicy {policy} cannot approve this request: {problem}")]
    Unsatisfiable {
        /// Its name.
        policy: String,
        /// Which stage, and why.
        problem: Unsatisfiable,
    },
}

/// Digest of a policy's spec.
///
/// # Errors
/// The spec cannot be written as JSON, which its type rules out.
pub fn policy_digest(spec: &ApprovalPolicySpec) -> Result<Digest, serde_json::Error> {
    serde_json::to_value(spec).map(|value| canonical::digest(&value))
}

/// Chooses the policy for `subject` and says what it asks for.
///
/// 1. every policy that matches (an empty field matches anything) · 2. the highest priority · 3. of equals the stricter: more
///    required approvals, then no auto-approval, then the name · 4. break-glass, auto-approval or stages, by the risk.
///
/// # Errors
/// There is no way to approve it; the first reason in this order.
pub fn choose(candidates: &[Candidate<'_>], subject: &Subject<'_>) -> Result<Chosen, NoRoute> {
    let mut matching = Vec::new();
    for candidate in candidates {
        let matches = candidate.spec.match_.as_ref().map_or(Ok(true), |rules| {
            matches(rules, subject).map_err(|problem| NoRoute::InvalidPolicy {
                policy: candidate.name.to_owned(),
                problem,
            })
        })?;
        if matches {
            matching.push(candidate);
        }
    }
    let chosen = matching.into_iter().min_by_key(|candidate| {
        let required: i32 = stages_at(&candidate.spec.stages, subject.risk)
            .map(|stage| stage.required)
            .sum();
        (
            Reverse(candidate.spec.priority),
            Reverse(required),
            candidate.spec.auto_approve.is_some(),
            candidate.name,
        )
    });
    route(chosen.ok_or(NoRoute::NoMatchingPolicy)?, subject)
}

/// Whether a policy is for this rollback.
fn matches(rules: &PolicyMatch, subject: &Subject<'_>) -> Result<bool, String> {
    if let Some(selector) = &rules.namespaces {
        let selector = Selector::try_from(selector.clone())
            .map_err(|error| format!("match.namespaces is no label selector ({error})"))?;
        if !selector.matches(subject.namespace_labels) {
            return Ok(false);
        }
    }
    let requester = rules.requesters.as_ref().is_none_or(|requesters| {
        (requesters.users.is_empty() && requesters.groups.is_empty())
            || requesters
                .users
                .iter()
                .any(|user| user == subject.exclusions.effective_requester())
            || requesters
                .groups
                .iter()
                .any(|group| subject.requester_groups.contains(group))
    });
    Ok(requester
        && rules.min_risk.is_none_or(|least| subject.risk >= least)
        && (rules.components.is_empty() || rules.components.iter().any(|one| subject.components.contains(one)))
        && (rules.strategies.is_empty() || rules.strategies.contains(&subject.strategy))
        && (rules.reasons.is_empty() || rules.reasons.contains(&subject.reason)))
}

/// The stages that a risk needs. Where the risk is below every stage, those of the lowest risk: never none of some.
fn stages_at(stages: &[PolicyStage], risk: RiskLevel) -> impl Iterator<Item = &PolicyStage> {
    let lowest = stages.iter().map(|stage| stage.min_risk).min().unwrap_or_default();
    stages.iter().filter(move |stage| stage.min_risk <= risk.max(lowest))
}

fn route(candidate: &Candidate<'_>, subject: &Subject<'_>) -> Result<Chosen, NoRoute> {
    let spec = candidate.spec;
    let name = || candidate.name.to_owned();
    let invalid = |problem: String| NoRoute::InvalidPolicy {
        policy: name(),
        problem,
    };
    let time = |text: &str| duration::parse(text).map_err(|error| invalid(error.to_string()));
    let digest = policy_digest(spec).map_err(|error| invalid(error.to_string()))?;
    Calendar::new(spec, Priority::Low).map_err(invalid)?;

    let unknown = service_account(subject.exclusions.effective_requester()).is_some();
    if unknown && spec.unknown_requester == UnknownRequester::Deny {
        return Err(NoRoute::UnknownRequester(name()));
    }
    let stages: Vec<RequestStage> = stages_at(&spec.stages, subject.risk).map(frozen).collect();
    let chosen = |route| -> Result<Chosen, NoRoute> {
        Ok(Chosen {
            policy: PolicyReference {
                name: name(),
                uid: candidate.uid.to_owned(),
                generation: candidate.generation,
                digest: digest.to_string(),
            },
            route,
            request_ttl: time(&spec.request_ttl)?,
            approval_ttl: time(&spec.approval_ttl)?,
            limits: spec.limits.clone(),
        })
    };
    if subject.emergency {
        let allowed = spec.emergency.as_ref().filter(|emergency| emergency.allowed);
        let emergency = allowed.ok_or_else(|| NoRoute::EmergencyNotAllowed(name()))?;
        if stages.is_empty() {
            return Err(NoRoute::NoStage(name()));
        }
        return chosen(Route::BreakGlass {
            review_within: time(&emergency.review_within)?,
            stages,
        });
    }
    let traits = subject.traits;
    let harmless = !traits.deletes && !traits.secrets && !traits.powerful && !unknown;
    if harmless
        && spec
            .auto_approve
            .as_ref()
            .is_some_and(|auto| subject.risk <= auto.max_risk)
    {
        return chosen(Route::Automatic(asking_nobody(stages)));
    }
    if stages.is_empty() {
        return Err(NoRoute::NoStage(name()));
    }
    let exclusions = Exclusions {
        snapshot_author: subject
            .exclusions
            .snapshot_author
            .clone()
            .filter(|_| spec.exclude_snapshot_author),
        ..subject.exclusions.clone()
    };
    let people = People::new(&spec.aliases);
    let extra = unknown && spec.unknown_requester == UnknownRequester::RequireExtraApproval;
    let stages = if extra {
        with_one_more(&stages, &people, &exclusions)
    } else {
        stages
    };
    met(&stages, &people, Some(&exclusions)).map_err(|problem| NoRoute::Unsatisfiable {
        policy: name(),
        problem,
    })?;
    chosen(Route::Stages(stages))
}

fn frozen(stage: &PolicyStage) -> RequestStage {
    RequestStage {
        name: stage.name.clone(),
        required: stage.required.max(1),
        rejections_to_deny: stage.rejections_to_deny.max(1),
        approvers: stage.approvers.clone(),
        timeout: stage.timeout.clone(),
        on_timeout: stage.on_timeout.as_ref().map(|then| OnTimeout {
            action: then.action,
            approvers: then.approvers.clone(),
        }),
    }
}

/// The stages with nobody required; one without a list where the policy has none: an `ApprovalRequest` has at least one.
fn asking_nobody(mut stages: Vec<RequestStage>) -> Vec<RequestStage> {
    if stages.is_empty() {
        stages.push(RequestStage {
            name: "automatic".to_owned(),
            rejections_to_deny: 1,
            ..RequestStage::default()
        });
    }
    for stage in &mut stages {
        stage.required = 0;
    }
    stages
}

fn met(stages: &[RequestStage], people: &People, exclusions: Option<&Exclusions>) -> Result<(), Unsatisfiable> {
    let demands: Vec<Demand<'_>> = stages
        .iter()
        .map(|stage| {
            let later = stage
                .on_timeout
                .as_ref()
                .map(|then| (then.action, then.approvers.as_ref()));
            Demand::new(&stage.name, stage.required, stage.approvers.as_ref(), later)
        })
        .collect();
    satisfiable(&demands, people, exclusions)
}

/// One more approval than the stages ask for, in the first stage that can give it; in the first one where none can, so that the
/// policy shows as unsatisfiable instead of asking for less.
fn with_one_more(stages: &[RequestStage], people: &People, exclusions: &Exclusions) -> Vec<RequestStage> {
    let raised = |index: usize| {
        let mut more = stages.to_vec();
        if let Some(stage) = more.get_mut(index) {
            stage.required += 1;
        }
        more
    };
    (0..stages.len())
        .filter(|index| stages[*index].required < MOST_REQUIRED)
        .map(raised)
        .find(|more| met(more, people, Some(exclusions)).is_ok())
        .unwrap_or_else(|| raised(0))
}

/// Checks a policy by itself: whether the stages of every risk can be met by somebody.
///
/// # Errors
/// The first stage that can never be met; the policy is `Unsatisfiable`.
pub fn check(spec: &ApprovalPolicySpec) -> Result<(), Unsatisfiable> {
    let people = People::new(&spec.aliases);
    for risk in [RiskLevel::Low, RiskLevel::Medium, RiskLevel::High, RiskLevel::Critical] {
        let stages: Vec<RequestStage> = stages_at(&spec.stages, risk).map(frozen).collect();
        met(&stages, &people, None)?;
    }
    Ok(())
}

/// How many requests there are, the new one not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Open ones in the namespace.
    pub open_in_namespace: usize,
    /// Open ones of the requester.
    pub open_of_requester: usize,
    /// Made in the namespace in the last hour.
    pub in_last_hour: usize,
}

/// A limit of the policy is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the policy allows {most} {what}, and there are as many; wait for one to finish, or cancel one")]
pub struct LimitReached {
    /// What is limited.
    pub what: &'static str,
    /// How many there may be.
    pub most: i32,
}

/// Whether one more request is within the limits.
///
/// # Errors
/// The first limit that is reached.
pub fn within(limits: Option<&Limits>, requests: Requests) -> Result<(), LimitReached> {
    let Some(limits) = limits else {
        return Ok(());
    };
    for (most, count, what) in [
        (
            limits.open_per_namespace,
            requests.open_in_namespace,
            "open requests in a namespace",
        ),
        (
            limits.open_per_requester,
            requests.open_of_requester,
            "open requests of one requester",
        ),
        (limits.requests_per_hour, requests.in_last_hour, "requests in an hour"),
    ] {
        if let Some(most) = most
            && usize::try_from(most).is_ok_and(|most| count >= most)
        {
            return Err(LimitReached { what, most });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
