//! The exact figures of `docs/performance.md`: calls, writes, bytes and memory, which no machine's speed changes.
#![allow(
    dead_code,
    reason = "each of the tests and the benchmark uses most of what they share"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use testbed::Cluster;

use capture::{Arrival, Captured, capture};
use data::{DataSet, Kind};
use generated::GeneratedApi;
use load::{Stored, stored};
use operator::Operator;

#[path = "../../bench/capture.rs"]
pub mod capture;
#[path = "../../bench/data.rs"]
pub mod data;
#[path = "../../bench/generated.rs"]
mod generated;
#[path = "../../bench/load.rs"]
pub mod load;
#[path = "../../bench/memory.rs"]
mod memory;
#[path = "../../bench/objects.rs"]
pub mod objects;
#[path = "../../bench/operator.rs"]
pub mod operator;
#[path = "../../bench/random.rs"]
pub mod random;
#[path = "../../bench/raw.rs"]
pub mod raw;
#[path = "../../bench/reads.rs"]
mod reads;
#[path = "../../bench/report.rs"]
mod report;
#[path = "../../bench/words.rs"]
pub mod words;

const DEADLINE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

/// A quiet cluster with a data set, and the operator.
struct Scene {
    operator: Operator,
    cluster: Cluster,
    namespaces: Vec<String>,
    store: PathBuf,
    _folder: tempfile::TempDir,
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_backstep"))
}

impl Scene {
    /// `None`, said on standard error, where the test bed lacks a program.
    async fn start(name: &str, set: &DataSet) -> Result<Option<Self>> {
        let Some(cluster) = Cluster::start_or_skip(load::quiet_cluster(name)).await? else {
            return Ok(None);
        };
        load::write(&cluster.admin().await?, set).await?;
        operator::install(&cluster).await?;
        let kubeconfig = cluster
            .service_account_kubeconfig(operator::NAMESPACE, operator::NAME)
            .await?;
        let folder = tempfile::tempdir()?;
        let store = folder.path().join("store");
        let operator = Operator::start(program(), &kubeconfig, folder.path(), &store).await?;
        let namespaces = (0..set.namespaces).map(|index| set.namespace(index)).collect();
        Ok(Some(Self {
            operator,
            cluster,
            namespaces,
            store,
            _folder: folder,
        }))
    }

    async fn capture(&self, namespaces: &[String], name: &str, arrival: Arrival<'_>) -> Result<Captured> {
        let client = self.cluster.admin().await?;
        let captured = capture(&self.cluster, &client, namespaces, name, arrival, DEADLINE).await;
        captured.with_context(|| format!("the operator's log ends with:\n{}", self.operator.log_tail()))
    }

    /// The least LIST requests for what `captured` listed, in `namespace` or in the whole cluster.
    async fn least(&self, captured: &Captured, namespace: Option<&str>) -> Result<u64> {
        capture::least(&self.cluster.admin().await?, captured, namespace).await
    }

    /// Bytes of the JSON of every list of `captured`.
    async fn listed(&self, captured: &Captured, namespace: Option<&str>) -> Result<u64> {
        let resources = capture::listed(&captured.requests);
        Ok(raw::list(&self.cluster.admin().await?, &resources, namespace, 4)
            .await?
            .bytes)
    }

    async fn stop(self) -> Result<()> {
        self.operator.kill().await?;
        self.cluster.stop().await
    }
}

fn assert_few_lists(captured: &Captured, least: u64) {
    let lists = capture::lists(&captured.requests);
    assert!(
        lists * 100 <= least * 105,
        "{lists} LIST requests where {least} do:\n{}",
        captured.requests
    );
    assert!(
        least > 20,
        "only {least} lists are needed, so that not every kind was read:\n{}",
        captured.requests
    );
}

fn assert_no_gets(captured: &Captured) {
    assert_eq!(
        capture::gets(&captured.requests),
        0,
        "objects were read one by one:\n{}",
        captured.requests
    );
}

fn assert_few_writes(after: &Stored, before: &Stored) {
    let (writes, bytes) = after.written_since(before);
    let most = bytes.div_ceil(4 * MIB) + 3;
    assert!(writes <= most, "{writes} writes of {bytes} bytes where {most} may be");
}

