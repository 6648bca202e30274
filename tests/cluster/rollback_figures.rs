//! The exact figures of rollbacks in `docs/performance.md`: calls and writes, which no machine's speed changes.
#![allow(dead_code, reason = "the benchmark uses more of what they share")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use testbed::{ApiRequests, Cluster};

use crate::figures::{
    capture,
    data::{self, DataSet, Kind, Object, Owners},
    load,
    operator::{self, Operator},
    raw::{self, Resource},
};
use rollback::{People, RolledBack};

#[path = "../../bench/restore.rs"]
mod restore;
#[path = "../../bench/rollback.rs"]
mod rollback;

/// How long a capture or a rollback may take on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(240);

/// A namespace of a quiet cluster, captured as `captured`, an operator, and people who roll back and approve.
struct Scene {
    cluster: Cluster,
    client: Client,
    operator: Operator,
    people: People,
    namespace: String,
    kinds: Vec<Resource>,
    objects: Vec<Object>,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// `None`, said on standard error, where the test bed lacks a program.
    async fn start(name: &str, set: &DataSet) -> Result<Option<Self>> {
        let Some(cluster) = Cluster::start_or_skip(load::quiet_cluster(name)).await? else {
            return Ok(None);
        };
        let client = cluster.admin().await?;
        load::write(&client, set).await?;
        operator::install(&cluster).await?;
        let kubeconfig = cluster
            .service_account_kubeconfig(operator::NAMESPACE, operator::NAME)
            .await?;
        let folder = tempfile::tempdir()?;
        let program = Path::new(env!("CARGO_BIN_EXE_backstep"));
        let store = folder.path().join("store");
        let operator = Operator::start(program, &kubeconfig, folder.path(), &store).await?;
        let namespace = set.namespace(0);
        let people = People::given(&cluster, std::slice::from_ref(&namespace)).await?;
        let scene = Self {
            cluster,
            client,
            operator,
            people,
            namespace,
            kinds: set.mix.iter().map(|(kind, _)| kind.resource()).collect(),
            objects: set.objects(0),
            _folder: folder,
        };
        scene.capture("captured").await?;
        // The first plan makes the installation's key, a Secret of the operator's namespace.
        rollback::ready(&scene.cluster, &scene.people, &scene.namespace, "captured").await?;
        Ok(Some(scene))
    }

    async fn capture(&self, name: &str) -> Result<()> {
        let namespaces = [self.namespace.clone()];
        let arrival = capture::Arrival::Created;
        let taken = capture::capture(&self.cluster, &self.client, &namespaces, name, arrival, DEADLINE).await;
        taken
            .map(drop)
            .with_context(|| format!("the operator's log ends with:\n{}", self.operator.log_tail()))
    }

    /// Rolls back to `target` with `more` in the spec, as a request of the same name as what it is `about`.
    async fn back(&self, about: &str, target: &str, more: &Value) -> Result<RolledBack> {
        let mut spec = json!({"target": {"snapshot": target}, "gitops": "Ignore"});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let at = (self.namespace.as_str(), about);
        let back = rollback::roll_back(&self.cluster, &self.people, at, &spec, DEADLINE).await;
        let back = back.with_context(|| format!("the operator's log ends with:\n{}", self.operator.log_tail()))?;
        println!(
            "{about}: {} writes, {} dry runs, {} calls, {} items; {}",
            rollback::writes(&back.requests),
            rollback::dry_runs(&back.requests),
            rollback::calls(&back.requests),
            back.done(),
            back.in_short()
        );
        Ok(back)
    }

    async fn clear(&self) -> Result<()> {
        restore::clear(&self.client, &self.namespace, &self.kinds).await
    }

    async fn stop(self) -> Result<()> {
        self.operator.kill().await?;
        self.cluster.stop().await
    }
}

/// `counted` is at most `hundredths` / 100 for each of `objects`, and each of them was done.
fn few(what: &str, counted: u64, hundredths: u64, objects: usize, back: &RolledBack) -> Result<()> {
    let objects = objects as u64;
    ensure!(
        u64::try_from(back.done()) == Ok(objects),
        "{} of {objects} objects were brought back",
        back.done()
    );
    ensure!(
        counted >= objects && counted * 100 <= objects * hundredths,
        "{counted} {what} for {objects} objects, where {hundredths} for a hundred may be:\n{}",
        back.requests
    );
    Ok(())
}

fn none(requests: &ApiRequests) -> Result<()> {
    let (writes, dry_runs) = (rollback::writes(requests), rollback::dry_runs(requests));
    ensure!((writes, dry_runs) == (0, 0), "something was written:\n{requests}");
    Ok(())
}

