//! When things happen: the order of `rollback.md` §6 as numbers on items, and as steps of an execution.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::{Action, Item, Note, Plan, desired::owner_id, json};
use crate::{api::names::ORDER_ANNOTATION, domain::object::ObjectId};

/// Namespaces, definitions, policy.
pub const FOUNDATIONS: u16 = 20;
/// Bindings follow the roles that they name.
pub const BINDINGS: u16 = 25;
/// `ServiceAccounts`, Secrets, `ConfigMaps`.
pub const CONFIG: u16 = 30;
/// Claims.
pub const CLAIMS: u16 = 40;
/// Services and their endpoints.
pub const SERVICES: u16 = 50;
/// Workloads, and custom resources: what they are is not known, what they refer to is mostly configuration.
pub const WORKLOADS: u16 = 60;
/// Autoscalers, disruption budgets, ingress.
pub const TRAFFIC: u16 = 70;
/// Last number of an item that writes an object; beyond 99 only by what it must follow.
const LAST_WRITE: u16 = 199;
/// Restarts of consumers.
pub const RESTART: u16 = 300;
/// Prune begins here, in reverse.
const PRUNE: u16 = 400;
/// Items that do nothing.
pub const NEVER: u16 = 1000;

/// One step of an execution. The derived order is the order of execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Suspend the GitOps owners.
    PauseGitOps,
    /// Scale down the owners of volumes that come back.
    Quiesce,
    /// Bring volumes back.
    RestoreVolumes,
    /// Create and update the items with this number, in parallel.
    Write(u16),
    /// Scale up to the planned count.
    ScaleUp,
    /// Restart consumers.
    Restart,
    /// Wait until all is healthy.
    AwaitHealth,
    /// Delete the items with this number, in parallel.
    Prune(u16),
    /// Wait again, with the stability window.
    AwaitStability,
    /// Run the tests.
    Verify,
    /// Let the GitOps owners go on.
    HandBack,
}

/// One step with its place and its items.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NumberedStep {
    /// From 1, without gaps.
    pub number: usize,
    /// What is done.
    pub step: Step,
    /// Indices into [`Plan::items`]; empty for steps that are not about single items.
    pub items: Vec<usize>,
}

/// What an execution does besides its items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    /// A GitOps owner is paused.
    pub gitops: bool,
    /// Volumes come back.
    pub volumes: bool,
    /// Tests run at the end.
    pub tests: bool,
}

impl<State> Plan<State> {
    /// The execution in numbered steps; none where there is nothing to do.
    pub fn steps(&self, extras: Extras) -> Vec<NumberedStep> {
        let mut steps: BTreeMap<Step, Vec<usize>> = BTreeMap::new();
        for (index, item) in self.items.iter().enumerate() {
            let step = match item.action {
                Action::Create | Action::Update | Action::Recreate(_) => Step::Write(item.order),
                Action::Restart(_) => Step::Restart,
                Action::Delete => Step::Prune(item.order),
                Action::Keep(_) | Action::Skip(_) => continue,
            };
            steps.entry(step).or_default().push(index);
        }
        let deletes = steps.keys().any(|step| matches!(step, Step::Prune(_)));
        let something = !steps.is_empty() || extras.volumes;
        for (step, needed) in [
            (Step::PauseGitOps, extras.gitops && something),
            (Step::Quiesce, extras.volumes),
            (Step::RestoreVolumes, extras.volumes),
            (Step::ScaleUp, extras.volumes),
            (Step::AwaitHealth, something),
            (Step::AwaitStability, deletes || (something && extras.tests)),
            (Step::Verify, something && extras.tests),
            (Step::HandBack, extras.gitops && something),
        ] {
            if needed {
                steps.entry(step).or_default();
            }
        }
        let numbered = steps.into_iter().enumerate();
        numbered
            .map(|(index, (step, items))| NumberedStep {
                number: index + 1,
                step,
                items,
            })
            .collect()
    }
}

