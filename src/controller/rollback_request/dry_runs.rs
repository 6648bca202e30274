//! What the server says of every write before one is made: its rights, its admission, its quotas, its namespace.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, future, stream};
use kube::ResourceExt as _;
use rayon::prelude::*;
use serde_json::Value;

use super::{
    gather::Sides,
    preflight::{Wanted, bounded, named, refused},
};
use crate::{
    api::{
        RollbackRequest,
        rollback_plan::{PreflightOutcome, PreflightResult},
        rollback_request::Preflight,
    },
    capture::Failure,
    cluster::{
        self, Class, clock,
        list::{self, Collection},
        write::{Place, WriteError, Written, perform},
    },
    controller::context::Context,
    domain::{
        object::{ObjectId, SecretValues, normalise},
        plan::{
            Bound, Item, Plan, PutBack, quota,
            write::{Around, Call, WriteRefusal, calls},
        },
    },
};

/// Dry runs at once.
const DRY_RUNS: usize = 8;
/// Names in one detail.
const SHOWN: usize = 8;
/// Most webhook configurations, policies or quotas that are read; more count as not known.
const MOST: usize = 5000;
/// Stands for the UID of an owner that is not there yet; the server asks only that there is one.
const NOT_YET: &str = "00000000-0000-0000-0000-000000000000";

/// Rights of the operator, dry runs, quotas and the namespace's phase; and what the server puts back whatever is written.
pub(super) async fn check(
    context: &Context,
    request: &RollbackRequest,
    sides: &Sides,
    plan: &Plan<Bound>,
) -> Result<(Vec<PreflightResult>, PutBack), Failure> {
    let namespace = request.namespace().unwrap_or_default();
    let anything = plan.writes().next().is_some();
    let looked_at = async {
        Ok(if anything && request.spec.preflight == Preflight::Auto {
            looked_at(context).await
        } else {
            LookedAt::All
        })
    };
    let (looked_at, namespace_stays, quotas) = futures::try_join!(
        looked_at,
        namespace_stays(context, &namespace),
        quotas(context, sides, plan, &namespace)
    )?;
    let writes = writes(sides, plan, &namespace, &looked_at);
    let missing = missing_rights(context, &writes, &namespace).await?;
    let mut checks = vec![
        named(
            "OperatorRights",
            missing.iter().cloned(),
            "the operator may not",
            "set rbac.write: true in the chart, or add these to rbac.writeRules",
        ),
        namespace_stays,
        quotas,
    ];
    let mut put_back = PutBack::new();
    checks.push(if missing.is_empty() {
        dry_runs(context, sides, writes, &mut put_back).await?
    } else {
        result(
            "DryRuns",
            PreflightOutcome::NotCheckable,
            "without the operator's rights nothing can be tried".into(),
        )
    });
    Ok((checks, put_back))
}

fn result(check: &str, result: PreflightOutcome, detail: String) -> PreflightResult {
    PreflightResult {
        check: check.into(),
        result,
        detail: (!detail.is_empty()).then(|| bounded(detail)),
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

/// One item, and how it would be written.
struct Write<'a> {
    item: &'a Item,
    /// `None` where the plan itself makes the kind served.
    place: Option<Place>,
    /// What the operator must be allowed to do.
    verbs: BTreeSet<&'static str>,
    /// `None` where this server took it before, and nobody but the server looks at it.
    calls: Result<Option<Vec<Call>>, WriteRefusal>,
}

fn writes<'a>(sides: &Sides, plan: &'a Plan<Bound>, namespace: &str, looked_at: &LookedAt) -> Vec<Write<'a>> {
    // What is refused is told elsewhere.
    let items: Vec<&Item> = plan.writes().filter(|item| item.refusal.is_none()).collect();
    let writes = items.into_par_iter().map(|item| {
        let owners: BTreeMap<ObjectId, String> = item
            .desired
            .iter()
            .flat_map(|wanted| &wanted.pending_owners)
            .map(|owner| (owner.clone(), NOT_YET.to_owned()))
            .collect();
        let around = Around {
            owners: &owners,
            restarted_at: clock::now(),
        };
        let place = sides
            .kinds
            .get(&(item.id.group.clone(), item.id.kind.clone()))
            .map(|kind| kind.collection(Some(namespace)))
            .map(|collection| Place {
                group: collection.group,
                version: collection.version,
                plural: collection.plural,
                namespace: collection.namespace,
                name: item.id.name.clone(),
            });
        let calls = calls(item, &around);
        let certain = place.as_ref().is_some_and(|place| !looked_at.by_somebody(place));
        Write {
            item,
            verbs: calls.iter().flatten().flat_map(verbs).copied().collect(),
            // The bodies of all that is certain would be as much as comes back.
            calls: calls.map(|calls| (!certain).then_some(calls)),
            place,
        }
    });
    writes.collect()
}