/// A twelfth of what was listed is stored, or less.
fn assert_small(stored: u64, listed: u64) {
    let (times, tenths) = (listed / stored.max(1), listed * 10 / stored.max(1) % 10);
    println!("{listed} bytes listed, {stored} stored: {times}.{tenths} times smaller");
    assert!(
        stored * 12 <= listed,
        "{stored} bytes are stored of {listed} listed, only {times}.{tenths} times smaller"
    );
}

/// One namespace with 5,000 mixed objects.
fn one_namespace() -> DataSet {
    let mix = DataSet::l(1)
        .mix
        .into_iter()
        .map(|(kind, count)| (kind, count * 100))
        .collect();
    DataSet {
        name: "one".into(),
        namespaces: 1,
        mix,
        bulk: 1,
        seed: 4,
        owners: data::Owners::Usual,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_namespace_is_read_page_by_page_and_stored_small_and_nothing_is_stored_twice() {
    let Some(scene) = Scene::start("figures-one", &one_namespace()).await.unwrap() else {
        return;
    };
    let namespace = Some(scene.namespaces[0].as_str());
    let empty = stored(&scene.store).unwrap();
    let first = scene
        .capture(&scene.namespaces, "first", Arrival::Created)
        .await
        .unwrap();
    let filled = stored(&scene.store).unwrap();

    assert_few_lists(&first, scene.least(&first, namespace).await.unwrap());
    assert_no_gets(&first);
    assert!(capture::status_writes(&first.requests) <= 2, "{}", first.requests);
    assert_few_writes(&filled, &empty);
    let (_, bytes) = filled.written_since(&empty);
    assert_small(bytes, scene.listed(&first, namespace).await.unwrap());

    let reads = reads::worst_object(&scene.store).await.unwrap();
    assert!(
        reads.gets <= 3 && reads.bytes <= 256 << 10,
        "reading one object takes {reads:?}"
    );

    let second = scene
        .capture(&scene.namespaces, "second", Arrival::Created)
        .await
        .unwrap();
    let (writes, bytes) = stored(&scene.store).unwrap().written_since(&filled);
    assert!(
        bytes <= 4096,
        "{bytes} bytes were written in {writes} files though nothing had changed"
    );
    assert_few_lists(&second, scene.least(&first, namespace).await.unwrap());
    assert_no_gets(&second);
    assert!(capture::status_writes(&second.requests) <= 2, "{}", second.requests);
    let digest = |captured: &Captured| {
        captured.snapshots[&scene.namespaces[0]]
            .status
            .as_ref()
            .unwrap()
            .digest
            .clone()
    };
    assert!(digest(&first).is_some());
    assert_eq!(digest(&first), digest(&second));
    scene.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_of_many_namespaces_that_are_due_at_once_share_one_pass() {
    let mix = vec![(Kind::ConfigMap, 4), (Kind::Secret, 1), (Kind::Deployment, 1)];
    let set = DataSet {
        name: "many".into(),
        namespaces: 200,
        mix,
        bulk: 1,
        seed: 5,
        owners: data::Owners::Usual,
    };
    let Some(scene) = Scene::start("figures-many", &set).await.unwrap() else {
        return;
    };
    let empty = stored(&scene.store).unwrap();
    let at_once = scene
        .capture(&scene.namespaces, "at-once", Arrival::AtOnce(&scene.operator))
        .await
        .unwrap();
    let filled = stored(&scene.store).unwrap();
    let least = scene.least(&at_once, None).await.unwrap();
    assert_few_lists(&at_once, least);
    assert_no_gets(&at_once);
    let writes = capture::status_writes(&at_once.requests);
    assert!(writes <= 2 * 200, "{writes} status writes for 200 Snapshots");
    assert_few_writes(&filled, &empty);
    for (namespace, snapshot) in &at_once.snapshots {
        let captured = snapshot.status.as_ref().unwrap().objects.as_ref().unwrap().captured;
        assert_eq!(captured, 6, "{namespace}");
    }

    let again = scene
        .capture(&scene.namespaces, "again", Arrival::AtOnce(&scene.operator))
        .await
        .unwrap();
    assert_few_lists(&again, least);
    scene.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_of_a_hundred_thousand_objects_takes_little_memory() {
    let Some(cluster) = Cluster::start_or_skip(load::quiet_cluster("figures-memory"))
        .await
        .unwrap()
    else {
        return;
    };
    operator::install(&cluster).await.unwrap();
    let peak = memory::memory_of(program(), &cluster, "large", 100_000).await.unwrap();
    println!("{peak:?}, above idle {}", report::bytes(peak.above()));
    assert_eq!(peak.captured, 100_000);
    assert!(peak.pages <= 200 * 105 / 100, "{peak:?}");
    assert!(peak.writes <= peak.stored.div_ceil(4 * MIB) + 3, "{peak:?}");
    assert!(
        peak.above() <= 32 * MIB,
        "{} above idle: {peak:?}",
        report::bytes(peak.above())
    );
    cluster.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bare_client_needs_the_least_requests_also_of_generated_pages() {
    let Some(cluster) = Cluster::start_or_skip(load::quiet_cluster("figures-raw"))
        .await
        .unwrap()
    else {
        return;
    };
    let client = cluster.admin().await.unwrap();
    let set = DataSet {
        namespaces: 12,
        ..DataSet::l(12)
    };
    load::write(&client, &set).await.unwrap();
    let resources: Vec<_> = set.mix.iter().map(|(kind, _)| kind.resource()).collect();
    let counts = raw::counts(&client, &resources, None).await.unwrap();
    assert!(counts.values().sum::<u64>() >= 600, "{counts:?}");
    let before = cluster.api_requests().await.unwrap();
    let read = raw::list(&client, &resources, None, 4).await.unwrap();
    assert_eq!(read.requests, raw::least_requests(counts.values()));
    assert_eq!(
        capture::lists(&cluster.api_requests().await.unwrap().since(&before)),
        read.requests
    );
    println!(
        "{} bytes an object as listed",
        read.bytes / counts.values().sum::<u64>()
    );

    let config_maps: Vec<_> = resources
        .into_iter()
        .filter(|resource| resource.plural == "configmaps")
        .collect();
    let api = GeneratedApi::start(client, "generated", 1_234).await.unwrap();
    let config = kube::config::Kubeconfig::from_yaml(&api.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default())
        .await
        .unwrap();
    let through = kube::Client::try_from(config).unwrap();
    let read = raw::list(&through, &config_maps, Some("generated"), 4).await.unwrap();
    assert_eq!(read.requests, 3);
    assert_eq!(api.served(), (3, read.bytes));
    let counts = raw::counts(&through, &config_maps, Some("generated")).await.unwrap();
    assert_eq!(counts.values().sum::<u64>(), 1_234);
    cluster.stop().await.unwrap();
}

#[test]
fn a_data_set_is_the_same_at_every_run_and_no_object_is_there_twice() {
    let set = DataSet::l(3);
    let objects: Vec<_> = (0..3).flat_map(|index| set.objects(index)).collect();
    assert_eq!(objects, (0..3).flat_map(|index| set.objects(index)).collect::<Vec<_>>());
    assert_eq!(objects.len(), set.len());
    let names: std::collections::BTreeSet<_> = objects
        .iter()
        .map(|o| (o.kind.plural(), &o.namespace, &o.name))
        .collect();
    assert_eq!(names.len(), set.len());
}

#[test]
fn the_token_is_taken_from_the_lists_metadata_and_never_from_an_object() {
    let page = br#"{"kind":"ConfigMapList","metadata":{"resourceVersion":"7","continue":"abc_-9"},"items":[{}]}"#;
    assert_eq!(raw::continue_token(page).as_deref(), Some("abc_-9"));
    let last = br#"{"metadata":{"resourceVersion":"7"},"items":[{"data":{"x":"\"continue\":\"no\""}}]}"#;
    assert_eq!(raw::continue_token(last), None);
}

#[test]
fn an_empty_kind_costs_one_request() {
    assert_eq!(raw::least_requests(&[0, 1, 500, 501, 5_000]), 1 + 1 + 1 + 2 + 10);
}

#[test]
fn the_median_is_the_middle() {
    assert!((report::median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
    assert!((report::median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
}

#[test]
fn a_row_that_cannot_be_measured_is_shown_and_counts_as_missed() {
    let mut report = report::Report::default();
    report.add(report::Row {
        number: 2,
        data: "S".into(),
        what: "again".into(),
        measured: Err("no watch yet".into()),
        unit: report::Unit::Times,
        must: Some(report::Goal::AtMost(0.1)),
        aim: None,
        exact: false,
        note: String::new(),
    });
    // Not a matter of the machine's speed.
    assert_eq!(report.missed(), (1, 0));
    let text = report.to_string();
    assert!(text.contains("not yet") && text.contains("no watch yet"), "{text}");
}
