//! Writes data sets into a cluster, and keeps etcd's data so that later runs start from a copy.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use testbed::{Audit, Cluster, ClusterOptions};

use super::data::{self, DataSet, Object, Touch};

/// Connections that write at once.
pub const WRITERS: usize = 32;
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// Only what stores objects: no controller adds, changes or deletes any while they are counted.
pub fn quiet_cluster(name: &str) -> ClusterOptions {
    ClusterOptions {
        with_scheduler: false,
        with_controller_manager: false,
        with_fake_kubelet: false,
        ..ClusterOptions::named(name)
    }
}

/// A quiet cluster that holds `sets`; written once, and started from a copy of etcd's data from then on.
///
/// # Errors
/// The cluster's; and where the copy cannot be made.
pub async fn cluster_with(sets: &[DataSet]) -> Result<Cluster> {
    audited_cluster_with(sets, Audit::Off).await
}

/// As [`cluster_with`], with an audit log.
///
/// # Errors
/// As [`cluster_with`].
pub async fn audited_cluster_with(sets: &[DataSet], audit: Audit) -> Result<Cluster> {
    let kept = kept(sets)?;
    if !kept.is_dir() {
        let cluster = Cluster::start(quiet_cluster("load")).await?;
        let started = Instant::now();
        let admin = cluster.admin().await?;
        for set in sets {
            write(&admin, set).await?;
        }
        eprintln!(
            "wrote the data in {:.0} s; it is kept in {}",
            started.elapsed().as_secs_f64(),
            kept.display()
        );
        let unfinished = kept.with_extension(format!("{:08x}", std::process::id()));
        cluster.stop_and_keep_etcd(&unfinished).await?;
        std::fs::rename(&unfinished, &kept).with_context(|| format!("cannot keep the data in {}", kept.display()))?;
    }
    Cluster::start(ClusterOptions {
        etcd_data_from: Some(kept),
        audit,
        ..quiet_cluster("yardstick")
    })
    .await
}

fn kept(sets: &[DataSet]) -> Result<PathBuf> {
    let names: Vec<_> = sets.iter().map(|set| format!("{}-{}", set.name, set.seed)).collect();
    let folder = testbed::binaries::cache_directory()?.join("data");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(format!("v{}-{}", data::VERSION, names.join("-"))))
}

/// Creates the namespaces and then the objects of `set`.
///
/// # Errors
/// The first write that the API server refuses.
pub async fn write(client: &Client, set: &DataSet) -> Result<()> {
    let namespaces = (0..set.namespaces).map(|index| {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": set.namespace(index)}});
        async move { call(client, Method::POST, "/api/v1/namespaces", JSON, &body).await }
    });
    all(namespaces).await?;
    all((0..set.namespaces)
        .flat_map(|index| set.objects(index))
        .map(|object| create(client, object)))
    .await
}

/// Lets `WRITERS` of `writes` run at once until all are done.
///
/// # Errors
/// The first one.
pub async fn all<F: Future<Output = Result<()>>>(writes: impl Iterator<Item = F>) -> Result<()> {
    futures::stream::iter(writes)
        .buffer_unordered(WRITERS)
        .try_collect::<()>()
        .await
}

async fn create(client: &Client, object: Object) -> Result<()> {
    let collection = object.kind.collection(&object.namespace);
    if object.applied {
        let path = format!(
            "{collection}/{}?fieldManager={}&force=true",
            object.name, object.manager
        );
        call(client, Method::PATCH, &path, APPLY, &object.body).await?;
    } else {
        let path = format!("{collection}?fieldManager={}", object.manager);
        call(client, Method::POST, &path, JSON, &object.body).await?;
    }
    match &object.touch {
        Some(change) => touch(client, &object, change).await,
        None => Ok(()),
    }
}

/// Lets another field manager change `object`.
///
/// # Errors
/// What the API server answers.
pub async fn touch(client: &Client, object: &Object, touch: &Touch) -> Result<()> {
    let path = format!(
        "{}/{}{}?fieldManager={}",
        object.kind.collection(&object.namespace),
        object.name,
        touch.subresource,
        touch.manager
    );
    call(client, Method::PATCH, &path, MERGE, &touch.patch).await
}

/// One call whose answer is only checked.
///
/// # Errors
/// Every answer that is no success, with what was asked and what was said.
pub async fn call(client: &Client, method: Method, path: &str, content_type: &str, body: &Value) -> Result<()> {
    let what = format!("{method} {path}");
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(CONTENT_TYPE, content_type);
    let response = client
        .send(request.body(Body::from(serde_json::to_vec(body)?))?)
        .await
        .context(what.clone())?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    if !status.is_success() {
        bail!("{what}: {status}: {}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

/// Bytes and number of the files below `folder`, of which there may be none yet.
///
/// # Errors
/// Where a file cannot be looked at for another reason than that it is gone.
pub fn stored(folder: &Path) -> Result<Stored> {
    let mut stored = Stored::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("cannot look at {}", entry.path().display())),
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => {
                    stored.files.insert(entry.path(), metadata.len());
                }
            }
        }
    }
    Ok(stored)
}

/// What a directory holds.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    files: std::collections::BTreeMap<PathBuf, u64>,
}

impl Stored {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().sum()
    }

    /// Number and bytes of the files that `earlier` had not: every write of the repository makes one.
    pub fn written_since(&self, earlier: &Self) -> (u64, u64) {
        self.files
            .iter()
            .filter(|(path, size)| earlier.files.get(*path) != Some(*size))
            .fold((0, 0), |(files, bytes), (_, size)| (files + 1, bytes + size))
    }
}