const fn verbs(call: &Call) -> &'static [&'static str] {
    match call {
        Call::Apply { replaces: None, .. } => &["create", "patch"],
        Call::Apply { .. } | Call::Fields { .. } | Call::Merge { .. } => &["patch"],
        Call::Put { .. } => &["update"],
        Call::Post { .. } => &["create"],
        Call::Delete { .. } => &["delete"],
    }
}

/// What the operator itself may not do of what the plan does.
async fn missing_rights(context: &Context, writes: &[Write<'_>], namespace: &str) -> Result<Vec<String>, Failure> {
    let mut wanted = Wanted::new();
    for write in writes {
        let Some(place) = &write.place else { continue };
        for verb in &write.verbs {
            let right = (*verb, place.group.as_str(), place.plural.as_str());
            wanted.entry(right).or_default().push(&place.name);
        }
    }
    refused(context, None, namespace, wanted).await
}

async fn namespace_stays(context: &Context, namespace: &str) -> Result<PreflightResult, Failure> {
    let check = "NamespaceActive";
    let uri = collection("", "v1", "namespaces", None).item_path(namespace);
    let what = format!("get namespace {namespace}");
    let bytes = match list::get_object(&context.client, &uri, &what).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => {
            let detail = format!("the namespace {namespace} is gone; create it, and make the request again");
            return Ok(result(check, PreflightOutcome::Failed, detail));
        }
        Err(error) => return Err(error.into()),
    };
    let object = json(&bytes, &what)?;
    if object["metadata"]["deletionTimestamp"].is_null() {
        return Ok(result(check, PreflightOutcome::Passed, String::new()));
    }
    let detail = format!("the namespace {namespace} is being deleted, so that nothing can be created in it");
    Ok(result(check, PreflightOutcome::Failed, detail))
}

fn collection(group: &str, version: &str, plural: &str, namespace: Option<&str>) -> Collection {
    Collection {
        group: group.to_owned(),
        version: version.to_owned(),
        plural: plural.to_owned(),
        namespace: namespace.map(ToOwned::to_owned),
    }
}

fn json(bytes: &[u8], what: &str) -> Result<Value, cluster::Error> {
    serde_json::from_slice(bytes).map_err(|source| cluster::Error::Unreadable {
        what: what.to_owned(),
        source,
    })
}

