//! Which image digests really ran behind the captured workloads.
//!
//! Only Pods of a workload's current revision count: the `ReplicaSet` with the Deployment's revision, Pods with a
//! `StatefulSet`'s update revision, Pods with a `DaemonSet`'s template generation.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::references::{list, pod_spec};
use crate::{
    api::{reasons, snapshot::ImageStatus},
    domain::object::KindInfo,
};

/// Collects evidence while objects are read, and answers at the end. Holds a small record for each Pod and workload.
#[derive(Clone, Debug, Default)]
pub struct ImageResolver {
    workloads: Vec<Workload>,
    /// By the UID of the controller, or the Pod's own without one.
    pods: HashMap<String, Vec<PodRecord>>,
    /// By the UID of the Deployment: revision and UID.
    replica_sets: HashMap<String, Vec<(u64, String)>>,
    /// By the UID of the `CronJob`: creation time and UID of its newest Job; older ones ran what the template said before.
    jobs: HashMap<String, (String, String)>,
}

#[derive(Clone, Debug)]
struct Workload {
    kind: Kind,
    display: String,
    uid: String,
    /// What its current Pods are marked with: a revision number or hash.
    revision: String,
    /// Container and image reference.
    containers: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
    CronJob,
    /// Owns its Pods whatever their revision, or is one.
    Direct,
}

#[derive(Clone, Debug)]
struct PodRecord {
    revision: String,
    /// Container and image id.
    containers: Vec<(String, String)>,
}

impl ImageResolver {
    /// Notes Pods, `ReplicaSets` and Jobs, captured or not.
    pub fn observe(&mut self, info: &KindInfo, object: &Value) {
        let metadata = &object["metadata"];
        let Some(uid) = metadata["uid"].as_str() else { return };
        let owner = list(&metadata["ownerReferences"])
            .find(|o| o["controller"] == Value::Bool(true))
            .and_then(|o| o["uid"].as_str());
        match (info.group.as_str(), info.kind.as_str()) {
            ("", "Pod") => {
                let labels = &metadata["labels"];
                let revision = ["controller-revision-hash", "pod-template-generation"]
                    .iter()
                    .find_map(|label| labels[*label].as_str())
                    .unwrap_or_default();
                // A DaemonSet's Pods carry both labels; its own annotation names the generation.
                let generation = labels["pod-template-generation"].as_str();
                let status = &object["status"];
                let containers = ["initContainerStatuses", "containerStatuses"]
                    .iter()
                    .flat_map(|field| list(&status[*field]))
                    .filter_map(|c| Some((c["name"].as_str()?.to_owned(), c["imageID"].as_str()?.to_owned())))
                    .filter(|(_, id)| !id.is_empty())
                    .collect();
                let record = PodRecord {
                    revision: generation.unwrap_or(revision).to_owned(),
                    containers,
                };
                self.pods
                    .entry(owner.unwrap_or(uid).to_owned())
                    .or_default()
                    .push(record);
            }
            ("apps", "ReplicaSet") => {
                if let Some(owner) = owner {
                    let revision = metadata["annotations"]["deployment.kubernetes.io/revision"].as_str();
                    let revision = revision.and_then(|r| r.parse().ok()).unwrap_or(0);
                    self.replica_sets
                        .entry(owner.to_owned())
                        .or_default()
                        .push((revision, uid.to_owned()));
                }
            }
            ("batch", "Job") => {
                if let Some(owner) = owner {
                    let created = metadata["creationTimestamp"].as_str().unwrap_or_default();
                    let job = (created.to_owned(), uid.to_owned());
                    let newest = self.jobs.entry(owner.to_owned()).or_default();
                    *newest = job.max(std::mem::take(newest));
                }
            }
            _ => {}
        }
    }

    /// Notes a workload whose images are wanted.
    pub fn workload(&mut self, info: &KindInfo, object: &Value) {
        let Some(pod) = pod_spec(info, object) else { return };
        let containers = ["initContainers", "containers"]
            .iter()
            .flat_map(|field| list(&pod[*field]))
            .filter_map(|c| Some((c["name"].as_str()?.to_owned(), c["image"].as_str()?.to_owned())))
            .collect();
        self.workload_of(info, object, containers);
    }

