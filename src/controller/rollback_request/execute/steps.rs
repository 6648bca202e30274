//! The steps of an execution, as a reader sees them, and the items of each.

use std::collections::{BTreeMap, BTreeSet};

use super::{health::is_waited_for, items::is_write};
use crate::{
    api::{
        RollbackRequest,
        rollback_request::{StepState, StepStatus},
    },
    domain::{
        object::ObjectId,
        plan::{Action, Bound, Item, Plan, digest::BoundItem, order},
    },
};

pub(super) const SAFETY: &str = "TakeSafetySnapshot";
pub(super) const RESTART: &str = "RestartConsumers";
pub(super) const HEALTH: &str = "WaitForHealth";
pub(super) const IMAGES: &str = "CompareImages";
pub(super) const PRUNE: &str = "Prune";
pub(super) const HEALTH_AGAIN: &str = "WaitForHealthAgain";
pub(super) const VERIFY: &str = "Verify";
pub(super) const RESULT: &str = "TakeResultSnapshot";
pub(super) const UNDO: &str = "Undo";
pub(super) const UNDO_HEALTH: &str = "WaitForHealthAfterUndo";

/// Items of one step; numbers follow each other, items of one number run in parallel.
pub(super) struct Group<'a> {
    pub name: &'static str,
    pub numbers: Vec<Vec<&'a Item>>,
}

/// What there is to do.
#[allow(clippy::struct_excessive_bools, reason = "each is one step that may be left out")]
pub(super) struct Steps<'a> {
    /// Writes, in order.
    pub groups: Vec<Group<'a>>,
    /// Workloads that restart.
    pub restarts: Vec<ObjectId>,
    /// Deletes, in order.
    pub prune: Vec<Vec<&'a Item>>,
    safety: bool,
    verify: bool,
    result: bool,
    rollouts: bool,
}

/// The step of an order number: what its kinds are for.
const fn name(number: u16) -> &'static str {
    match number {
        0..order::CONFIG => "WritePolicy",
        order::CONFIG..order::CLAIMS => "WriteConfiguration",
        order::CLAIMS..order::SERVICES => "WriteClaims",
        order::SERVICES..order::WORKLOADS => "WriteServices",
        order::WORKLOADS..order::TRAFFIC => "WriteWorkloads",
        _ => "WriteTraffic",
    }
}

impl<'a> Steps<'a> {
    /// The steps of `plan`, which may be what is left of `approved`: its restarts are due although their causes are done.
    pub(super) fn of(plan: &'a Plan<Bound>, approved: &[BoundItem], request: &RollbackRequest) -> Self {
        let mut writes: BTreeMap<u16, Vec<&Item>> = BTreeMap::new();
        let mut deletes: BTreeMap<u16, Vec<&Item>> = BTreeMap::new();
        let mut restarts: BTreeSet<ObjectId> = BTreeSet::new();
        for item in plan.writes() {
            match &item.action {
                action if is_write(action) => writes.entry(item.order).or_default().push(item),
                Action::Delete => deletes.entry(item.order).or_default().push(item),
                Action::Restart(_) => {
                    restarts.insert(item.id.clone());
                }
                _ => {}
            }
        }
        if plan.bound_items() != approved {
            let due = approved
                .iter()
                .filter(|item| item.action == Action::Restart(Vec::new()).name());
            restarts.extend(due.map(|item| item.object.clone()));
        }
        let mut groups: Vec<Group<'a>> = Vec::new();
        for (number, items) in writes {
            match groups.last_mut() {
                Some(group) if group.name == name(number) => group.numbers.push(items),
                _ => groups.push(Group {
                    name: name(number),
                    numbers: vec![items],
                }),
            }
        }
        let rollouts = approved
            .iter()
            .any(|item| item.action != Action::Delete.name() && is_waited_for(&item.object));
        Self {
            groups,
            restarts: restarts.into_iter().collect(),
            prune: deletes.into_values().collect(),
            safety: request.spec.safety_snapshot,
            verify: request.spec.verify.is_some(),
            result: request.spec.result_snapshot,
            rollouts,
        }
    }

    /// Their names, in order.
    pub(super) fn names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        let mut add = |name, wanted: bool| names.extend(wanted.then_some(name));
        add(SAFETY, self.safety);
        for group in &self.groups {
            add(group.name, true);
        }
        add(RESTART, !self.restarts.is_empty());
        add(HEALTH, self.rollouts);
        add(IMAGES, self.rollouts);
        add(PRUNE, !self.prune.is_empty());
        add(HEALTH_AGAIN, !self.prune.is_empty() && self.rollouts);
        add(VERIFY, self.verify);
        add(RESULT, self.result);
        names
    }

    /// The steps of a request for which nothing is to be written.
    pub(super) fn to_prove(request: &RollbackRequest) -> Vec<&'static str> {
        let verify = request.spec.verify.is_some().then_some(VERIFY);
        let result = request.spec.result_snapshot.then_some(RESULT);
        verify.into_iter().chain(result).collect()
    }

    /// Items that write content or delete.
    pub(super) fn written(&self) -> Vec<&'a Item> {
        let writes = self.groups.iter().flat_map(|group| &group.numbers);
        writes.chain(&self.prune).flatten().copied().collect()
    }
}

/// Whether the step comes after the safety snapshot and was begun: something may have been written.
pub(super) fn is_after_safety(step: &StepStatus) -> bool {
    step.name != SAFETY && !matches!(step.state, StepState::Waiting | StepState::Skipped)
}
