//! What must be in place before Backstep acts: its CRDs and admission policies as this release was built with, refusing what they
//! must refuse; and the epoch, which tells whether anybody changed them in between.

mod canary;
pub mod expected;
mod mutators;
pub mod published;

use std::collections::BTreeSet;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind},
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::Value;

use self::expected::{Installation, Wanted};
use super::{
    call,
    error::{Error, Result},
};
use crate::{api::names::GROUP, domain::object::Digest};

/// Plurals of the kinds that must be served.
pub const REQUIRED_KINDS: [&str; 6] = [
    "snapshots",
    "rollbackrequests",
    "rollbackplans",
    "approvalrequests",
    "approvaldecisions",
    "approvalpolicies",
];
/// Validating policies; each has a binding of the same name that denies.
pub const REQUIRED_POLICIES: [&str; 4] = [
    "approvaldecisions.guard.backstep.dev",
    "operatorowned.guard.backstep.dev",
    "requests.guard.backstep.dev",
    "snapshots.guard.backstep.dev",
];
/// Mutating policies, where the server has them (1.36 and later).
pub const STAMPING_POLICIES: [&str; 2] = ["approver.stamp.backstep.dev", "requester.stamp.backstep.dev"];
/// Reads made at once.
const READS_AT_ONCE: usize = 6;

/// What is made of mutators of others that see decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutators {
    /// They are not looked for: nothing depends on them.
    Ignore,
    /// They are named.
    Report,
    /// They are named, and count as something that is missing.
    Block,
}

/// What a look at the guard found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What is missing or changed, one sentence each; empty when everything is in place.
    pub missing: Vec<String>,
    /// SHA-256 over kind, name, UID and generation of every object of the guard that is there.
    pub epoch: String,
    /// Mutators of others that see decisions: each could turn a rejection into an approval. `None`: not looked for.
    pub foreign_mutators: Option<Vec<String>>,
}

/// Looks at everything, by quorum reads.
///
/// # Errors
/// The server cannot be asked: not known is never "in place".
pub async fn look(client: &Client, installation: &Installation, mutators: Mutators) -> Result<Report> {
    let mut report = compare(client, installation, mutators).await?;
    // The kinds must be served before a canary can be refused by more than their absence.
    if report.missing.is_empty() {
        report.missing.extend(canary::problems(client, installation).await);
    }
    if mutators == Mutators::Block {
        report.missing.extend(report.foreign_mutators.iter().flatten().cloned());
    }
    Ok(report)
}

/// Compares everything with what this release was built with, by quorum reads, and tries nothing.
///
/// # Errors
/// The server cannot be asked, or does not let this user read.
pub async fn compare(client: &Client, installation: &Installation, mutators: Mutators) -> Result<Report> {
    let wanted = expected::wanted(installation).map_err(|error| Error::Config(error.to_string()))?;
    let stamping = serves_stamping(client).await?;
    let wanted: Vec<Wanted> = wanted
        .into_iter()
        .filter(|one| stamping || !one.optional_kind)
        .collect();
    let ours: BTreeSet<String> = wanted.iter().map(|one| one.name.clone()).collect();
    let reads = futures::stream::iter(wanted)
        .map(|one| async move { read(client, &one).await.map(|live| (one, live)) })
        .buffered(READS_AT_ONCE)
        .try_collect::<Vec<(Wanted, Option<Value>)>>();
    let foreign = async {
        match mutators {
            Mutators::Ignore => Ok(None),
            Mutators::Report | Mutators::Block => mutators::foreign(client, &ours).await.map(Some),
        }
    };
    let (found, foreign_mutators) = tokio::try_join!(reads, foreign)?;
    let missing: Vec<String> = found
        .iter()
        .filter_map(|(one, live)| problem(one, live.as_ref()))
        .collect();
    let mut lines: Vec<String> = found
        .iter()
        .filter_map(|(one, live)| {
            let metadata = &live.as_ref()?["metadata"];
            let uid = metadata["uid"].as_str().unwrap_or_default();
            Some(format!("{} {} {uid} {}\n", one.kind, one.name, metadata["generation"]))
        })
        .collect();
    lines.sort();
    Ok(Report {
        missing,
        epoch: Digest::of(lines.concat().as_bytes()).to_string(),
        foreign_mutators,
    })
}

