//! Tests of the repository as a whole.

mod crash;
mod damage;
mod documents;
mod figures;
mod history;
mod race;
mod schedule;
mod secrets;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use futures::TryStreamExt as _;
use jiff::{SignedDuration, Timestamp};
use object_store::memory::InMemory;

use super::{backend::Backend, *};
use crate::domain::object::{Digest, ObjectId};

/// Far in the future, so that every blob is older than any grace; advances a millisecond a call.
fn clock() -> Timestamp {
    static NOW: AtomicI64 = AtomicI64::new(4_102_444_800_000);
    Timestamp::from_millisecond(NOW.fetch_add(1, Ordering::SeqCst)).unwrap()
}

fn options() -> Options {
    Options {
        orphan_grace: SignedDuration::ZERO,
        ..Options::new(clock)
    }
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(ObjectStoreBackend::new(Arc::new(InMemory::new()), "memory"))
}

async fn open(backend: &Arc<dyn Backend>) -> Repository {
    Repository::open(backend.clone(), options()).await.unwrap()
}

fn kind(name: &str) -> KindHeader {
    KindHeader {
        group: if name == "Deployment" { "apps" } else { "" }.to_owned(),
        version: "v1".to_owned(),
        kind: name.to_owned(),
        plural: format!("{}s", name.to_lowercase()),
        component: "Configuration".to_owned(),
        namespaced: true,
    }
}

/// Kind and name → content. What a namespace holds.
type Objects = BTreeMap<(String, String), Vec<u8>>;

fn objects(pairs: &[(&str, &str, &str)]) -> Objects {
    pairs
        .iter()
        .map(|(kind, name, content)| (((*kind).to_owned(), (*name).to_owned()), content.as_bytes().to_vec()))
        .collect()
}

fn entry(name: &str, content: Digest, size: usize, beside: Option<Digest>) -> Entry {
    let beside = beside.map(Into::into);
    let uid = hex::encode(&Digest::of(name.as_bytes()).as_bytes()[..16]);
    Entry {
        name: name.to_owned(),
        content,
        size: u32::try_from(size).unwrap(),
        beside,
        uid: [&uid[..8], &uid[8..12], &uid[12..16], &uid[16..20], &uid[20..]].join("-"),
        resource_version: (u32::from_le_bytes(content.as_bytes()[..4].try_into().unwrap()) % 100_000 + 1_000_000)
            .to_string(),
    }
}

async fn build(writer: &Writer, previous: Option<&SnapshotRecord>, objects: &Objects) -> Result<BuiltManifest> {
    let mut builder = writer.manifest(previous).await?;
    for ((kind_name, name), content) in objects {
        let kind = kind(kind_name);
        let (digest, _) = writer.put(FrameGroup::content(&kind.group, kind_name), content).await?;
        let (beside, _) = writer
            .put(
                FrameGroup::beside(&kind.group, kind_name),
                format!("beside {kind_name}").as_bytes(),
            )
            .await?;
        // Between the two, other tasks may take the content out of use.
        tokio::task::yield_now().await;
        builder
            .add(&kind, entry(name, digest, content.len(), Some(beside)))
            .await?;
    }
    builder.set_extras(serde_json::json!({"images": []}));
    builder.finish().await
}

fn draft(uid: &str, namespace: &str, manifest: BuiltManifest) -> SnapshotDraft {
    SnapshotDraft {
        uid: uid.to_owned(),
        namespace: namespace.to_owned(),
        namespace_uid: format!("uid-of-{namespace}"),
        name: format!("{namespace}-{uid}"),
        lineage: "default".to_owned(),
        manifest,
        created_at: clock(),
        author: Some("jane".to_owned()),
        safety: false,
        tags: vec!["tag".to_owned()],
        parent: ParentHint::Head,
    }
}

async fn capture(
    repository: &Repository,
    uid: &str,
    namespace: &str,
    objects: &Objects,
) -> Result<Arc<SnapshotRecord>> {
    let writer = repository.writer().await?;
    let previous = repository.snapshots(Some(&LineageKey::new(namespace, "default"))).pop();
    let manifest = build(&writer, previous.as_deref(), objects).await?;
    Ok(writer.commit(vec![draft(uid, namespace, manifest)]).await?.remove(0))
}

async fn contents(repository: &Repository, uid: &str) -> Result<Objects> {
    let manifest = repository.manifest(uid).await?;
    let entries: Vec<_> = manifest.entries().try_collect().await?;
    assert!(
        entries.is_sorted_by_key(|(kind, entry)| entry.id(kind)),
        "identity order"
    );
    let mut found = Objects::new();
    for (kind, entry) in entries {
        let content = repository.read_chunk(&entry.content).await?;
        assert_eq!(content.len(), entry.size as usize);
        if let Some(beside) = entry.beside {
            repository.read_chunk(&beside).await?;
        }
        found.insert((kind.kind.clone(), entry.name), content.to_vec());
    }
    assert!(manifest.extras().await?.is_some());
    Ok(found)
}

async fn packs_on(backend: &Arc<dyn Backend>) -> usize {
    backend.list("packs/").await.unwrap().len()
}

/// A normalised ConfigMap or Deployment of about a kilobyte.
fn realistic(seed: u64, generation: u64) -> (String, Vec<u8>) {
    let mut state = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(generation.wrapping_mul(0x2545_f491_4f6c_dd1d))
        | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let name = format!("app-{seed:05}");
    let json = if seed.is_multiple_of(3) {
        serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "shop", "team": "payments"}},
            "spec": {"replicas": random() % 5, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
                "selector": {"matchLabels": {"app.kubernetes.io/name": name}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
                "template": {"metadata": {"labels": {"app.kubernetes.io/name": name, "team": "payments"}},
                    "spec": {"containers": [{"name": "app", "image": format!("registry.example.com/shop/app:{}.{}", random() % 9, random() % 99),
                        "ports": [{"containerPort": 8080, "protocol": "TCP"}], "imagePullPolicy": "IfNotPresent",
                        "env": [{"name": "LEVEL", "value": "info"}, {"name": "ID", "value": format!("{:08x}", random() >> 32)}],
                        "resources": {"requests": {"cpu": format!("{}m", random() % 900), "memory": "128Mi"}},
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30}}}
        })
    } else {
        serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "shop"}},
            "data": {"config.yaml": format!("server:\n  port: {}\n  host: {name}.shop.svc.cluster.local\nlogging:\n  level: info\n  format: json\nfeatures:\n  checkout: true\n  search: {}\n", random() % 60000, random() % 2 == 0),
                "key": format!("{:016x}", random()), "limits": format!("{}", random() % 1000),
                "motd": "welcome to the shop, this text is the same in all of them and quite a few words long so that it looks like a file"}
        })
    };
    (
        if seed.is_multiple_of(3) {
            "Deployment"
        } else {
            "ConfigMap"
        }
        .to_owned(),
        serde_json::to_vec(&json).unwrap(),
    )
}

fn realistic_namespace(count: u64, first: u64) -> Objects {
    (first..first + count)
        .map(|seed| {
            let (kind, content) = realistic(seed, 0);
            ((kind, format!("app-{seed:05}")), content)
        })
        .collect()
}

fn id(kind_name: &str, name: &str) -> ObjectId {
    ObjectId::new(kind(kind_name).group, kind_name, name)
}