/// Gives every item its number and sorts them by it, then by identity.
pub(super) fn assign(items: &mut [Item]) {
    for item in items.iter_mut() {
        let content = match (&item.desired, &item.live) {
            (Some(wanted), _) => Some(&*wanted.content),
            (None, Some(live)) => Some(&*live.content),
            (None, None) => None,
        };
        let wish = content.and_then(|content| json::annotation(content, ORDER_ANNOTATION));
        let number = wish.and_then(|wish| wish.parse().ok()).filter(|number| *number < 100);
        if let (Some(wish), None) = (wish, number) {
            // Long nonsense is cut: a plan has a bounded size.
            item.notes.push(Note::OrderIgnored(wish.chars().take(32).collect()));
        }
        item.order = number.unwrap_or_else(|| place(&item.id));
    }
    follow(items, |action| {
        matches!(action, Action::Create | Action::Update | Action::Recreate(_))
    });
    follow(items, |action| matches!(action, Action::Delete));
    for item in items.iter_mut() {
        item.order = match item.action {
            Action::Create | Action::Update | Action::Recreate(_) => item.order,
            Action::Restart(_) => RESTART,
            Action::Delete => PRUNE + (LAST_WRITE - item.order),
            Action::Keep(_) | Action::Skip(_) => NEVER,
        };
    }
    items.sort_by(|a, b| (a.order, &a.id, &a.action).cmp(&(b.order, &b.id, &b.action)));
}

/// Moves what cannot exist without another item behind it. Numbers only grow and are bounded, so circles end.
fn follow(items: &mut [Item], among: impl Fn(&Action) -> bool) {
    let at: HashMap<&ObjectId, usize> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| among(&item.action))
        .map(|(index, item)| (&item.id, index))
        .collect();
    let has_namespace = at.keys().any(|id| id.group.is_empty() && id.kind == "Namespace");
    let definitions: BTreeMap<(&str, &str), usize> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| among(&item.action))
        .filter_map(|(index, item)| Some((defines(item)?, index)))
        .collect();
    let needs: Vec<(usize, usize)> = items
        .iter()
        .enumerate()
        .filter(|(_, item)| among(&item.action))
        .flat_map(|(index, item)| {
            let owners = content(item)
                .into_iter()
                .flat_map(|content| json::list(content, &["metadata", "ownerReferences"]))
                .filter_map(|reference| at.get(&owner_id(reference)?).copied())
                .collect::<Vec<_>>();
            let definition = definitions
                .get(&(item.id.group.as_str(), item.id.kind.as_str()))
                .copied();
            let namespace = content(item)
                .filter(|_| has_namespace)
                .and_then(|content| json::text(content, &["metadata", "namespace"]))
                .and_then(|name| at.get(&ObjectId::new("", "Namespace", name)).copied());
            owners
                .into_iter()
                .chain(definition)
                .chain(namespace)
                .filter(move |needed| *needed != index)
                .map(move |needed| (index, needed))
                .collect::<Vec<_>>()
        })
        .collect();
    let mut moved = true;
    while moved {
        moved = false;
        for (index, needed) in &needs {
            let least = (items[*needed].order + 1).min(LAST_WRITE);
            if items[*index].order < least {
                items[*index].order = least;
                moved = true;
            }
        }
    }
}

fn content(item: &Item) -> Option<&Value> {
    match (&item.desired, &item.live) {
        (Some(wanted), _) => Some(&*wanted.content),
        (None, live) => live.as_ref().map(|live| &*live.content),
    }
}

/// Group and kind that a definition defines.
fn defines(item: &Item) -> Option<(&str, &str)> {
    if item.id.group != "apiextensions.k8s.io" || item.id.kind != "CustomResourceDefinition" {
        return None;
    }
    let content = content(item)?;
    Some((
        json::text(content, &["spec", "group"])?,
        json::text(content, &["spec", "names", "kind"])?,
    ))
}

/// The place of a kind.
pub fn place(id: &ObjectId) -> u16 {
    match (id.group.as_str(), id.kind.as_str()) {
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => BINDINGS,
        ("", "Namespace" | "PersistentVolume" | "ResourceQuota" | "LimitRange")
        | ("networking.k8s.io", "NetworkPolicy" | "IngressClass")
        | (
            "apiextensions.k8s.io"
            | "admissionregistration.k8s.io"
            | "apiregistration.k8s.io"
            | "rbac.authorization.k8s.io"
            | "scheduling.k8s.io"
            | "storage.k8s.io"
            | "node.k8s.io",
            _,
        ) => FOUNDATIONS,
        ("", "ServiceAccount" | "Secret" | "ConfigMap") => CONFIG,
        ("", "PersistentVolumeClaim") => CLAIMS,
        ("", "Service" | "Endpoints") | ("discovery.k8s.io", "EndpointSlice") => SERVICES,
        ("autoscaling" | "policy" | "keda.sh" | "autoscaling.k8s.io" | "gateway.networking.k8s.io", _)
        | ("networking.k8s.io" | "extensions", "Ingress") => TRAFFIC,
        _ => WORKLOADS,
    }
}

#[cfg(test)]
#[path = "order_tests.rs"]
mod tests;
