//! Whether a list of stages can be met at all, and by whom: people into stages, each in one.

use std::collections::{BTreeMap, BTreeSet};

use super::identity::{Exclusions, People, Person, service_account_user};
use crate::api::approval_request::{Approvers, TimeoutAction};

/// What a stage asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand<'a> {
    /// Its name.
    pub name: &'a str,
    /// Distinct people.
    pub required: i32,
    /// Who may approve, whoever is asked later included.
    pub approvers: Vec<&'a Approvers>,
}

impl<'a> Demand<'a> {
    /// The demand of a stage, its escalation included; empty approvers stay anyone.
    pub fn new(
        name: &'a str,
        required: i32,
        approvers: Option<&'a Approvers>,
        escalation: Option<(TimeoutAction, Option<&'a Approvers>)>,
    ) -> Self {
        let asked = approvers.into_iter();
        let later = match escalation {
            Some((TimeoutAction::Escalate, later)) if approvers.is_some() => later,
            _ => None,
        };
        Self {
            name,
            required,
            approvers: asked.chain(later).collect(),
        }
    }

    /// The people who may approve; `None` where nobody can count them (a group, or anyone).
    fn people(&self, people: &People, exclusions: Option<&Exclusions>) -> Option<BTreeSet<Person>> {
        let unbounded = self.approvers.is_empty()
            || self
                .approvers
                .iter()
                .any(|list| !list.groups.is_empty() || is_anyone(list));
        if unbounded {
            return None;
        }
        let users = self.approvers.iter().flat_map(|list| list.users.iter().cloned());
        let robots = self
            .approvers
            .iter()
            .flat_map(|list| &list.service_accounts)
            .filter_map(|account| {
                let (namespace, name) = account.split_once('/')?;
                Some(service_account_user(namespace, name))
            });
        Some(
            users
                .chain(robots)
                .filter(|user| exclusions.is_none_or(|excluded| excluded.of(user, people).is_none()))
                .map(|user| people.person(&user))
                .collect(),
        )
    }
}

/// Whether a list of approvers names nobody, which is anyone who holds the verb.
pub(super) fn is_anyone(approvers: &Approvers) -> bool {
    approvers.users.is_empty() && approvers.groups.is_empty() && approvers.service_accounts.is_empty()
}

/// Stages that can never be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "stage {stage} can never be met: {required} distinct people must approve, and with the stages before it only {possible} of those it names can; name more approvers or a group, or require fewer"
)]
pub struct Unsatisfiable {
    /// The first stage that cannot be met.
    pub stage: String,
    /// What it asks for.
    pub required: i32,
    /// How many can be had.
    pub possible: usize,
}

/// Checks that every stage can be met by distinct people, each in one stage, without those who are excluded.
///
/// # Errors
/// The first stage that cannot.
pub fn satisfiable(
    demands: &[Demand<'_>],
    people: &People,
    exclusions: Option<&Exclusions>,
) -> Result<(), Unsatisfiable> {
    let mut places = Places::default();
    for (stage, demand) in demands.iter().enumerate() {
        // Groups and "anyone" may hold as many others as it takes.
        let Some(candidates) = demand.people(people, exclusions) else {
            continue;
        };
        places.offer(stage, candidates);
        let required = usize::try_from(demand.required).unwrap_or(0);
        let possible = places.fill(stage, required);
        if possible < required {
            return Err(Unsatisfiable {
                stage: demand.name.to_owned(),
                required: demand.required,
                possible,
            });
        }
    }
    Ok(())
}

/// People placed into stages, each in at most one; later placements move earlier ones where that makes room, and never leave
/// an earlier stage with fewer.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    offers: BTreeMap<usize, BTreeSet<Person>>,
    placed: BTreeMap<Person, usize>,
}

impl Places {
    /// Who could be placed into `stage`.
    pub(super) fn offer(&mut self, stage: usize, people: BTreeSet<Person>) {
        self.offers.insert(stage, people);
    }

    /// Places up to `required` people into `stage`; says how many.
    pub(super) fn fill(&mut self, stage: usize, required: usize) -> usize {
        let mut placed = self.placed.values().filter(|at| **at == stage).count();
        while placed < required && self.place_one(stage, &mut BTreeSet::new()) {
            placed += 1;
        }
        placed
    }

    /// Where a person is placed.
    pub(super) fn stage_of(&self, person: &Person) -> Option<usize> {
        self.placed.get(person).copied()
    }

