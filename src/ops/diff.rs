//! What differs between two snapshots, or between a snapshot and what is live now.

use std::{cmp::Ordering, collections::BTreeMap, pin::pin, sync::Arc};

use futures::{Stream, TryStreamExt as _};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::OnceCell;

use super::{
    Error, Result, Session,
    contents::{Contents, HIDDEN, failed},
};
use crate::{
    api::snapshot::{Capture, ImageStatus, SecretsMode},
    capture::Catalog,
    domain::object::{
        Digest, FingerprintKey, ListShape, ObjectId,
        diff::{self, FieldChange},
    },
    repository::{Entry, ManifestReader, SharedKind},
};

/// How one object differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Change {
    /// Only on the second side.
    Added,
    /// Only on the first side.
    Removed,
    /// On both, with different contents.
    Changed,
}

/// One object that differs. Values of Secrets are hidden in all of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectChange {
    /// Which object.
    #[serde(flatten)]
    pub id: ObjectId,
    /// How it differs.
    pub change: Change,
    /// By field; empty for objects on one side only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
    /// As a unified diff.
    #[serde(skip)]
    pub text: String,
}

/// An image that ran on one side and not on the other, though the pod template may be the same: its tag was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageChange {
    /// `Deployment/web`.
    pub workload: String,
    /// Container.
    pub container: String,
    /// What ran on the first side.
    pub old: String,
    /// What runs on the second side.
    pub new: String,
}

/// What differs.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Objects only on the second side.
    pub added: u64,
    /// Objects only on the first side.
    pub removed: u64,
    /// Objects with different contents.
    pub changed: u64,
    /// Objects that are equal.
    pub unchanged: u64,
    /// The objects that differ, in identity order.
    pub objects: Vec<ObjectChange>,
    /// Containers of workloads on both sides that ran other images.
    pub images: Vec<ImageChange>,
}

impl Report {
    /// Whether the two sides are equal.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty() && self.images.is_empty()
    }

    /// Compares two contents of one object whose digests differ. Equal after all (a value and its fingerprint) is unchanged.
    pub(super) fn add(
        &mut self,
        id: ObjectId,
        old: Option<&Value>,
        new: Option<&Value>,
        shape: &ListShape,
        key: &FingerprintKey,
    ) {
        let mut fields = diff::diff(old, new, shape, key).changes;
        if fields.is_empty() {
            self.unchanged += 1;
            return;
        }
        let change = match (old, new) {
            (None, Some(_)) => {
                self.added += 1;
                Change::Added
            }
            (Some(_), None) => {
                self.removed += 1;
                Change::Removed
            }
            (Some(_), Some(_)) => {
                self.changed += 1;
                Change::Changed
            }
            (None, None) => return,
        };
        if change == Change::Changed {
            // A fingerprint under a key of this moment tells nothing more than that the value changed.
            for field in fields.iter_mut().filter(|field| field.hidden) {
                field.old = field.old.as_ref().map(|_| Value::from(HIDDEN));
                field.new = field.new.as_ref().map(|_| Value::from(HIDDEN));
            }
        } else {
            fields.clear();
        }
        let text = diff::unified(old, new, shape, key);
        self.objects.push(ObjectChange {
            id,
            change,
            fields,
            text,
        });
    }

    /// Images of containers that both sides know.
    pub(super) fn compare_images(&mut self, old: &[ImageStatus], new: &[ImageStatus]) {
        let key = |image: &ImageStatus| (image.workload.clone(), image.container.clone());
        let before: BTreeMap<_, _> = old.iter().map(|image| (key(image), image)).collect();
        for image in new {
            // Without a digest on both sides nothing is known to differ.
            let Some(was) = before.get(&key(image)) else { continue };
            if let (Some(old), Some(new)) = (&was.digest, &image.digest)
                && old != new
            {
                self.images.push(ImageChange {
                    workload: image.workload.clone(),
                    container: image.container.clone(),
                    old: format!("{}@{old}", was.image),
                    new: format!("{}@{new}", image.image),
                });
            }
        }
    }
}

/// Which lists are keyed: built-in kinds from the table, custom resources from their CRD, read once and only when needed.
pub struct Shapes {
    session: Session,
    custom: OnceCell<BTreeMap<(String, String), Arc<ListShape>>>,
}

impl Shapes {
    /// Nothing is read yet.
    pub fn new(session: &Session) -> Self {
        Self {
            session: session.clone(),
            custom: OnceCell::new(),
        }
    }

    /// The shape of a kind. A CRD that is gone or may not be read leaves its lists compared by position.
    pub async fn of(&self, group: &str, kind: &str) -> Arc<ListShape> {
        if let Some(shape) = ListShape::builtin(group, kind) {
            return Arc::new(shape);
        }
        let custom = self
            .custom
            .get_or_init(|| async {
                let mut catalog = Catalog::default();
                match catalog.refresh(&self.session.client).await {
                    Ok(()) => catalog.kinds().iter().map(|k| ((k.info.group.clone(), k.info.kind.clone()), Arc::clone(&k.shape))).collect(),
                    Err(error) => {
                        tracing::warn!(%error, "custom resources cannot be discovered: their lists are compared by position");
                        BTreeMap::new()
                    }
                }
            })
            .await;
        custom
            .get(&(group.to_owned(), kind.to_owned()))
            .cloned()
            .unwrap_or_else(|| Arc::new(ListShape::atomic()))
    }
}

