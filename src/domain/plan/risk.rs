//! How much a rollback could hurt: a score from 0 to 100, made of named factors.
//!
//! | factor | points | at most |
//! |---|---|---|
//! | `DataLoss` | 30 a volume, 2 a started hour of writes that would be lost | 60 |
//! | `Deletes` | 4 an object; more than 10 objects are 50 | 50 |
//! | `Recreates` | 12 an object | 36 |
//! | `SecretsOlderThanLive` | 6 a Secret | 24 |
//! | `AccessKeysReturn` | 10 a Secret rotated, or a Secret or `ServiceAccount` deleted since | 30 |
//! | `Restarts` | 12 × share of the workloads that get new Pods | 12 |
//! | `ReadyPods` | 12 × share of the ready Pods that are replaced | 12 |
//! | `PowerfulKinds` | 15 an object | 45 |
//! | `WidensAccess` | 25 an object | 50 |
//! | `SnapshotAge` | 1 a full day | 10 |
//! | `ImageUnavailable` | 25 an image | 50 |
//! | `ImageBelowFloor` | 50 | 50 |
//!
//! The score is their sum, at most 100; shares are rounded up. Low < 25 ≤ Medium < 50 ≤ High < 75 ≤ Critical.

use std::{collections::BTreeMap, time::Duration};

use super::{Action, Item, Plan, json, listed, scope, widening::widens, workload};
use crate::{
    api::{
        approval_policy::SecurityFloor,
        reference::{Risk, RiskFactor, RiskLevel},
    },
    domain::{object::ObjectId, snapshot::matches_glob},
};

/// More deletes than this make the risk High at least, so that a policy can ask for a stage of their own.
pub const MANY_DELETES: usize = 10;

/// What a risk depends on besides the plan.
#[derive(Clone, Debug, Default)]
pub struct RiskFacts {
    /// Time since the snapshot was begun.
    pub snapshot_age: Duration,
    /// Claims whose data comes back, and how long ago that data was captured.
    pub volumes: Vec<(String, Duration)>,
    /// Live workloads of the namespace, with the number of their ready Pods.
    pub ready_pods: BTreeMap<ObjectId, u32>,
    /// Images that come back and can neither be pulled nor are on a node.
    pub unavailable_images: Vec<String>,
    /// Digest (`sha256:…`) that ran, by workload and container.
    pub image_digests: BTreeMap<(ObjectId, String), String>,
    /// Images that must not come back, from the matching policy.
    pub floor: SecurityFloor,
}

/// The risk of `plan`.
pub fn rate<State>(plan: &Plan<State>, facts: &RiskFacts) -> Risk {
    let items = |wanted: fn(&Item) -> bool| plan.items().iter().filter(move |item| wanted(item)).collect::<Vec<_>>();
    let mut rating = Rating::default();

    let hours: u64 = facts
        .volumes
        .iter()
        .map(|(_, since)| since.as_secs().div_ceil(3600))
        .sum();
    let volumes: Vec<&str> = facts.volumes.iter().map(|(claim, _)| claim.as_str()).collect();
    rating.add("DataLoss", 30 * volumes.len() as u64 + 2 * hours, 60, || {
        format!("{}: {hours} h of writes", listed(volumes.iter()))
    });

    let deletes = items(|item| item.action == Action::Delete);
    let points = if deletes.len() > MANY_DELETES {
        50
    } else {
        4 * deletes.len() as u64
    };
    rating.add("Deletes", points, 50, || listed(ids(&deletes)));

    let recreates = items(|item| matches!(item.action, Action::Recreate(_)));
    rating.add("Recreates", 12 * recreates.len() as u64, 36, || listed(ids(&recreates)));

    let older = items(|item| is_secret(&item.id) && item.live.is_some() && writes_content(item));
    rating.add("SecretsOlderThanLive", 6 * older.len() as u64, 24, || {
        listed(ids(&older))
    });

    let keys = items(|item| writes_content(item) && brings_back_a_key(item));
    rating.add("AccessKeysReturn", 10 * keys.len() as u64, 30, || listed(ids(&keys)));

    blast_radius(plan, facts, &mut rating);

    let powerful = items(|item| scope::is_powerful(&item.id) && item.action.writes());
    rating.add("PowerfulKinds", 15 * powerful.len() as u64, 45, || {
        listed(ids(&powerful))
    });

    let wider = items(widens);
    rating.add("WidensAccess", 25 * wider.len() as u64, 50, || listed(ids(&wider)));

    let days = facts.snapshot_age.as_secs() / 86_400;
    // A plan that does nothing brings nothing old back.
    let aged = if plan.is_empty() { 0 } else { days };
    rating.add("SnapshotAge", aged, 10, || format!("{days} days"));

    let missing = &facts.unavailable_images;
    rating.add("ImageUnavailable", 25 * missing.len() as u64, 50, || {
        listed(missing.iter())
    });

    let below = images_below_floor(plan, facts);
    let points = if below.is_empty() { 0 } else { 50 };
    rating.add("ImageBelowFloor", points, 50, || listed(below.iter()));

    rating.finish()
}