    fn place_one(&mut self, stage: usize, tried: &mut BTreeSet<Person>) -> bool {
        let candidates: Vec<Person> = self.offers.get(&stage).into_iter().flatten().cloned().collect();
        // Who is free first: nobody needs to move then.
        let (free, taken): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|person| !self.placed.contains_key(person));
        for person in free.into_iter().chain(taken) {
            let at = self.stage_of(&person);
            if at == Some(stage) || !tried.insert(person.clone()) {
                continue;
            }
            if at.is_none_or(|other| self.place_one(other, tried)) {
                self.placed.insert(person, stage);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::api::approval_policy::Alias;

    fn users(names: &[&str]) -> Approvers {
        Approvers {
            users: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Approvers::default()
        }
    }

    fn check(
        stages: &[(i32, &Approvers)],
        people: &People,
        excluded: Option<&Exclusions>,
    ) -> Result<(), Unsatisfiable> {
        let demands: Vec<Demand<'_>> = stages
            .iter()
            .map(|(required, approvers)| Demand::new("s", *required, Some(approvers), None))
            .collect();
        satisfiable(&demands, people, excluded)
    }

    #[test]
    fn more_approvals_than_people_can_never_be_had() {
        let two = users(&["ada", "bob"]);
        assert!(check(&[(2, &two)], &People::default(), None).is_ok());
        let error = check(&[(3, &two)], &People::default(), None).unwrap_err();
        assert_eq!((error.required, error.possible), (3, 2));
    }

    #[test]
    fn a_person_counts_once_whatever_its_identities_and_stages() {
        let two = users(&["ada", "oidc:ada"]);
        let people = People::new(&[Alias {
            name: "ada".to_owned(),
            identities: two.users.clone(),
        }]);
        assert!(check(&[(2, &two)], &people, None).is_err());
        let one = users(&["ada"]);
        assert!(check(&[(1, &one), (1, &one)], &People::default(), None).is_err());
        assert!(
            check(&[(1, &users(&["ada", "bob"])), (1, &one)], &People::default(), None).is_ok(),
            "bob makes room"
        );
    }

    #[test]
    fn groups_and_anyone_can_always_be_met() {
        let group = Approvers {
            groups: vec!["sre".to_owned()],
            ..users(&["ada"])
        };
        assert!(check(&[(16, &group), (16, &users(&[]))], &People::default(), None).is_ok());
        assert!(satisfiable(&[Demand::new("s", 16, None, None)], &People::default(), None).is_ok());
    }

    #[test]
    fn who_is_excluded_does_not_help() {
        let excluded = Exclusions {
            requested_by: "ada".to_owned(),
            ..Exclusions::default()
        };
        assert!(check(&[(1, &users(&["ada"]))], &People::default(), Some(&excluded)).is_err());
    }

    #[test]
    fn an_escalation_adds_people_and_never_to_anyone() {
        let (one, more) = (users(&["ada"]), users(&["bob"]));
        let escalated = Some((TimeoutAction::Escalate, Some(&more)));
        assert!(satisfiable(&[Demand::new("s", 2, Some(&one), escalated)], &People::default(), None).is_ok());
        assert!(satisfiable(&[Demand::new("s", 2, None, escalated)], &People::default(), None).is_ok());
    }

    proptest! {
        #[test]
        fn stages_are_satisfiable_exactly_when_hall_says_so(
            stages in prop::collection::vec((0..4i32, prop::collection::btree_set(0..6usize, 1..5)), 0..5)
        ) {
            let names: Vec<String> = (0..6).map(|index| format!("u{index}")).collect();
            let lists: Vec<(i32, Approvers)> = stages
                .iter()
                .map(|(required, set)| (*required, users(&set.iter().map(|index| names[*index].as_str()).collect::<Vec<_>>())))
                .collect();
            let borrowed: Vec<(i32, &Approvers)> = lists.iter().map(|(required, list)| (*required, list)).collect();
            let answer = check(&borrowed, &People::default(), None).is_ok();
            // Hall: every subset of stages must have as many people as it asks for.
            let hall = (0..1usize << stages.len()).all(|subset| {
                let chosen = stages.iter().enumerate().filter(|(index, _)| subset >> index & 1 == 1);
                let (mut demand, mut pool) = (0, BTreeSet::<usize>::new());
                for (_, (required, set)) in chosen {
                    demand += usize::try_from(*required).unwrap();
                    pool.extend(set);
                }
                pool.len() >= demand
            });
            prop_assert_eq!(answer, hall);
        }
    }
}