    /// The same, where `containers` and their images are known. Of `object` its metadata is looked at, and of a `StatefulSet` its status.
    pub fn workload_of(&mut self, info: &KindInfo, object: &Value, containers: Vec<(String, String)>) {
        let metadata = &object["metadata"];
        let annotations = &metadata["annotations"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (kind, revision) = match info.kind.as_str() {
            "Deployment" => (
                Kind::Deployment,
                text(&annotations["deployment.kubernetes.io/revision"]),
            ),
            "StatefulSet" => (Kind::StatefulSet, text(&object["status"]["updateRevision"])),
            "DaemonSet" => (
                Kind::DaemonSet,
                text(&annotations["deprecated.daemonset.template.generation"]),
            ),
            "CronJob" => (Kind::CronJob, String::new()),
            _ => (Kind::Direct, String::new()),
        };
        self.workloads.push(Workload {
            kind,
            display: workload_name(info, metadata["name"].as_str().unwrap_or_default()),
            uid: text(&metadata["uid"]),
            revision,
            containers,
        });
    }

    /// One row for each container of each workload, by workload and container.
    pub fn resolve(&self) -> Vec<ImageStatus> {
        let mut images: Vec<ImageStatus> = self
            .workloads
            .iter()
            .flat_map(|workload| self.images_of(workload))
            .collect();
        images.sort_by(|a, b| (&a.workload, &a.container).cmp(&(&b.workload, &b.container)));
        images
    }

    fn images_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = ImageStatus> + 'a {
        let pods = self.current_pods(workload);
        workload.containers.iter().map(move |(container, image)| {
            let ids: BTreeSet<&str> = pods
                .iter()
                .flat_map(|pod| pod.containers.iter())
                .filter(|(name, _)| name == container)
                .map(|(_, id)| id.as_str())
                .collect();
            let (digest, reason) = match (digest_of(&ids), image.split_once('@')) {
                // A reference by digest says itself what runs, whatever id a runtime made of it.
                ((_, Some(_)), Some((_, named))) => (Some(named.to_owned()), None),
                (reported, _) => reported,
            };
            ImageStatus {
                workload: workload.display.clone(),
                container: container.clone(),
                image: image.clone(),
                digest,
                reason: reason.map(ToOwned::to_owned),
            }
        })
    }

    fn current_pods(&self, workload: &Workload) -> Vec<&PodRecord> {
        let of = |uid: &str| self.pods.get(uid).into_iter().flatten();
        match workload.kind {
            Kind::Direct => of(&workload.uid).collect(),
            Kind::StatefulSet | Kind::DaemonSet => of(&workload.uid)
                .filter(|pod| workload.revision.is_empty() || pod.revision == workload.revision)
                .collect(),
            Kind::Deployment => {
                let sets = self.replica_sets.get(&workload.uid).into_iter().flatten();
                let wanted: Option<u64> = workload.revision.parse().ok();
                let newest = sets.clone().map(|(revision, _)| *revision).max();
                let wanted = wanted.or(newest);
                sets.filter(|(revision, _)| Some(*revision) == wanted)
                    .flat_map(|(_, uid)| of(uid))
                    .collect()
            }
            Kind::CronJob => {
                let newest = self.jobs.get(&workload.uid).map(|(_, uid)| uid);
                newest.into_iter().flat_map(|uid| of(uid)).collect()
            }
        }
    }
}

/// `Deployment/web`, as [`ImageStatus::workload`] says it.
pub fn workload_name(info: &KindInfo, name: &str) -> String {
    format!("{}/{name}", info.kind)
}

