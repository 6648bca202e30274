//! What ran, runs again: the digests behind the images of the workloads that were written or restarted are compared with the
//! captured ones, and a reference whose tag has moved since is pinned.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    Stop, Work,
    items::{delays, failure},
};
use crate::{
    api::{
        names, reasons,
        rollback_request::{Images, ItemFailure},
        snapshot::ImageStatus,
    },
    cluster::{
        self,
        list::{Collection, Pager},
        write::{self, WriteError},
    },
    domain::{
        object::{KindInfo, ObjectId},
        plan::write::{Call, state},
        snapshot::ImageResolver,
    },
};

/// How often Pods are looked at that have not reported their images yet.
const LOOKS: usize = 5;

/// A container that runs another image than was captured.
struct Differs {
    id: ObjectId,
    captured: ImageStatus,
    now: String,
}

impl Differs {
    /// `repo:tag@sha256:…`, where the captured digest can be pulled and the reference does not name one itself.
    fn pinned(&self) -> Option<String> {
        let digest = self.captured.digest.as_ref()?;
        (self.captured.reason.is_none() && !self.captured.image.contains('@'))
            .then(|| format!("{}@{digest}", self.captured.image))
    }
}

impl Work<'_> {
    /// Compares, and with `images: Auto` pins what differs. Workloads have to be healthy before, and are afterwards.
    pub(super) async fn images(&self) -> Result<(), Stop> {
        let differing = match self.differing().await {
            Ok(differing) => differing,
            Err(error) => {
                let why = format!("what runs could not be compared with what was captured: {error}");
                return self.settle(vec![ItemFailure {
                    object: "Images".into(),
                    reason: reasons::API_UNAVAILABLE.into(),
                    message: Some(why),
                }]);
            }
        };
        let mut pins = Vec::new();
        for differs in differing {
            let Differs { id, captured, now } = &differs;
            let container = &captured.container;
            self.except([id.clone()]);
            match differs.pinned() {
                Some(reference) if self.request().spec.images != Images::AsCaptured => pins.push((differs, reference)),
                Some(_) => self.execution.report.note(format!(
                    "{id}: container {container} runs {now}, not the captured image (its tag has moved; images is AsCaptured)"
                )),
                None => self.execution.report.note(format!(
                    "{id}: container {container} runs {now}, not the captured image, and cannot be pinned ({})",
                    captured.reason.as_deref().unwrap_or(reasons::NOT_PULLABLE_DIGEST)
                )),
            }
        }
        if pins.is_empty() {
            return Ok(());
        }
        let workloads: BTreeSet<&ObjectId> = pins.iter().map(|(differs, _)| &differs.id).collect();
        let mut failures = Vec::new();
        for id in workloads {
            let images: Vec<(&str, &str)> = pins
                .iter()
                .filter(|(differs, _)| differs.id == *id)
                .map(|(differs, reference)| (differs.captured.container.as_str(), reference.as_str()))
                .collect();
            match self.pin(id, &images).await {
                Ok(()) => {
                    for (container, reference) in images {
                        let note =
                            format!("{id}: container {container} is pinned to {reference}, because its tag has moved");
                        self.execution.report.note(note);
                    }
                }
                Err(failure) => {
                    self.execution.report.failed(failure.clone());
                    failures.push(failure);
                }
            }
        }
        self.settle(failures)?;
        self.healthy().await
    }

    /// Containers of the workloads of this execution whose digest differs from the captured one.
    async fn differing(&self) -> cluster::Result<Vec<Differs>> {
        let workloads = self.workloads();
        let of = |row: &ImageStatus| {
            let shown = |id: &&ObjectId| row.workload == format!("{}/{}", id.kind, id.name);
            workloads.keys().find(shown).cloned()
        };
        let captured: Vec<(ObjectId, &ImageStatus)> = self
            .extras
            .images
            .iter()
            .filter(|row| row.digest.is_some())
            .filter_map(|row| Some((of(row)?, row)))
            .collect();
        let mut differing = Vec::new();
        if captured.is_empty() {
            return Ok(differing);
        }
        let mut delays = delays();
        for look in 1..=LOOKS {
            let running = self.running().await?;
            differing.clear();
            let mut unknown = false;
            for (id, row) in &captured {
                let now = running
                    .iter()
                    .find(|now| now.workload == row.workload && now.container == row.container);
                // A container that the workload no longer has cannot differ.
                let Some(now) = now else { continue };
                match &now.digest {
                    Some(digest) if Some(digest) != row.digest.as_ref() => differing.push(Differs {
                        id: id.clone(),
                        captured: (*row).clone(),
                        now: digest.clone(),
                    }),
                    Some(_) => {}
                    None => {
                        unknown = true;
                        if look == LOOKS {
                            self.execution.report.note(format!(
                                "{id}: it is not known which image container {} runs ({})",
                                row.container,
                                now.reason.as_deref().unwrap_or(reasons::NO_RUNNING_POD)
                            ));
                        }
                    }
                }
            }
            if !unknown {
                break;
            }
            // A Pod that has just become ready may not be in this list yet.
            let delay = delays.next().unwrap_or_default();
            if tokio::time::timeout_at(self.deadline, tokio::time::sleep(delay))
                .await
                .is_err()
            {
                break;
            }
        }
        Ok(differing)
    }

    /// What the Pods of these workloads report now.
    async fn running(&self) -> cluster::Result<Vec<ImageStatus>> {
        let mut images = ImageResolver::default();
        let (pods, sets) = futures::try_join!(self.list("", "pods"), self.list("apps", "replicasets"))?;
        for pod in pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()) {
            images.observe(&KindInfo::new("", "v1", "Pod"), pod);
        }
        for set in &sets {
            images.observe(&KindInfo::new("apps", "v1", "ReplicaSet"), set);
        }
        for (id, object) in self.workloads() {
            images.workload(&KindInfo::new(&id.group, "v1", &id.kind), &object);
        }
        Ok(images.resolve())
    }

    async fn list(&self, group: &str, plural: &str) -> cluster::Result<Vec<Value>> {
        let collection = Collection {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            namespace: Some(self.namespace.clone()),
        };
        let what = collection.to_string();
        let mut pager = Pager::start(self.execution.context.client.clone(), collection, false);
        let mut objects = Vec::new();
        while let Some(page) = pager.next().await? {
            for raw in page.objects() {
                let object: Value = serde_json::from_slice(raw).map_err(|source| cluster::Error::Unreadable {
                    what: what.clone(),
                    source,
                })?;
                // Of the rest nothing is needed.
                objects.push(json!({"metadata": object["metadata"], "status": object["status"]}));
            }
        }
        Ok(objects)
    }

    /// Takes over the image of these containers and pins it. The field is Backstep's own from then on.
    async fn pin(&self, id: &ObjectId, images: &[(&str, &str)]) -> Result<(), ItemFailure> {
        let place = self.place(id)?;
        let mut delays = delays();
        loop {
            let Some(raw) = self.read(id, &place).await? else {
                return Err(failure(
                    id,
                    reasons::DRIFT,
                    "it was deleted before its images could be pinned",
                ));
            };
            let Some(body) = pinned(id, &self.kind(id)?.info, &raw, images) else {
                return Ok(());
            };
            let call = Call::Apply {
                manager: names::FIELD_MANAGER.to_owned(),
                body: body.into(),
                replaces: Some(state(&raw)),
            };
            let client = &self.execution.context.client;
            let written = tokio::time::timeout_at(self.deadline, write::perform(client, &place, &[call], false)).await;
            let why = match written {
                Ok(Ok(written)) => {
                    self.rolls_out(id, &written.object);
                    return Ok(());
                }
                Ok(Err(WriteError::Drift(why))) => why,
                Ok(Err(WriteError::Failed(error))) if error.class() == cluster::Class::Transient => error.to_string(),
                Ok(Err(WriteError::Failed(error))) => {
                    return Err(failure(id, reasons::WRITE_REFUSED, error.to_string()));
                }
                Err(_) => "the API server did not answer".to_owned(),
            };
            let delay = delays.next().unwrap_or_default();
            if tokio::time::timeout_at(self.deadline, tokio::time::sleep(delay))
                .await
                .is_err()
            {
                let why = format!("its images were not pinned in time; the last try said: {why}");
                return Err(failure(id, reasons::DEADLINE_EXCEEDED, why));
            }
        }
    }
}

