//! Rows 1, 2, 9 and 10: first captures beside RAW, captures after little or no change, and what they store.

use std::path::Path;

use anyhow::Result;

use super::scene::{Scene, Took};
use super::{Plan, float, row};
use crate::capture::{self, Arrival, Captured};
use crate::data::DataSet;
use crate::load::{self, Stored};
use crate::operator::Operator;
use crate::raw;
use crate::reads;
use crate::report::{Goal, Report, Row, Unit, bytes, median};

/// Bytes that one write of the repository may be counted on for.
const PER_WRITE: u64 = 4 << 20;

/// The figures of each pair.
#[derive(Default)]
struct Samples {
    raw: Vec<Took>,
    full: Vec<Took>,
    same: Vec<Took>,
    later: Vec<Took>,
    changed: Vec<Took>,
    same_bytes: Vec<f64>,
    changed_bytes: Vec<f64>,
    full_memory: Vec<f64>,
    full_cpu: Vec<f64>,
}

/// Rows 1, 2, 9 and 10 on `set`.
///
/// # Errors
/// Whatever keeps a measurement from being made.
pub async fn captures(plan: &Plan, set: &DataSet, report: &mut Report) -> Result<()> {
    let mut scene = Scene::start(plan, set).await?;
    let outcome = measure(&mut scene, report).await;
    scene.cluster.stop().await?;
    outcome
}

async fn measure(scene: &mut Scene<'_>, report: &mut Report) -> Result<()> {
    // What the operator lists is what RAW has to list; an operator of its own tells, before anything is measured.
    let (scout, store) = scene.fresh().await?;
    let before = load::stored(&store)?;
    let (first, took) = scene.arriving(&scout, "scout", Arrival::AtOnce(&scout)).await?;
    let resources = capture::listed(&first.requests);
    let least = capture::least(&scene.client, &first, scene.scope()).await?;
    scene.raw(&resources).await?;
    let (read, raw) = scene.raw(&resources).await?;
    let what = "all due at once against RAW's lists";
    let note = format!(
        "{:.3} s, the pass {:.3} s, RAW {:.3} s; one sample",
        took.wall, took.pass, raw.wall
    );
    report.add(row(1, &scene.set.name, what, took.wall / raw.wall, Unit::Times).note(note));
    exact(scene, report, &first, least, read, &load::stored(&store)?, &before);
    scout.kill().await?;
    one_object(scene, report, &store).await?;

    let mut samples = Samples::default();
    for pair in 0..scene.plan.pairs {
        // Each goes first every other time.
        if pair % 2 == 0 {
            samples.raw.push(scene.raw(&resources).await?.1);
        }
        let (operator, store) = scene.fresh().await?;
        one(scene, &operator, &store, &mut samples).await?;
        operator.kill().await?;
        if pair % 2 == 1 {
            samples.raw.push(scene.raw(&resources).await?.1);
        }
    }
    ratios(scene, report, &samples);
    generations(scene, report).await
}

/// Everything that is measured with one fresh store.
async fn one(scene: &mut Scene<'_>, operator: &Operator, store: &Path, samples: &mut Samples) -> Result<()> {
    let idle = operator.memory()?;
    operator.forget_peak()?;
    let cpu = operator.cpu_seconds()?;
    let empty = load::stored(store)?;
    samples.full.push(scene.capture(operator, "full").await?.1);
    samples.full_cpu.push(operator.cpu_seconds()? - cpu);
    let above = operator.memory()?.peak.saturating_sub(idle.now);
    samples.full_memory.push(float(above));
    let filled = load::stored(store)?;
    let first_bytes = float(filled.written_since(&empty).1);

    samples.same.push(scene.capture(operator, "same").await?.1);
    let same = load::stored(store)?;
    samples.same_bytes.push(float(same.written_since(&filled).1));

    scene.churn().await?;
    samples.changed.push(scene.capture(operator, "changed").await?.1);
    let changed = load::stored(store)?;
    samples
        .changed_bytes
        .push(float(changed.written_since(&same).1) / first_bytes.max(1.0));

    // A new API server keeps no events of the past, so that no watch can go on from the last capture.
    scene.cluster.restart_api_server().await?;
    scene.warm(operator, "after-restart").await?;
    samples.later.push(scene.capture(operator, "later").await?.1);
    Ok(())
}