/// The digest behind image ids as runtimes report them: `repo@sha256:…`, `docker-pullable://repo@sha256:…` or a bare `sha256:…`.
fn digest_of(ids: &BTreeSet<&str>) -> (Option<String>, Option<&'static str>) {
    let mut pullable = false;
    let mut digests = BTreeSet::new();
    for id in ids {
        let (named, digest) = match id.rsplit_once('@') {
            Some((_, digest)) => (true, digest),
            None => (false, id.rsplit_once("://").map_or(*id, |(_, bare)| bare)),
        };
        if digest.starts_with("sha256:") {
            // Two runtimes may write one digest in two ways: one that can be pulled is enough.
            pullable |= named;
            digests.insert(digest);
        }
    }
    let mut digests = digests.into_iter();
    match (digests.next(), digests.next()) {
        (None, _) => (None, Some(reasons::NO_RUNNING_POD)),
        (Some(_), Some(_)) => (None, Some(reasons::MIXED_DIGESTS)),
        (Some(digest), None) => (
            Some(digest.to_owned()),
            (!pullable).then_some(reasons::NOT_PULLABLE_DIGEST),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(group: &str, kind: &str) -> KindInfo {
        KindInfo::new(group, "v1", kind)
    }

    fn pod(uid: &str, owner: &str, labels: &Value, id: &str) -> Value {
        json!({
            "metadata": {"uid": uid, "labels": labels, "ownerReferences": [{"uid": owner, "controller": true}]},
            "status": {"containerStatuses": [{"name": "app", "imageID": id}]}
        })
    }

    fn deployment(revision: &str) -> Value {
        json!({
            "metadata": {"name": "web", "uid": "d", "annotations": {"deployment.kubernetes.io/revision": revision}},
            "spec": {"template": {"spec": {"containers": [{"name": "app", "image": "r/web:1"}]}}}
        })
    }

    fn resolver() -> ImageResolver {
        let mut images = ImageResolver::default();
        for (uid, revision) in [("old", "1"), ("new", "2")] {
            let set = json!({"metadata": {"uid": uid, "ownerReferences": [{"uid": "d", "controller": true}],
                "annotations": {"deployment.kubernetes.io/revision": revision}}});
            images.observe(&info("apps", "ReplicaSet"), &set);
        }
        images
    }

    #[test]
    fn only_pods_of_the_current_revision_count() {
        let mut images = resolver();
        images.observe(&info("", "Pod"), &pod("p1", "old", &json!({}), "r/web@sha256:aa"));
        images.observe(
            &info("", "Pod"),
            &pod("p2", "new", &json!({}), "docker-pullable://r/web@sha256:bb"),
        );
        images.workload(&info("apps", "Deployment"), &deployment("2"));
        assert_eq!(images.resolve()[0].digest.as_deref(), Some("sha256:bb"));
        assert_eq!(images.resolve()[0].reason, None);
    }

    #[test]
    fn a_missing_bare_or_mixed_image_id_is_said_with_its_reason() {
        let mut images = resolver();
        images.workload(&info("apps", "Deployment"), &deployment("2"));
        assert_eq!(images.resolve()[0].reason.as_deref(), Some(reasons::NO_RUNNING_POD));
        images.observe(&info("", "Pod"), &pod("p1", "new", &json!({}), "sha256:cc"));
        let row = &images.resolve()[0];
        assert_eq!(
            (row.digest.as_deref(), row.reason.as_deref()),
            (Some("sha256:cc"), Some(reasons::NOT_PULLABLE_DIGEST))
        );
        images.observe(&info("", "Pod"), &pod("p2", "new", &json!({}), "r/web@sha256:dd"));
        assert_eq!(images.resolve()[0].reason.as_deref(), Some(reasons::MIXED_DIGESTS));
    }

    #[test]
    fn a_cron_job_goes_by_its_newest_job() {
        let mut images = ImageResolver::default();
        for (uid, day) in [("j2", "02"), ("j1", "01")] {
            let job = json!({"metadata": {"uid": uid, "creationTimestamp": format!("2026-01-{day}T00:00:00Z"),
                "ownerReferences": [{"uid": "c", "controller": true}]}});
            images.observe(&info("batch", "Job"), &job);
            images.observe(
                &info("", "Pod"),
                &pod(uid, uid, &json!({}), &format!("r/n@sha256:{uid}")),
            );
        }
        let spec = json!({"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "r/n:1"}]}}}}});
        images.workload(
            &info("batch", "CronJob"),
            &json!({"metadata": {"name": "n", "uid": "c"}, "spec": spec}),
        );
        assert_eq!(images.resolve()[0].digest.as_deref(), Some("sha256:j2"));
    }

    #[test]
    fn a_reference_by_digest_needs_no_pod_and_one_digest_in_two_spellings_is_not_mixed() {
        let mut images = ImageResolver::default();
        let pinned = json!({"metadata": {"name": "p", "uid": "p"}, "spec": {"containers": [{"name": "app", "image": "r/p:1@sha256:aa"}]}});
        images.workload(&info("", "Pod"), &pinned);
        assert_eq!(
            (images.resolve()[0].digest.as_deref(), &images.resolve()[0].reason),
            (Some("sha256:aa"), &None)
        );
        assert_eq!(
            digest_of(&BTreeSet::from(["sha256:aa", "r/p@sha256:aa"])),
            (Some("sha256:aa".to_owned()), None)
        );
    }

    #[test]
    fn stateful_and_daemon_sets_go_by_their_own_revision_marks() {
        let mut images = ImageResolver::default();
        let spec = json!({"template": {"spec": {"containers": [{"name": "app", "image": "r/db:1"}]}}});
        images.workload(
            &info("apps", "StatefulSet"),
            &json!({"metadata": {"name": "db", "uid": "s"}, "spec": spec, "status": {"updateRevision": "db-2"}}),
        );
        images.workload(
            &info("apps", "DaemonSet"),
            &json!({"metadata": {"name": "log", "uid": "n",
            "annotations": {"deprecated.daemonset.template.generation": "3"}}, "spec": spec}),
        );
        images.observe(
            &info("", "Pod"),
            &pod(
                "a",
                "s",
                &json!({"controller-revision-hash": "db-1"}),
                "r/db@sha256:old",
            ),
        );
        images.observe(
            &info("", "Pod"),
            &pod(
                "b",
                "s",
                &json!({"controller-revision-hash": "db-2"}),
                "r/db@sha256:new",
            ),
        );
        let labels = json!({"controller-revision-hash": "x", "pod-template-generation": "3"});
        images.observe(&info("", "Pod"), &pod("c", "n", &labels, "r/log@sha256:log"));
        let digests: Vec<_> = images
            .resolve()
            .into_iter()
            .map(|i| (i.workload, i.digest.unwrap_or_default()))
            .collect();
        assert_eq!(
            digests,
            [
                ("DaemonSet/log".into(), "sha256:log".into()),
                ("StatefulSet/db".into(), "sha256:new".to_owned())
            ]
        );
    }
}