/// An item whenever something of the guard may have changed.
pub fn changes(client: &Client) -> impl Stream<Item = ()> + Send + use<> {
    let resource = |kind: &str, plural: &str, group: &str| {
        let kind = GroupVersionKind::gvk(group, "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, plural);
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), &resource);
        let is_crd = plural == "customresourcedefinitions";
        watcher(api, watcher::Config::default().any_semantic())
            // Before 1.36 there is no stamping to watch.
            .take_while(|event| futures::future::ready(!is_not_served(event)))
            .default_backoff()
            .touched_objects()
            .filter_map(move |object| {
                let ours = |name: &str| !is_crd || name.ends_with(GROUP);
                let changed = object.is_ok_and(|object| object.metadata.name.as_deref().is_some_and(ours));
                futures::future::ready(changed.then_some(()))
            })
            .boxed()
    };
    let admission = "admissionregistration.k8s.io";
    futures::stream::select_all([
        resource("ValidatingAdmissionPolicy", "validatingadmissionpolicies", admission),
        resource(
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            admission,
        ),
        resource("MutatingAdmissionPolicy", "mutatingadmissionpolicies", admission),
        resource(
            "MutatingAdmissionPolicyBinding",
            "mutatingadmissionpolicybindings",
            admission,
        ),
        resource(
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
            admission,
        ),
        resource(
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "apiextensions.k8s.io",
        ),
    ])
}

fn is_not_served<T>(event: &std::result::Result<T, watcher::Error>) -> bool {
    matches!(
        event,
        Err(watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == 404
    )
}

/// Whether the server has the kinds of stamping; before 1.36 clients fill in the names. A list would wait for the server's cache.
async fn serves_stamping(client: &Client) -> Result<bool> {
    let what = "read what admissionregistration.k8s.io/v1 serves";
    let served = call::repeat(what, call::DEADLINE, || {
        client.list_api_group_resources("admissionregistration.k8s.io/v1")
    });
    let served = served.await?;
    Ok(served
        .resources
        .iter()
        .any(|one| one.name == "mutatingadmissionpolicies"))
}

async fn read(client: &Client, one: &Wanted) -> Result<Option<Value>> {
    let what = format!("get {} {}", one.kind.to_lowercase(), one.name);
    get(client, &format!("{}/{}", one.collection, one.name), &what).await
}

async fn get(client: &Client, uri: &str, what: &str) -> Result<Option<Value>> {
    let found = call::repeat(what, call::DEADLINE, || async {
        let request = http::Request::get(uri)
            .body(Vec::new())
            .map_err(kube::Error::HttpError)?;
        client.request::<Value>(request).await
    })
    .await;
    match found {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is wrong with one object, and how to mend it.
fn problem(one: &Wanted, live: Option<&Value>) -> Option<String> {
    let what = match one.kind.as_str() {
        "CustomResourceDefinition" => format!("the CRD {}", one.name),
        "ValidatingAdmissionPolicy" => format!("the admission policy {}", one.name),
        "ValidatingAdmissionPolicyBinding" => format!("the binding of admission policy {}", one.name),
        "MutatingAdmissionPolicy" => format!("the mutating admission policy {}", one.name),
        _ => format!("the binding of mutating admission policy {}", one.name),
    };
    let Some(live) = live else {
        return Some(format!("{what} is missing; install or upgrade the chart"));
    };
    if let Some(path) = expected::difference(&one.spec, &live["spec"]) {
        return Some(format!(
            "{what} is not the one of this release: {path} differs; upgrade the chart, and find out who changed it"
        ));
    }
    let conditions = live["status"]["conditions"].as_array();
    let established = conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    (one.kind == "CustomResourceDefinition" && !established)
        .then(|| format!("{what} is not established; install or upgrade the chart"))
}
