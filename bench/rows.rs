//! The measurements behind rows 1, 2, 3 and 10.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kube::Client;
use testbed::Cluster;

use super::capture::{self, Arrival, Captured, capture};
use super::data::{DataSet, Object};
use super::load::{self, Stored};
use super::memory::{Peak, memory_of};
use super::operator::{self, Operator};
use super::random::Random;
use super::raw::{self, Resource};
use super::reads;
use super::report::{Goal, Report, Row, Unit, bytes, median};

/// How long a capture may take before the run is given up.
const DEADLINE: Duration = Duration::from_secs(600);
/// Kinds that the operator lists at once by default, and so RAW's connections.
pub const CONNECTIONS: usize = 4;
/// A namespace with nothing in it, captured before every measurement: the operator is then known to work.
const WARM_UP: &str = "warm-up";
const PER_WRITE: u64 = 4 << 20;

/// What is measured, and how often.
pub struct Plan {
    /// The operator's program.
    pub program: PathBuf,
    /// Interleaved pairs.
    pub pairs: usize,
    /// Captures after 1 % changed, one after the other; 0 leaves that row out of a quick run.
    pub generations: usize,
}

/// One cluster with one data set, and what its measurements share.
struct Bench<'a> {
    plan: &'a Plan,
    set: &'a DataSet,
    cluster: Cluster,
    client: Client,
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
    namespaces: Vec<String>,
    round: usize,
}

/// One fresh store: the seconds and sizes of what was done with it.
#[derive(Default)]
struct Samples {
    raw: Vec<f64>,
    full: Vec<f64>,
    same: Vec<f64>,
    later: Vec<f64>,
    changed: Vec<f64>,
    same_bytes: Vec<f64>,
    changed_bytes: Vec<f64>,
    full_memory: Vec<f64>,
    full_cpu: Vec<f64>,
}

#[expect(clippy::cast_precision_loss, reason = "ratios are shown with two digits")]
fn float(value: u64) -> f64 {
    value as f64
}

/// Rows 1, 2 and 10 on `set`.
///
/// # Errors
/// Whatever keeps a measurement from being made.
pub async fn captures(plan: &Plan, set: &DataSet, report: &mut Report) -> Result<()> {
    let mut bench = Bench::start(plan, set).await?;
    let outcome = bench.measure(report).await;
    bench.cluster.stop().await?;
    outcome
}

/// RAW alone, on the kinds of `set`.
///
/// # Errors
/// The cluster's.
pub async fn orientation(plan: &Plan, set: &DataSet, report: &mut Report) -> Result<()> {
    let cluster = load::cluster_with(std::slice::from_ref(set)).await?;
    let client = cluster.admin().await?;
    let resources: Vec<_> = set.mix.iter().map(|(kind, _)| kind.resource()).collect();
    let namespace = set.namespace(0);
    let scope = (set.namespaces == 1).then_some(namespace.as_str());
    let mut samples = Vec::new();
    let mut read = raw::Read::default();
    for _ in 0..=plan.pairs {
        let started = Instant::now();
        read = raw::list(&client, &resources, scope, CONNECTIONS).await?;
        samples.push(started.elapsed().as_secs_f64());
    }
    // The first one fills the server's caches.
    let seconds = median(&samples[1..]);
    report.add(Row {
        number: 1,
        data: set.name.clone(),
        what: "RAW's lists of the data's kinds, in seconds".to_owned(),
        measured: Ok(seconds),
        unit: Unit::Number,
        must: None,
        aim: None,
        note: format!(
            "{} requests, {}, {} an object, {:.0} objects/s",
            read.requests,
            bytes(read.bytes),
            bytes(read.bytes / set.len() as u64),
            float(set.len() as u64) / seconds
        ),
    });
    cluster.stop().await
}

impl<'a> Bench<'a> {
    async fn start(plan: &'a Plan, set: &'a DataSet) -> Result<Self> {
        let cluster = load::cluster_with(std::slice::from_ref(set)).await?;
        operator::install(&cluster).await?;
        let client = cluster.admin().await?;
        let body = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": WARM_UP}});
        load::call(
            &client,
            http::Method::POST,
            "/api/v1/namespaces",
            "application/json",
            &body,
        )
        .await?;
        let kubeconfig = cluster
            .service_account_kubeconfig(operator::NAMESPACE, operator::NAME)
            .await?;
        Ok(Self {
            plan,
            set,
            client,
            kubeconfig,
            folder: tempfile::tempdir()?,
            namespaces: (0..set.namespaces).map(|index| set.namespace(index)).collect(),
            cluster,
            round: 0,
        })
    }