/// The level of a score.
pub fn level(score: i32) -> RiskLevel {
    match score {
        ..25 => RiskLevel::Low,
        25..50 => RiskLevel::Medium,
        50..75 => RiskLevel::High,
        75.. => RiskLevel::Critical,
    }
}

#[derive(Default)]
struct Rating {
    factors: Vec<RiskFactor>,
    score: i32,
}

impl Rating {
    /// Adds a factor of `points`, at most `most`; none where there are no points.
    fn add(&mut self, name: &str, points: u64, most: i32, detail: impl FnOnce() -> String) {
        let points = i32::try_from(points).unwrap_or(most).min(most);
        if points > 0 {
            self.score += points;
            self.factors.push(RiskFactor {
                name: name.to_owned(),
                points: Some(points),
                detail: Some(cut(detail())),
            });
        }
    }

    fn finish(self) -> Risk {
        let score = self.score.min(100);
        Risk {
            level: level(score),
            score,
            factors: self.factors,
        }
    }
}

/// At most 512 characters, the bound of the field.
fn cut(text: String) -> String {
    match text.char_indices().nth(511) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn ids<'a>(items: &'a [&Item]) -> impl ExactSizeIterator<Item = &'a ObjectId> {
    items.iter().map(|item| &item.id)
}

fn is_secret(id: &ObjectId) -> bool {
    id.group.is_empty() && id.kind == "Secret"
}

fn writes_content(item: &Item) -> bool {
    matches!(item.action, Action::Create | Action::Update | Action::Recreate(_))
}

/// A Secret whose values were rotated or that was deleted, or a `ServiceAccount` that was deleted, since the snapshot.
fn brings_back_a_key(item: &Item) -> bool {
    let account = item.id.group.is_empty() && item.id.kind == "ServiceAccount";
    match &item.live {
        None => account || is_secret(&item.id),
        Some(_) => {
            is_secret(&item.id)
                && item
                    .notes
                    .iter()
                    .any(|note| matches!(note, super::Note::SecretKeysChanged(keys) if !keys.is_empty()))
        }
    }
}

/// How many workloads and ready Pods are replaced.
fn blast_radius<State>(plan: &Plan<State>, facts: &RiskFacts, rating: &mut Rating) {
    let replaced: std::collections::BTreeSet<&ObjectId> = plan
        .items()
        .iter()
        .filter(|item| replaces_pods(item))
        .map(|item| &item.id)
        .collect();
    let touched = facts.ready_pods.keys().filter(|id| replaced.contains(id)).count() as u64;
    let all = facts.ready_pods.len() as u64;
    if all > 0 {
        rating.add("Restarts", (12 * touched).div_ceil(all), 12, || {
            format!("{touched} of {all} workloads")
        });
    }
    let pods = |only: bool| -> u64 {
        let counted = facts.ready_pods.iter().filter(|(id, _)| !only || replaced.contains(id));
        counted.map(|(_, ready)| u64::from(*ready)).sum()
    };
    let (gone, ready) = (pods(true), pods(false));
    if ready > 0 {
        rating.add("ReadyPods", (12 * gone).div_ceil(ready), 12, || {
            format!("{gone} of {ready} ready Pods")
        });
    }
}

fn replaces_pods(item: &Item) -> bool {
    let runs = workload::runs_pods(&item.id);
    match &item.action {
        Action::Restart(_) => true,
        Action::Delete | Action::Recreate(_) => runs,
        Action::Update => {
            let (Some(live), Some(wanted)) = (&item.live, &item.desired) else {
                return runs;
            };
            let template = |content| workload::template(&item.id, content);
            let count = |content| json::at(content, &["spec", "replicas"]);
            runs && (template(&*live.content) != template(&*wanted.content)
                || count(&*live.content) != count(&*wanted.content))
        }
        Action::Create | Action::Keep(_) | Action::Skip(_) => false,
    }
}

/// Images that the plan brings back although the floor lists their digest or tag.
fn images_below_floor<State>(plan: &Plan<State>, facts: &RiskFacts) -> Vec<String> {
    let mut below = Vec::new();
    for item in plan.items().iter().filter(|item| writes_content(item)) {
        let Some(spec) = item
            .desired
            .as_ref()
            .and_then(|wanted| workload::pod_spec(&item.id, &wanted.content))
        else {
            continue;
        };
        for container in workload::containers(spec) {
            let (Some(name), Some(image)) = (json::text(container, &["name"]), json::text(container, &["image"]))
            else {
                continue;
            };
            let now = item
                .live
                .as_ref()
                .and_then(|live| workload::image(&item.id, &live.content, name));
            let ran = facts.image_digests.get(&(item.id.clone(), name.to_owned()));
            let digest = image
                .rsplit_once('@')
                .map(|(_, digest)| digest)
                .or(ran.map(String::as_str));
            let tagged = image.rsplit_once('@').map_or(image, |(reference, _)| reference);
            let listed = digest.is_some_and(|digest| facts.floor.digests.iter().any(|bad| bad == digest))
                || facts.floor.tags.iter().any(|pattern| matches_glob(pattern, tagged));
            // What runs now anyway does not come back.
            if listed && now != Some(image) {
                below.push(image.to_owned());
            }
        }
    }
    below.sort();
    below.dedup();
    below
}

#[cfg(test)]
#[path = "risk_tests.rs"]
mod tests;