/// What needs no repetition: requests, writes and bytes of a first capture.
fn exact(
    scene: &Scene<'_>,
    report: &mut Report,
    first: &Captured,
    least: u64,
    read: raw::Read,
    after: &Stored,
    before: &Stored,
) {
    let lists = capture::lists(&first.requests);
    let gets = capture::gets(&first.requests);
    let (writes, written) = after.written_since(before);
    let snapshots = scene.namespaces.len() as u64;
    let objects = scene.set.len() as u64;
    let row = |number, what, measured, unit| row(number, &scene.set.name, what, measured, unit).exact();
    let ratio = float(lists) / float(least);
    report.add(
        row(1, "LIST requests against the least", ratio, Unit::Times)
            .must(Goal::AtMost(1.05))
            .note(format!("{lists} of {least}; RAW {}", read.requests)),
    );
    report.add(
        row(1, "GET requests for single objects", float(gets), Unit::Number)
            .must(Goal::AtMost(0.0))
            .note(format!("{objects} objects")),
    );
    let status_writes = float(capture::status_writes(&first.requests)) / float(snapshots);
    report.add(
        row(9, "status writes for each Snapshot", status_writes, Unit::Number)
            .must(Goal::AtMost(2.0))
            .note(format!("{snapshots} Snapshots")),
    );
    let ratio = float(read.bytes) / float(written.max(1));
    let small = row(10, "JSON as listed against bytes stored", ratio, Unit::Times).note(format!(
        "{} listed, {} stored, {} an object of {}",
        bytes(read.bytes),
        bytes(written),
        bytes(written / objects),
        bytes(read.bytes / objects)
    ));
    // The goal is of objects as clusters have them; S is bulk text, made to be large.
    report.add(if snapshots == 1 {
        small
    } else {
        small.must(Goal::AtLeast(12.0)).aim(Goal::AtLeast(15.0))
    });
    let most = written.div_ceil(PER_WRITE) + 3;
    report.add(
        row(10, "writes to the store", float(writes), Unit::Number)
            .must(Goal::AtMost(float(most)))
            .note("1 for each 4 MiB and 3 more"),
    );
    eprintln!("requests of the first capture:\n{}", first.requests);
}

/// What reading one object back takes.
async fn one_object(scene: &Scene<'_>, report: &mut Report, store: &Path) -> Result<()> {
    let reads = reads::worst_object(store).await?;
    let row = |what, measured, unit| row(10, &scene.set.name, what, measured, unit).exact();
    report.add(row("GETs from the store for one object", float(reads.gets), Unit::Number).must(Goal::AtMost(3.0)));
    report.add(
        row("bytes from the store for one object", float(reads.bytes), Unit::Bytes)
            .must(Goal::AtMost(float(256 << 10))),
    );
    Ok(())
}

/// One figure of each sample.
fn each(samples: &[Took], figure: impl Fn(&Took) -> f64) -> Vec<f64> {
    samples.iter().map(figure).collect()
}

fn seconds(name: &str, values: &[f64]) -> String {
    let all: Vec<_> = values.iter().map(|value| format!("{value:.3}")).collect();
    format!("{name} {:.3} s ({})", median(values), all.join(" "))
}

/// Adds rows that compare times of captures.
struct Comparison<'a> {
    report: &'a mut Report,
    data: &'a str,
}

const TO_READY: &str = "from creation to Ready";
const PASS: &str = "the pass alone";
/// Other work on the machine does not disturb it.
const CPU: &str = "CPU time";