    /// Namespace to list: a Snapshot that is alone lists its own one, many share one pass over the cluster.
    fn scope(&self) -> Option<&str> {
        match self.namespaces.as_slice() {
            [one] => Some(one),
            _ => None,
        }
    }

    async fn fresh(&mut self) -> Result<(Operator, PathBuf)> {
        capture::delete_all(&self.client).await?;
        self.round += 1;
        let store = self.folder.path().join(format!("store-{}", self.round));
        let operator = Operator::start(&self.plan.program, &self.kubeconfig, self.folder.path(), &store).await?;
        self.warm(&operator, "first").await?;
        Ok((operator, store))
    }

    async fn warm(&self, operator: &Operator, name: &str) -> Result<Captured> {
        self.capture_in(operator, &[WARM_UP.to_owned()], &format!("warm-up-{name}"))
            .await
    }

    async fn capture_in(&self, operator: &Operator, namespaces: &[String], name: &str) -> Result<Captured> {
        let captured = capture(
            &self.cluster,
            &self.client,
            namespaces,
            name,
            Arrival::Created,
            DEADLINE,
        )
        .await;
        captured.with_context(|| format!("the operator's log ends with:\n{}", operator.log_tail()))
    }

    async fn capture(&self, operator: &Operator, name: &str) -> Result<Captured> {
        self.capture_in(operator, &self.namespaces, name).await
    }

    /// Changes every hundredth object, others each time.
    async fn churn(&mut self) -> Result<()> {
        self.round += 1;
        let mut random = Random::new(self.set.seed, 1 << 40 | self.round as u64);
        let first = random.below(100);
        let objects = (0..self.set.namespaces).flat_map(|index| self.set.objects(index));
        let chosen: Vec<Object> = objects.skip(first).step_by(100).collect();
        let writes = chosen
            .iter()
            .map(|object| async { load::touch(&self.client, object, &DataSet::churn(object, self.round)).await });
        load::all(writes).await
    }

    async fn raw(&self, resources: &[Resource]) -> Result<(f64, raw::Read)> {
        let started = Instant::now();
        let read = raw::list(&self.client, resources, self.scope(), CONNECTIONS).await?;
        Ok((started.elapsed().as_secs_f64(), read))
    }

    async fn measure(&mut self, report: &mut Report) -> Result<()> {
        // What the operator lists is what RAW has to list; an operator of its own tells, before anything is measured.
        let (scout, store) = self.fresh().await?;
        let before = load::stored(&store)?;
        let at_once = Arrival::AtOnce(&scout);
        let first = capture(
            &self.cluster,
            &self.client,
            &self.namespaces,
            "scout",
            at_once,
            DEADLINE,
        )
        .await
        .with_context(|| format!("the operator's log ends with:\n{}", scout.log_tail()))?;
        let resources = capture::listed(&first.requests);
        let least = capture::least(&self.client, &first, self.scope()).await?;
        self.raw(&resources).await?;
        let (raw, read) = self.raw(&resources).await?;
        report.add(Row {
            note: format!("{:.3} s, RAW {raw:.3} s; one sample", first.wall.as_secs_f64()),
            ..self.row(
                1,
                "all due at once against RAW's lists",
                first.wall.as_secs_f64() / raw,
                Unit::Times,
                None,
                None,
            )
        });
        self.exact(report, &first, least, read, &load::stored(&store)?, &before);
        scout.kill().await?;
        let reads = reads::worst_object(&store).await?;
        let most = Some(Goal::AtMost(3.0));
        report.add(self.row(
            10,
            "GETs from the store for one object",
            float(reads.gets),
            Unit::Number,
            most,
            None,
        ));
        let most = Some(Goal::AtMost(float(256 << 10)));
        report.add(self.row(
            10,
            "bytes from the store for one object",
            float(reads.bytes),
            Unit::Bytes,
            most,
            None,
        ));

        let mut samples = Samples::default();
        for pair in 0..self.plan.pairs {
            // Each goes first every other time.
            if pair % 2 == 0 {
                samples.raw.push(self.raw(&resources).await?.0);
            }
            let (operator, store) = self.fresh().await?;
            self.one(&operator, &store, &mut samples).await?;
            operator.kill().await?;
            if pair % 2 == 1 {
                samples.raw.push(self.raw(&resources).await?.0);
            }
        }
        self.ratios(report, &samples);
        self.generations(report).await
    }