/// `count` ConfigMaps and Secrets.
fn configuration(name: &str, count: usize, owners: Owners, seed: u64) -> DataSet {
    DataSet {
        name: name.into(),
        namespaces: 1,
        mix: vec![(Kind::ConfigMap, count * 3 / 5), (Kind::Secret, count * 2 / 5)],
        bulk: 1,
        seed,
        owners,
    }
}

/// The first data set whose namespace is mostly written by apply, or not.
fn mostly(applied: bool, name: &str, count: usize) -> DataSet {
    let sets = (0..).map(|seed| configuration(name, count, Owners::One, seed));
    let is_wanted = |set: &DataSet| {
        let objects = set.objects(0);
        let fitting = objects.iter().filter(|object| object.applied == applied).count();
        fitting * 2 > objects.len()
    };
    let found = sets.into_iter().find(is_wanted);
    found.unwrap_or_else(|| configuration(name, count, Owners::One, 0))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_thousand_objects_only_what_drifted_is_written_and_each_once() -> Result<()> {
    let set = configuration("drift", 5_000, Owners::One, 7);
    let Some(scene) = Scene::start("figures-drift", &set).await? else {
        return Ok(());
    };
    none(&scene.back("nothing", "captured", &json!({})).await?.requests)?;

    let drifted: Vec<&Object> = scene.objects.iter().step_by(10).collect();
    load::all(drifted.iter().map(|object| restore::drift(&scene.client, object, 1))).await?;
    let back = scene.back("drifted", "captured", &json!({})).await?;
    few("writes", rollback::writes(&back.requests), 102, drifted.len(), &back)?;
    // ConfigMaps and Secrets that nobody but the server looks at are certain to be accepted.
    ensure!(rollback::dry_runs(&back.requests) == 0, "{}", back.requests);

    none(&scene.back("nothing-again", "captured", &json!({})).await?.requests)?;
    scene.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_changed_besides_its_owner_is_written_twice_at_most() -> Result<()> {
    for applied in [true, false] {
        let name = if applied { "edited-applied" } else { "edited-updated" };
        let set = mostly(applied, name, 500);
        let Some(scene) = Scene::start(name, &set).await? else {
            return Ok(());
        };
        let edited: Vec<&Object> = scene.objects.iter().step_by(10).collect();
        let client = &scene.client;
        let edits = edited
            .iter()
            .map(|object| async move { load::touch(client, object, &DataSet::churn(object, 1)).await });
        load::all(edits).await?;
        let back = scene.back("edited", "captured", &json!({})).await?;
        few("writes", rollback::writes(&back.requests), 204, edited.len(), &back)?;
        scene.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_into_an_empty_namespace_takes_one_call_an_object_and_one_more_for_each_doubt() -> Result<()> {
    for applied in [true, false] {
        let name = if applied { "restore-applied" } else { "restore-updated" };
        let set = mostly(applied, name, 500);
        let Some(scene) = Scene::start(name, &set).await? else {
            return Ok(());
        };
        scene.clear().await?;
        let certain = scene.back("certain", "captured", &json!({})).await?;
        few("calls", rollback::calls(&certain.requests), 102, set.len(), &certain)?;
        // Nor does the snapshot afterwards read again what was written, whoever owns it now. The installation's key is a Secret, too:
        // read for the plan, in the gate, and for the end.
        let written = |resource: &str| ["configmaps", "secrets"].contains(&resource);
        let read_singly = |request: &testbed::ApiRequest| {
            request.verb == "GET" && request.scope == "resource" && written(&request.resource)
        };
        let singles = certain.requests.count(read_singly);
        ensure!(
            singles <= 3,
            "{singles} objects were read singly:\n{}",
            certain.requests
        );

        scene.clear().await?;
        let tried = scene.back("tried", "captured", &json!({"preflight": "Always"})).await?;
        few("calls", rollback::calls(&tried.requests), 202, set.len(), &tried)?;
        let dry_runs = rollback::dry_runs(&tried.requests);
        ensure!(dry_runs == set.len() as u64, "{dry_runs} dry runs:\n{}", tried.requests);

        let (client, annotation) = (&scene.client, &DataSet::annotation());
        let touches = scene
            .objects
            .iter()
            .map(|object| async move { load::touch(client, object, annotation).await });
        load::all(touches).await?;
        scene.capture("mixed").await?;
        scene.clear().await?;
        let mixed = scene.back("mixed", "mixed", &json!({"preflight": "Always"})).await?;
        few("calls", rollback::calls(&mixed.requests), 302, set.len(), &mixed)?;
        ensure!(
            rollback::writes(&mixed.requests) > set.len() as u64,
            "owners came back by one write each, so they were not mixed:\n{}",
            mixed.requests
        );
        scene.stop().await?;
    }
    Ok(())
}