/// Every object of a collection, which is small; `None` where the server does not serve it.
async fn all(context: &Context, of: &Collection) -> cluster::Result<Option<Vec<Value>>> {
    let what = of.to_string();
    let uri = format!("{}?limit={MOST}", of.path());
    match list::get_object(&context.client, &uri, &what).await {
        Ok(bytes) => Ok(json(&bytes, &what)?["items"].as_array().cloned().or(Some(Vec::new()))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every object of a kind that has to do with admission, in the newest version that is served: each version shows all of them.
async fn newest(context: &Context, plural: &str) -> cluster::Result<Vec<Value>> {
    for version in ["v1", "v1beta1", "v1alpha1"] {
        let of = collection("admissionregistration.k8s.io", version, plural, None);
        if let Some(objects) = all(context, &of).await? {
            return Ok(objects);
        }
    }
    Ok(Vec::new())
}

async fn quotas(
    context: &Context,
    sides: &Sides,
    plan: &Plan<Bound>,
    namespace: &str,
) -> Result<PreflightResult, Failure> {
    let check = "QuotaSum";
    let quotas = match all(context, &collection("", "v1", "resourcequotas", Some(namespace))).await {
        Ok(quotas) => quotas.unwrap_or_default(),
        Err(error) if error.class() == Class::Transient => return Err(error.into()),
        Err(error) => return Ok(result(check, PreflightOutcome::NotCheckable, error.to_string())),
    };
    let plural = |id: &ObjectId| {
        let kind = sides.kinds.get(&(id.group.clone(), id.kind.clone()))?;
        Some(kind.plural.clone())
    };
    let compared = quota::compare(&quotas, plan.items(), plural);
    if !compared.exceeded.is_empty() {
        let exceeded = compared.exceeded.iter().map(ToString::to_string);
        return Ok(named(
            check,
            exceeded,
            "quotas do not suffice for all of it:",
            "raise them, or leave objects out with objects.exclude",
        ));
    }
    let mut not_summed = Vec::new();
    if !compared.scoped.is_empty() {
        let scoped = listed(&compared.scoped);
        not_summed.push(format!("quotas for some Pods only are not summed up: {scoped}"));
    }
    if !compared.left_out.is_empty() {
        let left_out = listed(&compared.left_out);
        not_summed.push(format!(
            "not in the sum, and held up where the quota does not suffice: {left_out}"
        ));
    }
    Ok(if not_summed.is_empty() {
        result(check, PreflightOutcome::Passed, String::new())
    } else {
        result(check, PreflightOutcome::NotCheckable, not_summed.join("; "))
    })
}

/// What the server made of an item, where that is not what was asked for.
fn learn(sides: &Sides, item: &Item, written: Written, put_back: &mut PutBack) {
    let Some(kind) = sides.kinds.get(&(item.id.group.clone(), item.id.kind.clone())) else {
        return;
    };
    // Nothing was asked for, or nothing came back.
    if item.desired.is_none() || written.object.is_null() {
        return;
    }
    let normal = normalise(written.object.into_value(), &kind.info, &kind.shape, SecretValues::Keep).ok();
    let Some(answer) = normal.and_then(|normal| serde_json::from_slice(&normal.content).ok()) else {
        return;
    };
    let fields = item.put_back(&answer);
    if !fields.is_empty() {
        put_back.insert(item.id.clone(), fields);
    }
}

async fn dry_runs(
    context: &Context,
    sides: &Sides,
    writes: Vec<Write<'_>>,
    put_back: &mut PutBack,
) -> Result<PreflightResult, Failure> {
    let mut later = Vec::new();
    let (mut tried, mut items) = (Vec::new(), Vec::new());
    let mut failed = Vec::new();
    for write in writes {
        match (write.place, write.calls) {
            (_, Err(refusal)) => failed.push(format!("{}: {refusal}", write.item.id)),
            (None, Ok(_)) => later.push(format!("{} (its definition comes back with it)", write.item.id)),
            (Some(place), Ok(Some(calls))) => {
                tried.push((items.len(), place, calls));
                items.push(write.item);
            }
            (Some(_), Ok(None)) => {}
        }
    }
    let mut outcomes = stream::iter(tried)
        .map(|(at, place, calls)| async move { (at, perform(&context.client, &place, &calls, true).await) })
        .buffer_unordered(DRY_RUNS);
    while let Some((at, outcome)) = outcomes.next().await {
        let item: &Item = items[at];
        match outcome {
            Ok(written) => learn(sides, item, written, put_back),
            Err(WriteError::Drift(moved)) => later.push(moved),
            Err(WriteError::Failed(error)) => {
                let text = error.to_string();
                if text.contains("does not support dry run") {
                    later.push(format!("{} (a webhook refuses dry runs)", item.id));
                } else {
                    failed.push(text);
                }
            }
        }
    }
    failed.sort();
    later.sort();
    if !failed.is_empty() {
        return Ok(named(
            "DryRuns",
            failed.into_iter(),
            "the server would refuse:",
            "change what refuses, or leave the objects out with objects.exclude",
        ));
    }
    Ok(if later.is_empty() {
        result("DryRuns", PreflightOutcome::Passed, String::new())
    } else {
        let detail = format!("not tried beforehand: {}", listed(&later));
        result("DryRuns", PreflightOutcome::NotCheckable, detail)
    })
}

/// Of which resources webhooks and admission policies look at writes.
enum LookedAt {
    /// Any, or it is not known.
    All,
    /// Of core: these.
    Core { config_maps: bool, secrets: bool },
}

impl LookedAt {
    /// Whether the server's acceptance is not certain.
    fn by_somebody(&self, place: &Place) -> bool {
        match (self, place.group.as_str(), place.plural.as_str()) {
            (Self::Core { config_maps, .. }, "", "configmaps") => *config_maps,
            (Self::Core { secrets, .. }, "", "secrets") => *secrets,
            _ => true,
        }
    }
}

/// Asks every webhook configuration and admission policy which resources it looks at. Namespace selectors are not evaluated: one that
/// does not apply costs a dry run.
async fn looked_at(context: &Context) -> LookedAt {
    let kinds = [
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicies",
        "mutatingadmissionpolicies",
    ];
    let Ok(objects) = future::try_join_all(kinds.map(|plural| newest(context, plural))).await else {
        return LookedAt::All;
    };
    let rules: Vec<Value> = objects
        .iter()
        .flatten()
        .flat_map(|object| {
            let webhooks = object["webhooks"].as_array().into_iter().flatten();
            let theirs = webhooks.flat_map(|webhook| webhook["rules"].as_array().into_iter().flatten());
            let constraints = object["spec"]["matchConstraints"]["resourceRules"].as_array();
            theirs.chain(constraints.into_iter().flatten()).cloned()
        })
        .collect();
    let matched = |resource: &str| {
        let names = |rule: &Value, field: &str, wanted: &[&str]| {
            rule[field]
                .as_array()
                .into_iter()
                .flatten()
                .any(|name| name.as_str().is_some_and(|name| wanted.contains(&name)))
        };
        rules
            .iter()
            .any(|rule| names(rule, "apiGroups", &["", "*"]) && names(rule, "resources", &[resource, "*", "*/*"]))
    };
    LookedAt::Core {
        config_maps: matched("configmaps"),
        secrets: matched("secrets"),
    }
}