    /// Everything that is measured with one fresh store.
    async fn one(&mut self, operator: &Operator, store: &Path, samples: &mut Samples) -> Result<()> {
        let idle = operator.memory()?;
        operator.forget_peak()?;
        let cpu = operator.cpu_seconds()?;
        let empty = load::stored(store)?;
        let full = self.capture(operator, "full").await?;
        samples.full.push(full.wall.as_secs_f64());
        samples.full_cpu.push(operator.cpu_seconds()? - cpu);
        samples
            .full_memory
            .push(float(operator.memory()?.peak.saturating_sub(idle.now)));
        let filled = load::stored(store)?;
        let first_bytes = float(filled.written_since(&empty).1);

        samples
            .same
            .push(self.capture(operator, "same").await?.wall.as_secs_f64());
        let same = load::stored(store)?;
        samples.same_bytes.push(float(same.written_since(&filled).1));

        self.churn().await?;
        samples
            .changed
            .push(self.capture(operator, "changed").await?.wall.as_secs_f64());
        let changed = load::stored(store)?;
        samples
            .changed_bytes
            .push(float(changed.written_since(&same).1) / first_bytes.max(1.0));

        // A new API server keeps no events of the past, so that no watch can go on from the last capture.
        self.cluster.restart_api_server().await?;
        self.warm(operator, "after-restart").await?;
        samples
            .later
            .push(self.capture(operator, "later").await?.wall.as_secs_f64());
        Ok(())
    }

    fn row(&self, number: u8, what: &str, measured: f64, unit: Unit, must: Option<Goal>, aim: Option<Goal>) -> Row {
        Row {
            number,
            data: self.set.name.clone(),
            what: what.to_owned(),
            measured: Ok(measured),
            unit,
            must,
            aim,
            note: String::new(),
        }
    }

    fn exact(
        &self,
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
        let snapshots = self.namespaces.len() as u64;
        let most = written.div_ceil(PER_WRITE) + 3;
        let rows = [
            (
                self.row(
                    1,
                    "LIST requests against the least",
                    float(lists) / float(least),
                    Unit::Times,
                    Some(Goal::AtMost(1.05)),
                    None,
                ),
                format!("{lists} of {least}; RAW {}", read.requests),
            ),
            (
                self.row(
                    1,
                    "GET requests for single objects",
                    float(gets),
                    Unit::Number,
                    Some(Goal::AtMost(0.0)),
                    None,
                ),
                format!("{} objects", self.set.len()),
            ),
            (
                self.row(
                    9,
                    "status writes for each Snapshot",
                    float(capture::status_writes(&first.requests)) / float(snapshots),
                    Unit::Number,
                    Some(Goal::AtMost(2.0)),
                    None,
                ),
                format!("{snapshots} Snapshots"),
            ),
            (
                self.row(
                    10,
                    "JSON as listed against bytes stored",
                    float(read.bytes) / float(written.max(1)),
                    Unit::Times,
                    Some(Goal::AtLeast(12.0)),
                    Some(Goal::AtLeast(15.0)),
                ),
                format!(
                    "{} listed, {} stored, {} an object of {}",
                    bytes(read.bytes),
                    bytes(written),
                    bytes(written / self.set.len() as u64),
                    bytes(read.bytes / self.set.len() as u64)
                ),
            ),
            (
                self.row(
                    10,
                    "writes to the store",
                    float(writes),
                    Unit::Number,
                    Some(Goal::AtMost(float(most))),
                    None,
                ),
                "1 for each 4 MiB and 3 more".to_owned(),
            ),
        ];
        for (row, note) in rows {
            report.add(Row { note, ..row });
        }
        if first.requests.count(|request| request.verb == "LIST") > 0 {
            eprintln!("requests of the first capture:\n{}", first.requests);
        }
    }