impl Comparison<'_> {
    /// `samples` against `base`, by each figure; `goals` are those of the time from creation to Ready.
    fn add(
        &mut self,
        (number, what): (u8, &str),
        (name, samples): (&str, &[Took]),
        (base_name, base): (&str, &[Took]),
        goals: impl Fn(Row) -> Row,
    ) {
        type Figure = (&'static str, fn(&Took) -> f64);
        let figures: [Figure; 3] = [
            (TO_READY, |took| took.wall),
            (PASS, |took| took.pass),
            (CPU, |took| took.cpu),
        ];
        for (figure, of) in figures {
            let (samples, base) = (each(samples, of), each(base, of));
            let ratio = median(&samples) / median(&base).max(0.001);
            let note = format!("{}; {}", seconds(name, &samples), seconds(base_name, &base));
            let row = row(number, self.data, format!("{what}: {figure}"), ratio, Unit::Times).note(note);
            self.report.add(if figure == TO_READY { goals(row) } else { row });
        }
    }
}

fn ratios(scene: &Scene<'_>, report: &mut Report, samples: &Samples) {
    let data = scene.set.name.as_str();
    let (raw, full) = (("RAW", samples.raw.as_slice()), ("full", samples.full.as_slice()));
    let mut times = Comparison { report, data };
    times.add((1, "first capture against RAW's lists"), full, raw, |row| {
        row.must(Goal::AtMost(1.75)).aim(Goal::AtMost(1.4))
    });
    times.add(
        (2, "nothing changed, inside the watch window"),
        ("same", &samples.same),
        full,
        |row| row.must(Goal::AtMost(0.10)).aim(Goal::AtMost(0.05)),
    );
    times.add(
        (2, "nothing changed, outside of it"),
        ("later", &samples.later),
        full,
        |row| row.must(Goal::AtMost(0.45)).aim(Goal::AtMost(0.20)),
    );
    times.add((2, "1 % changed"), ("changed", &samples.changed), full, |row| {
        row.must(Goal::AtMost(0.15))
    });
    let per_object = median(&samples.full_cpu) * 1e6 / float(scene.set.len() as u64);
    let what = "CPU time of the operator for an object, in µs";
    report.add(row(1, data, what, per_object, Unit::Number).note(seconds("median", &samples.full_cpu)));
    let row = |number, what, measured, unit| row(number, data, what, measured, unit).exact();
    let what = "bytes written when nothing changed";
    report.add(row(2, what, median(&samples.same_bytes), Unit::Bytes).must(Goal::AtMost(float(4 << 10))));
    let what = "bytes written when 1 % changed, against the first";
    report.add(row(2, what, median(&samples.changed_bytes), Unit::Percent).must(Goal::AtMost(0.03)));
    let what = "memory of the capture above idle";
    report.add(
        row(3, what, median(&samples.full_memory), Unit::Bytes)
            .must(Goal::AtMost(float(32 << 20)))
            .aim(Goal::AtMost(float(16 << 20))),
    );
}

/// Row 10: what many captures with little change between them cost.
async fn generations(scene: &mut Scene<'_>, report: &mut Report) -> Result<()> {
    let count = scene.plan.generations;
    if count == 0 {
        return Ok(());
    }
    let (operator, store) = scene.fresh().await?;
    let empty = load::stored(&store)?;
    scene.capture(&operator, "generation-0").await?;
    let first = load::stored(&store)?.written_since(&empty).1;
    for generation in 1..count {
        scene.churn().await?;
        scene.capture(&operator, &format!("generation-{generation}")).await?;
    }
    let all = load::stored(&store)?.bytes();
    let what = format!("{count} captures with 1 % changed each, against the first");
    let ratio = float(all) / float(first.max(1));
    report.add(
        row(10, &scene.set.name, what, ratio, Unit::Times)
            .must(Goal::AtMost(1.35))
            .exact()
            .note(format!("{} of {}", bytes(all), bytes(first))),
    );
    operator.kill().await
}
