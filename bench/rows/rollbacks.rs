//! Rows 5, 6, 7 and 8: rollbacks beside a bare client and beside kubectl.

use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use testbed::{Audit, User};

use super::scene::Scene;
use super::{DEADLINE, Plan, float, row};
use crate::capture;
use crate::data::{DataSet, Kind, Object};
use crate::load;
use crate::operator::Operator;
use crate::raw::Resource;
use crate::report::{Goal, Report, Row, Unit, median};
use crate::restore;
use crate::rollback::{self, People, RolledBack, Rollouts};
use crate::series;

/// The Snapshot that everything goes back to.
const TARGET: &str = "captured";
/// Items that the operator writes at once, and so RAW's connections.
const WRITERS: usize = 16;
/// Rollbacks of row 8.
const ROLLBACKS: usize = 30;

/// A namespace that was captured, and who rolls it back.
struct Stage<'a> {
    scene: Scene<'a>,
    operator: Operator,
    people: People,
    namespace: String,
    kinds: Vec<Resource>,
    objects: Vec<Object>,
    round: usize,
    _rollouts: Rollouts,
}

impl<'a> Stage<'a> {
    async fn start(plan: &'a Plan, set: &'a DataSet, audit: Audit) -> Result<Self> {
        let mut scene = Scene::start_with(plan, set, audit).await?;
        let namespace = set.namespace(0);
        let people = People::given(&scene.cluster, &scene.namespaces).await?;
        let (operator, _) = scene.fresh().await?;
        let rollouts = Rollouts::start(scene.client.clone(), &namespace);
        scene.capture(&operator, TARGET).await?;
        let stage = Self {
            kinds: set.mix.iter().map(|(kind, _)| kind.resource()).collect(),
            objects: set.objects(0),
            round: 0,
            _rollouts: rollouts,
            scene,
            operator,
            people,
            namespace,
        };
        // The guard settles after the installation, before it lets anybody be asked.
        rollback::ready(&stage.scene.cluster, &stage.people, &stage.namespace, TARGET).await?;
        Ok(stage)
    }

    /// Goes back to `target` with `more` in the spec.
    async fn back(&mut self, target: &str, more: &Value) -> Result<RolledBack> {
        self.round += 1;
        let mut spec = json!({"target": {"snapshot": target}, "gitops": "Ignore"});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let name = format!("back-{}", self.round);
        let (cluster, at) = (&self.scene.cluster, (self.namespace.as_str(), name.as_str()));
        let back = rollback::roll_back(cluster, &self.people, at, &spec, DEADLINE)
            .await
            .with_context(|| format!("the operator's log ends with:\n{}", self.operator.log_tail()))?;
        eprintln!("{name}: {} ({} items done)", back.in_short(), back.done());
        Ok(back)
    }

    async fn clear(&self) -> Result<()> {
        restore::clear(&self.scene.client, &self.namespace, &self.kinds).await
    }

    /// Changes every tenth object that has one owner as that one does it; how many.
    async fn drift(&mut self) -> Result<u64> {
        self.round += 1;
        let owned = |object: &&Object| object.touch.as_ref().is_none_or(|touch| !touch.subresource.is_empty());
        let chosen: Vec<&Object> = self.objects.iter().filter(owned).step_by(10).collect();
        let writes = chosen
            .iter()
            .map(|object| restore::drift(&self.scene.client, object, self.round));
        load::all(writes).await?;
        Ok(chosen.len() as u64)
    }

    /// Lets a person change every tenth object; how many.
    async fn edit(&mut self) -> Result<u64> {
        self.round += 1;
        let (client, round) = (&self.scene.client, self.round);
        let chosen: Vec<&Object> = self.objects.iter().step_by(10).collect();
        let writes = chosen
            .iter()
            .map(|object| async move { load::touch(client, object, &DataSet::churn(object, round)).await });
        load::all(writes).await?;
        Ok(chosen.len() as u64)
    }