/// The fields that pin `images` (container and reference) in `raw`; `None` where they are pinned already.
fn pinned(id: &ObjectId, kind: &KindInfo, raw: &Value, images: &[(&str, &str)]) -> Option<Value> {
    let pod = if id.kind == "Pod" {
        &raw["spec"]
    } else {
        &raw["spec"]["template"]["spec"]
    };
    let mut spec = json!({});
    let mut differs = false;
    for list in ["containers", "initContainers"] {
        let containers: Vec<Value> = pod[list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| {
                let name = container["name"].as_str()?;
                let (_, reference) = images.iter().find(|(of, _)| *of == name)?;
                differs |= container["image"] != *reference;
                Some(json!({"name": name, "image": reference}))
            })
            .collect();
        if !containers.is_empty() {
            spec[list] = Value::Array(containers);
        }
    }
    let metadata = &raw["metadata"];
    let spec = if id.kind == "Pod" {
        spec
    } else {
        json!({"template": {"spec": spec}})
    };
    differs.then(|| {
        json!({
            "apiVersion": kind.api_version(),
            "kind": kind.kind,
            "metadata": {
                "name": metadata["name"], "namespace": metadata["namespace"],
                "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
            },
            "spec": spec,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_names_the_container_its_image_and_the_object_that_was_read_and_nothing_else() {
        let id = ObjectId::new("apps", "Deployment", "web");
        let kind = KindInfo::new("apps", "v1", "Deployment");
        let raw = |image: &str| {
            json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "labels": {"a": "b"}},
                "spec": {"replicas": 2, "template": {"spec": {"containers": [{"name": "app", "image": image}, {"name": "log", "image": "r/log:1"}]}}}})
        };
        let images = [("app", "r/web:1@sha256:aa")];
        let body = pinned(&id, &kind, &raw("r/web:1"), &images).unwrap();
        assert_eq!(
            body,
            json!({"apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
                "spec": {"template": {"spec": {"containers": [{"name": "app", "image": "r/web:1@sha256:aa"}]}}}})
        );
        assert_eq!(pinned(&id, &kind, &raw("r/web:1@sha256:aa"), &images), None);
    }

    #[test]
    fn only_a_digest_that_came_with_its_repository_is_pinned() {
        let differs = |image: &str, reason: Option<&str>| Differs {
            id: ObjectId::new("apps", "Deployment", "web"),
            captured: ImageStatus {
                workload: "Deployment/web".into(),
                container: "app".into(),
                image: image.into(),
                digest: Some("sha256:aa".into()),
                reason: reason.map(Into::into),
            },
            now: "sha256:bb".into(),
        };
        assert_eq!(differs("r/web:1", None).pinned().as_deref(), Some("r/web:1@sha256:aa"));
        assert_eq!(differs("r/web:1", Some(reasons::NOT_PULLABLE_DIGEST)).pinned(), None);
        assert_eq!(differs("r/web@sha256:cc", None).pinned(), None);
    }
}