/// Compares two snapshots: digests first, contents only where they differ. `done` is called with each object compared.
pub async fn snapshots(
    session: &Session,
    contents: &Contents,
    old: &ManifestReader,
    new: &ManifestReader,
    mut done: impl FnMut(&ObjectId),
) -> Result<Report> {
    let (before, after) = (super::contents::extras(old).await?, super::contents::extras(new).await?);
    let key = key(session, [before.capture.as_ref(), after.capture.as_ref()]).await?;
    let shapes = Shapes::new(session);
    let mut report = Report::default();
    let (mut left, mut right) = (pin!(old.entries()), pin!(new.entries()));
    let (mut a, mut b) = (next(&mut left).await?, next(&mut right).await?);
    loop {
        let order = match (&a, &b) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        // Take from the side that is behind, from both where they are at the same object.
        let old = if order.is_le() { a.take() } else { None };
        let new = if order.is_ge() { b.take() } else { None };
        if let Some(id) = old.as_ref().or(new.as_ref()).map(|(id, _)| id.clone()) {
            done(&id);
            let (old_digest, new_digest) = (old.map(|(_, d)| d), new.map(|(_, d)| d));
            if old_digest == new_digest {
                report.unchanged += 1;
            } else {
                let before = content(contents, old_digest, &id).await?;
                let after = content(contents, new_digest, &id).await?;
                let shape = shapes.of(&id.group, &id.kind).await;
                report.add(id, before.as_ref(), after.as_ref(), &shape, &key);
            }
        }
        if order.is_le() {
            a = next(&mut left).await?;
        }
        if order.is_ge() {
            b = next(&mut right).await?;
        }
    }
    report.compare_images(&before.images, &after.images);
    Ok(report)
}

/// The key that stands for Secret values while two states are compared.
///
/// Only where exactly one side holds fingerprints does it have to be the installation's, so that the other side's values compare with
/// them; without it such Secrets show as changed.
async fn key(session: &Session, captures: [Option<&Capture>; 2]) -> Result<FingerprintKey> {
    let fingerprinted =
        |capture: Option<&Capture>| capture.is_some_and(|c| c.secrets == Some(SecretsMode::Fingerprint));
    let [old, new] = captures.map(fingerprinted);
    if old != new {
        match super::live::installation_key(session).await {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => tracing::warn!("the fingerprint key is gone: Secrets show as changed"),
            Err(error) => tracing::warn!(%error, "the fingerprint key cannot be read: Secrets show as changed"),
        }
    }
    Ok(random_key())
}

/// A key for one comparison.
pub(super) fn random_key() -> FingerprintKey {
    FingerprintKey::new(rand::random())
}

pub(super) async fn content(contents: &Contents, digest: Option<Digest>, id: &ObjectId) -> Result<Option<Value>> {
    match digest {
        Some(digest) => contents.canonical(&digest, id).await.map(Some),
        None => Ok(None),
    }
}

pub(super) async fn next<S>(entries: &mut S) -> Result<Option<(ObjectId, Digest)>, Error>
where
    S: Stream<Item = crate::repository::Result<(SharedKind, Entry)>> + Unpin,
{
    let next = entries.try_next().await.map_err(|e| failed(&e))?;
    Ok(next.map(|(kind, entry)| (entry.id(&kind), entry.content)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(container: &str, digest: Option<&str>) -> ImageStatus {
        ImageStatus {
            workload: "Deployment/web".into(),
            container: container.into(),
            image: "registry/web:1".into(),
            digest: digest.map(Into::into),
            reason: None,
        }
    }

    #[test]
    fn a_moved_tag_is_a_difference_and_an_unknown_digest_is_not() {
        let mut report = Report::default();
        let old = [
            image("a", Some("sha256:1")),
            image("b", Some("sha256:1")),
            image("c", None),
        ];
        let new = [
            image("a", Some("sha256:2")),
            image("b", None),
            image("c", Some("sha256:1")),
            image("d", Some("sha256:1")),
        ];
        report.compare_images(&old, &new);
        assert_eq!(report.images.len(), 1);
        assert_eq!(report.images[0].new, "registry/web:1@sha256:2");
        assert!(!report.is_empty());
    }

    #[test]
    fn values_of_secrets_are_in_no_part_of_a_report() {
        let secret = |value: &str| serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "db"}, "data": {"password": value}});
        let (old, new) = (secret("Y2FuYXJ5LW9sZA=="), secret("Y2FuYXJ5LW5ldw=="));
        let shape = ListShape::atomic();
        for (old, new) in [(Some(&old), Some(&new)), (None, Some(&new)), (Some(&old), None)] {
            let mut report = Report::default();
            report.add(
                ObjectId::new("", "Secret", "db"),
                old,
                new,
                &shape,
                &FingerprintKey::new([7; 32]),
            );
            let json = serde_json::to_string(&report).unwrap();
            let all = format!("{json}{}{report:?}", report.objects[0].text);
            assert!(all.contains("password"), "{all}");
            assert!(!all.contains("Y2FuYXJ5") && !all.contains("canary"), "{all}");
        }
    }
}