    fn name(&self) -> &str {
        &self.scene.set.name
    }

    async fn stop(self) -> Result<()> {
        self.operator.kill().await?;
        self.scene.cluster.stop().await
    }
}

fn seconds(name: &str, values: &[f64]) -> String {
    let all: Vec<_> = values.iter().map(|value| format!("{value:.3}")).collect();
    format!("{name} {:.3} s ({})", median(values), all.join(" "))
}

/// A row with the ratio of medians of `what` to `base`.
fn ratio(number: u8, data: &str, title: &str, what: (&str, &[f64]), base: (&str, &[f64])) -> Row {
    let value = median(what.1) / median(base.1).max(0.001);
    let note = format!("{}; {}", seconds(what.0, what.1), seconds(base.0, base.1));
    row(number, data, title, value, Unit::Times).note(note)
}

/// Row 5 on `set`, which holds objects of one owner.
///
/// # Errors
/// Whatever keeps a measurement from being made.
pub async fn restores(plan: &Plan, set: &DataSet, report: &mut Report) -> Result<()> {
    let mut stage = Box::pin(Stage::start(plan, set, Audit::Off)).await?;
    let outcome = Box::pin(restored(&mut stage, report)).await;
    stage.stop().await?;
    outcome
}

async fn restored(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let (mut raw, mut back, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    let mut counted = None;
    let bare = json!({"safetySnapshot": false, "resultSnapshot": false, "onFailure": "Stop"});
    for pair in 0..stage.scene.plan.pairs {
        // Each goes first every other time.
        for first in [pair % 2 == 0, pair % 2 == 1] {
            stage.clear().await?;
            if first {
                raw.push(
                    restore::raw(&stage.scene.client, &stage.objects, WRITERS)
                        .await?
                        .as_secs_f64(),
                );
            } else {
                let restored = stage.back(TARGET, &json!({})).await?;
                back.push(restored.wall.as_secs_f64());
                counted.get_or_insert(restored);
                stage.clear().await?;
                alone.push(stage.back(TARGET, &bare).await?.wall.as_secs_f64());
            }
        }
    }
    let data = stage.name().to_owned();
    let raw = ("RAW", raw.as_slice());
    let title = "restore into an empty namespace against RAW's writes";
    let whole = ratio(5, &data, title, ("from creation to Completed", &back), raw);
    report.add(whole.must(Goal::AtMost(1.25)).aim(Goal::AtMost(1.1)));
    let title = "the same without the two snapshots around it";
    report.add(ratio(5, &data, title, ("without snapshots", &alone), raw));

    let objects = stage.objects.len() as u64;
    let per_object = |report: &mut Report, what: &str, back: &RolledBack, most: f64| {
        let calls = rollback::calls(&back.requests);
        let note = format!(
            "{calls} calls, {} of them dry runs, for {objects} objects",
            rollback::dry_runs(&back.requests)
        );
        let value = float(calls) / float(objects);
        report.add(
            row(5, &data, what, value, Unit::Number)
                .must(Goal::AtMost(most))
                .exact()
                .note(note),
        );
    };
    if let Some(first) = &counted {
        eprintln!("requests of the first restore:\n{}", first.requests);
        per_object(report, "calls an object: certain, one owner", first, 1.02);
    }
    stage.clear().await?;
    let tried = stage.back(TARGET, &json!({"preflight": "Always"})).await?;
    per_object(report, "calls an object: one owner, with a dry run", &tried, 2.02);
    let client = &stage.scene.client;
    let touches = stage
        .objects
        .iter()
        .map(|object| async move { load::touch(client, object, &DataSet::annotation()).await });
    load::all(touches).await?;
    stage.scene.capture(&stage.operator, "mixed").await?;
    stage.clear().await?;
    let mixed = stage.back("mixed", &json!({"preflight": "Always"})).await?;
    per_object(report, "calls an object: mixed owners, with a dry run", &mixed, 3.02);
    Ok(())
}

/// Rows 6 and 7 on `set`, one namespace.
///
/// # Errors
/// Whatever keeps a measurement from being made.
pub async fn rollbacks(plan: &Plan, set: &DataSet, report: &mut Report) -> Result<()> {
    let mut stage = Box::pin(Stage::start(plan, set, Audit::Off)).await?;
    let outcome = Box::pin(rolled_back(&mut stage, report)).await;
    stage.stop().await?;
    outcome
}

/// Seconds by what was to be done.
#[derive(Default)]
struct Times {
    deleted: Vec<f64>,
    drifted: Vec<f64>,
    nothing: Vec<f64>,
}

async fn rolled_back(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    // What the operator lists is what RAW has to list.
    let first = stage.back(TARGET, &json!({})).await?;
    let resources = capture::listed(&first.requests);
    stage.scene.raw(&resources).await?;
    let manifest = stage.scene.folder().join("manifest.json");
    restore::manifest(&stage.objects, &manifest)?;
    let (mut ours, mut theirs, mut raw) = (Times::default(), Times::default(), Vec::new());
    let mut unproven = Vec::new();
    for pair in 0..stage.scene.plan.pairs {
        stage.clear().await?;
        let back = stage.back(TARGET, &json!({})).await?;
        ours.deleted.push(back.wall.as_secs_f64());
        if pair == 0 {
            eprintln!("requests of the first restore:\n{}", back.requests);
        }
        let drifted = stage.drift().await?;
        let back = stage.back(TARGET, &json!({})).await?;
        ours.drifted.push(back.wall.as_secs_f64());
        if pair == 0 {
            few_writes(stage, report, &back, drifted, ("one owner", 1.02));
            let edited = stage.edit().await?;
            let back = stage.back(TARGET, &json!({})).await?;
            few_writes(stage, report, &back, edited, ("mixed owners", 2.04));
        }
        let back = stage.back(TARGET, &json!({})).await?;
        ours.nothing.push(back.wall.as_secs_f64());
        if pair == 0 {
            no_writes(stage, report, &back);
        }
        let back = stage.back(TARGET, &json!({"resultSnapshot": false})).await?;
        unproven.push(back.wall.as_secs_f64());
        raw.push(stage.scene.raw(&resources).await?.1.wall);

        stage.clear().await?;
        let (access, file) = (&stage.scene.cluster, &manifest);
        theirs.deleted.push(restore::kubectl(access, file).await?.as_secs_f64());
        stage.drift().await?;
        let access = &stage.scene.cluster;
        theirs.drifted.push(restore::kubectl(access, file).await?.as_secs_f64());
        theirs.nothing.push(restore::kubectl(access, file).await?.as_secs_f64());
    }
    let data = stage.name().to_owned();
    let raw = ("RAW", raw.as_slice());
    let title = "nothing to do, against RAW's lists";
    let row = ratio(6, &data, title, ("from creation to Completed", &ours.nothing), raw);
    report.add(row.must(Goal::AtMost(1.75)));
    let title = "the same without the snapshot after it";
    report.add(ratio(6, &data, title, ("without", &unproven), raw));
    let kubectl = |title: &str, theirs: &[f64], ours: &[f64]| {
        ratio(
            7,
            &data,
            title,
            ("kubectl", theirs),
            ("from creation to Completed", ours),
        )
    };
    let title = "kubectl apply against a restore, all deleted";
    report.add(
        kubectl(title, &theirs.deleted, &ours.deleted)
            .must(Goal::AtLeast(2.8))
            .aim(Goal::AtLeast(3.5)),
    );
    let title = "kubectl apply against a rollback, 10 % changed";
    report.add(kubectl(title, &theirs.drifted, &ours.drifted));
    let title = "kubectl apply against a rollback, nothing changed";
    report.add(kubectl(title, &theirs.nothing, &ours.nothing));
    Ok(())
}

fn few_writes(stage: &Stage<'_>, report: &mut Report, back: &RolledBack, drifted: u64, (owners, most): (&str, f64)) {
    let writes = rollback::writes(&back.requests);
    let what = format!("writes an object, 10 % changed, {owners}");
    let note = format!(
        "{writes} writes and {} dry runs for {drifted} objects",
        rollback::dry_runs(&back.requests)
    );
    report.add(
        row(6, stage.name(), what, float(writes) / float(drifted), Unit::Number)
            .must(Goal::AtMost(most))
            .exact()
            .note(note),
    );
}

fn no_writes(stage: &Stage<'_>, report: &mut Report, back: &RolledBack) {
    let writes = rollback::writes(&back.requests) + rollback::dry_runs(&back.requests);
    let what = "writes and dry runs, nothing to do";
    report.add(
        row(6, stage.name(), what, float(writes), Unit::Number)
            .must(Goal::AtMost(0.0))
            .exact(),
    );
    eprintln!("requests of a rollback with nothing to do:\n{}", back.requests);
}

/// Row 8: one small rollback, which a policy approves by itself.
///
/// # Errors
/// Whatever keeps a measurement from being made.
pub async fn single(plan: &Plan, report: &mut Report) -> Result<()> {
    let set = DataSet::l(1);
    let mut stage = Box::pin(Stage::start(plan, &set, Audit::Metadata)).await?;
    let outcome = Box::pin(singly(&mut stage, report)).await;
    stage.stop().await?;
    outcome
}

async fn singly(stage: &mut Stage<'_>, report: &mut Report) -> Result<()> {
    let policy = json!({
        "apiVersion": "backstep.dev/v1alpha1", "kind": "ApprovalPolicy", "metadata": {"name": "by-itself"},
        "spec": {"autoApprove": {"maxRisk": "Critical"}},
    });
    let ran = stage
        .scene
        .cluster
        .kubectl(&User::admin(), &["apply", "-f", "-"], Some(&policy.to_string()))
        .await?;
    ran.success()?;
    let one = |kind: Kind| {
        let found = stage.objects.iter().find(|object| object.kind == kind);
        found.cloned().with_context(|| format!("the data has no {kind:?}"))
    };
    let chosen = [one(Kind::ConfigMap)?, one(Kind::Deployment)?];
    let (mut walls, mut series, mut over) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROLLBACKS {
        for object in &chosen {
            restore::drift(&stage.scene.client, object, round).await?;
        }
        let audited = series::Position::now(&stage.scene.cluster)?;
        let back = stage.back(TARGET, &json!({})).await?;
        anyhow::ensure!(back.decision == Duration::ZERO, "a person was asked");
        // The first one fills caches.
        if round == 0 {
            eprintln!("requests of the first rollback:\n{}", back.requests);
            continue;
        }
        let calls = audited.since(&stage.scene.cluster)?;
        walls.push(back.wall.as_secs_f64());
        series.push(calls.as_secs_f64());
        over.push(back.wall.as_secs_f64() - calls.as_secs_f64());
    }
    walls.sort_by(f64::total_cmp);
    let name = "l1".to_owned();
    let ms = |value: f64| (value * 1000.0).round();
    let title = "50 objects, 2 drifted: over the calls in series, p50 in ms";
    let note = format!(
        "{} rollbacks, median {:.0} ms, their calls in series {:.0} ms",
        walls.len(),
        ms(median(&walls)),
        ms(median(&series))
    );
    report.add(
        row(8, &name, title, ms(median(&over)), Unit::Number)
            .must(Goal::AtMost(100.0))
            .note(note),
    );
    let worst = walls.last().copied().unwrap_or_default();
    let title = "50 objects, 2 drifted: p99 in ms";
    report.add(
        row(8, &name, title, ms(worst), Unit::Number)
            .must(Goal::AtMost(1000.0))
            .note("the slowest of them"),
    );
    Ok(())
}