    fn ratios(&self, report: &mut Report, samples: &Samples) {
        let (raw, full) = (median(&samples.raw), median(&samples.full));
        let seconds = |name: &str, values: &[f64]| {
            let all: Vec<_> = values.iter().map(|value| format!("{value:.3}")).collect();
            format!("{name} {:.3} s ({})", median(values), all.join(" "))
        };
        let ratio = |number, what: &str, values: &[f64], against: f64, must, aim| Row {
            note: seconds("median", values),
            ..self.row(
                number,
                what,
                median(values) / against,
                Unit::Times,
                Some(Goal::AtMost(must)),
                aim,
            )
        };
        let mut first = ratio(
            1,
            "full capture against RAW's lists",
            &samples.full,
            raw,
            1.75,
            Some(Goal::AtMost(1.4)),
        );
        first.note = format!("{}; {}", first.note, seconds("RAW", &samples.raw));
        report.add(first);
        report.add(Row {
            note: seconds("median", &samples.full_cpu),
            ..self.row(
                1,
                "CPU time of the operator for an object, in µs",
                median(&samples.full_cpu) * 1e6 / float(self.set.len() as u64),
                Unit::Number,
                None,
                None,
            )
        });
        report.add(ratio(
            2,
            "nothing changed, inside the watch window",
            &samples.same,
            full,
            0.10,
            Some(Goal::AtMost(0.05)),
        ));
        report.add(self.row(
            2,
            "bytes written when nothing changed",
            median(&samples.same_bytes),
            Unit::Bytes,
            Some(Goal::AtMost(4096.0)),
            None,
        ));
        report.add(ratio(
            2,
            "nothing changed, outside the watch window",
            &samples.later,
            full,
            0.45,
            Some(Goal::AtMost(0.20)),
        ));
        report.add(ratio(2, "1 % changed", &samples.changed, full, 0.15, None));
        report.add(self.row(
            2,
            "bytes written when 1 % changed, against the first",
            median(&samples.changed_bytes),
            Unit::Percent,
            Some(Goal::AtMost(0.03)),
            None,
        ));
        report.add(self.row(
            3,
            "memory of the capture above idle",
            median(&samples.full_memory),
            Unit::Bytes,
            Some(Goal::AtMost(float(32 << 20))),
            Some(Goal::AtMost(float(16 << 20))),
        ));
    }

    /// Row 10: what many captures with little change between them cost.
    async fn generations(&mut self, report: &mut Report) -> Result<()> {
        let count = self.plan.generations;
        if count == 0 {
            return Ok(());
        }
        let (operator, store) = self.fresh().await?;
        let empty = load::stored(&store)?;
        self.capture(&operator, "generation-0").await?;
        let first = load::stored(&store)?.written_since(&empty).1;
        for generation in 1..count {
            self.churn().await?;
            self.capture(&operator, &format!("generation-{generation}")).await?;
        }
        let all = load::stored(&store)?.bytes();
        let what = format!("{count} captures with 1 % changed each, against the first");
        report.add(self.row(
            10,
            &what,
            float(all) / float(first.max(1)),
            Unit::Times,
            Some(Goal::AtMost(1.35)),
            None,
        ));
        operator.kill().await
    }
}

/// Row 3: memory at `small` and at `large` objects.
///
/// # Errors
/// As [`memory_of`].
pub async fn memory(plan: &Plan, small: usize, large: usize, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(load::quiet_cluster("memory")).await?;
    operator::install(&cluster).await?;
    let few = memory_of(&plan.program, &cluster, "few", small).await?;
    let many = memory_of(&plan.program, &cluster, "many", large).await?;
    cluster.stop().await?;
    let row = |what: String, measured: f64, unit, must: f64, aim: Option<f64>, note: String| Row {
        number: 3,
        data: "large".to_owned(),
        what,
        measured: Ok(measured),
        unit,
        must: Some(Goal::AtMost(must)),
        aim: aim.map(Goal::AtMost),
        note,
    };
    let note = |peak: &Peak| {
        format!(
            "idle {}, peak {}; {} captured in {:.1} s, {} listed in {} pages, {} stored by {} writes",
            bytes(peak.idle),
            bytes(peak.most),
            peak.captured,
            peak.wall.as_secs_f64(),
            bytes(peak.listed),
            peak.pages,
            bytes(peak.stored),
            peak.writes
        )
    };
    report.add(row(
        format!("memory above idle, {large} objects"),
        float(many.above()),
        Unit::Bytes,
        float(32 << 20),
        Some(float(16 << 20)),
        note(&many),
    ));
    report.add(row(
        format!("memory at {large} against {small} objects"),
        float(many.above()) / float(few.above().max(1)),
        Unit::Times,
        1.25,
        None,
        note(&few),
    ));
    Ok(())
}
