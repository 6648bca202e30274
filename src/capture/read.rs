//! Reads one kind for every target that wants it.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Identity, Item, Observed, Sink, WantedKind,
    rows::{Facts, METADATA_FROM, Position, Row, is_settled, single_reads},
    target::{Failure, Target},
};
use crate::{
    api::{
        reasons,
        snapshot::{Component, SecretsMode},
    },
    cluster::{
        self, Class,
        list::{self, Page, Pager},
        metadata::{Head, Metadata},
    },
    domain::{
        object::{Normalised, SecretValues, normalise},
        plan::facts,
        snapshot::{ObjectVerdict, workload_name},
    },
};

/// Lists that outlive the server's revision are started again this often.
const RESTARTS: u32 = 3;
/// Objects read singly at once.
const GETS: usize = 8;

/// Where to list.
pub(super) enum Scope<'a> {
    /// Each namespace by itself.
    Each(&'a HashMap<&'a str, Vec<usize>>),
    /// The whole cluster once.
    Shared(&'a HashMap<&'a str, Vec<usize>>),
}

struct Reader<'a> {
    client: &'a Client,
    kind: &'a WantedKind,
    targets: &'a [Target],
    wanting: &'a [usize],
    by_namespace: &'a HashMap<&'a str, Vec<usize>>,
    sink: &'a dyn Sink,
}

/// Why a list ended early.
enum Trouble {
    List(cluster::Error),
    Other(Failure),
}

/// Reads `kind` for the targets `wanting`; trouble is recorded in the targets it concerns.
pub(super) async fn kind(
    client: &Client,
    kind: &WantedKind,
    targets: &[Target],
    wanting: &[usize],
    scope: &Scope<'_>,
    sink: &dyn Sink,
) {
    let (by_namespace, shared) = match scope {
        Scope::Each(map) => (*map, false),
        Scope::Shared(map) => (*map, true),
    };
    let reader = Reader {
        client,
        kind,
        targets,
        wanting,
        by_namespace,
        sink,
    };
    let mut done = Position::default();
    if shared {
        match reader.list(None, &mut done).await {
            Ok(()) => return,
            Err(Trouble::Other(failure)) => return reader.fail_all(&failure),
            // One namespace's broken object must not cost the others their snapshot.
            Err(Trouble::List(error)) => tracing::warn!(%error, "reading the kind in each namespace instead"),
        }
    }
    let mut namespaces: Vec<&str> = by_namespace.keys().copied().collect();
    namespaces.sort_unstable();
    for namespace in namespaces {
        match reader.list(Some(namespace), &mut done.clone()).await {
            Ok(()) => {}
            Err(Trouble::Other(failure)) => reader.fail_namespace(namespace, &failure),
            Err(Trouble::List(error)) => reader.fail_namespace(namespace, &unreadable(kind, namespace, &error)),
        }
    }
}

fn unreadable(kind: &WantedKind, namespace: &str, error: &cluster::Error) -> Failure {
    let plural = if kind.info.group.is_empty() {
        kind.plural.clone()
    } else {
        format!("{}.{}", kind.plural, kind.info.group)
    };
    let fix = match error.class() {
        Class::Forbidden => format!("grant the operator `get` and `list` on {plural}"),
        _ => format!("repair the kind (kubectl get {plural} -n {namespace})"),
    };
    let message = format!(
        "{} cannot be read, so the snapshot would not be complete: {error}. {fix}, or leave the kind out with \
         spec.capture.exclude: [{{group: \"{}\", kinds: [{}]}}] in a new Snapshot",
        kind.display(),
        kind.info.group,
        kind.info.kind
    );
    // Retried already with back-off: a server that still does not serve the kind will not by itself.
    Failure::new(Class::Invalid, reasons::CAPTURE_INCOMPLETE, message)
}

/// How one list goes.
struct Progress {
    /// Objects that the sink holds, roughly; nothing is asked of a sink that holds none.
    expected: u64,
    /// Objects that may still be read singly.
    singles: usize,
}

impl Reader<'_> {
    /// Lists `namespace` (or all); what `position` covers was handled before.
    async fn list(&self, namespace: Option<&str>, position: &mut Position) -> Result<(), Trouble> {
        let wanting = match namespace {
            Some(namespace) => self.wanting_in(namespace),
            None => self.wanting.to_vec(),
        };
        let expected = match self.kind.rules {
            Some(_) => self.sink.expects(self.kind, &wanting),
            None => 0,
        };
        let mut progress = Progress {
            expected,
            singles: single_reads(expected),
        };
        let mut metadata_first = expected >= METADATA_FROM && !self.gives_facts();
        let mut restarts = 0;
        'start: loop {
            let already = position.clone();
            let mut pager = Pager::start(self.client.clone(), self.kind.collection(namespace), metadata_first);
            loop {
                match pager.next().await {
                    Ok(Some(mut page)) => {
                        if !self
                            .page(&mut page, namespace, &already, position, &mut progress)
                            .await?
                        {
                            metadata_first = false;
                            pager.again_whole();
                        }
                    }
                    Ok(None) => return Ok(()),
                    // Gone since discovery: there is nothing of this kind any more.
                    Err(error) if error.is_not_found() || error.code() == Some(405) => return Ok(()),
                    Err(error) if error.is_expired() && restarts < RESTARTS => {
                        restarts += 1;
                        continue 'start;
                    }
                    Err(error) => return Err(Trouble::List(error)),
                }
            }
        }
    }

    fn gives_facts(&self) -> bool {
        self.wanting
            .iter()
            .any(|i| self.kind.gives_facts(&self.targets[*i].selection))
    }

    /// The targets of `namespace` that want the kind.
    fn wanting_in(&self, namespace: &str) -> Vec<usize> {
        let indices = self.by_namespace.get(namespace).map_or(&[][..], Vec::as_slice);
        indices
            .iter()
            .copied()
            .filter(|i| self.wanting.binary_search(i).is_ok())
            .collect()
    }

    fn parse<T: DeserializeOwned>(&self, json: &[u8], listed: Option<&str>) -> Result<T, Trouble> {
        serde_json::from_slice(json).map_err(|source| {
            Trouble::List(cluster::Error::Unreadable {
                what: self.kind.collection(listed).to_string(),
                source,
            })
        })
    }

    /// Handles one page. `false`: too many objects of a page of metadata changed; nothing of it was handled.
    async fn page(
        &self,
        page: &mut Page,
        listed: Option<&str>,
        already: &Position,
        position: &mut Position,
        progress: &mut Progress,
    ) -> Result<bool, Trouble> {
        let (items, last) = if progress.expected == 0 {
            self.read_all(page, listed, already)?
        } else {
            let metadata = page.take_metadata();
            let is_metadata = metadata.is_some();
            let (mut rows, last) = match metadata {
                Some(objects) => self.rows(
                    objects.into_iter().map(|metadata| Ok((metadata, &[][..]))),
                    listed,
                    already,
                )?,
                None => self.rows(page.objects().map(|raw| self.head(raw, listed)), listed, already)?,
            };
            self.ask(&mut rows).await?;
            if is_metadata {
                let singles = rows.iter().filter(|row| row.whole).count();
                if singles > progress.singles {
                    return Ok(false);
                }
                progress.singles -= singles;
            }
            (self.read_changed(is_metadata, rows, listed).await?, last)
        };
        if !items.is_empty() {
            self.sink.take_all(self.kind, items).await.map_err(Trouble::Other)?;
        }
        if last.is_some() {
            position.0 = last;
        }
        Ok(true)
    }

    /// The items of a page of which nothing is known, and the last object's namespace and name.
    #[allow(clippy::type_complexity)]
    fn read_all(
        &self,
        page: &Page,
        listed: Option<&str>,
        already: &Position,
    ) -> Result<(Vec<Item>, Option<(String, String)>), Trouble> {
        let (mut items, mut last) = (Vec::new(), None);
        for raw in page.objects() {
            let value: Value = self.parse(raw, listed)?;
            let metadata = &value["metadata"];
            let namespace = metadata["namespace"].as_str().or(listed).unwrap_or_default().to_owned();
            let name = metadata["name"].as_str().unwrap_or_default().to_owned();
            if already.covers(&namespace, &name) {
                continue;
            }
            let mut wanting = self.wanting_in(&namespace).into_iter().peekable();
            let mut value = Some(value);
            while let Some(target) = wanting.next() {
                let taken = if wanting.peek().is_some() {
                    value.clone()
                } else {
                    value.take()
                };
                items.extend(taken.and_then(|value| self.read(target, value)));
            }
            last = Some((namespace, name));
        }
        Ok((items, last))
    }

    /// A whole object, parsed as far as selections need it.
    fn head<'a>(&self, raw: &'a [u8], listed: Option<&str>) -> Result<(Metadata, &'a [u8]), Trouble> {
        let Head { metadata } = self.parse(raw, listed)?;
        Ok((metadata, raw))
    }

    /// The objects of a page that somebody wants, and the last one's namespace and name.
    #[allow(clippy::type_complexity)]
    fn rows<'a>(
        &self,
        objects: impl Iterator<Item = Result<(Metadata, &'a [u8]), Trouble>>,
        listed: Option<&str>,
        already: &Position,
    ) -> Result<(Vec<Row<'a>>, Option<(String, String)>), Trouble> {
        let (mut rows, mut last) = (Vec::new(), None);
        for object in objects {
            let (mut metadata, raw) = object?;
            let namespace = metadata
                .namespace
                .take()
                .or(listed.map(ToOwned::to_owned))
                .unwrap_or_default();
            if already.covers(&namespace, &metadata.name) {
                continue;
            }
            last = Some((namespace.clone(), metadata.name.clone()));
            let identity = |target| Identity {
                target,
                name: metadata.name.clone(),
                uid: metadata.uid.clone(),
                resource_version: metadata.resource_version.clone(),
            };
            let known: Vec<_> = self
                .wanting_in(&namespace)
                .into_iter()
                .map(|target| (identity(target), None))
                .collect();
            if known.is_empty() {
                continue;
            }
            rows.push(Row {
                raw,
                namespace,
                head: metadata.into_object(),
                known,
                whole: false,
            });
        }
        Ok((rows, last))
    }

    /// Finds out what the sink knows of each row, and which rows are needed whole.
    async fn ask(&self, rows: &mut [Row<'_>]) -> Result<(), Trouble> {
        let asked: Vec<Identity> = rows
            .iter()
            .flat_map(|row| row.known.iter().map(|(identity, _)| identity.clone()))
            .collect();
        let mut answers = self
            .sink
            .known(self.kind, &asked)
            .await
            .map_err(Trouble::Other)?
            .into_iter();
        let facts = self.gives_facts();
        for row in rows {
            let mut whole = facts;
            for (identity, known) in &mut row.known {
                *known = answers.next().flatten();
                whole |= if known.is_some() {
                    self.wants_images(identity.target) && self.images(identity.target, &identity.name).is_none()
                } else {
                    !self.is_settled(&self.targets[identity.target], &row.head)
                };
            }
            row.whole = whole;
        }
        Ok(())
    }

    /// Whether the images of the kind's objects are wanted.
    fn wants_images(&self, target: usize) -> bool {
        self.kind.runs_images() && self.targets[target].selection.wants_images()
    }

    /// What the sink knows of the containers of a workload.
    fn images(&self, target: usize, name: &str) -> Option<&[(String, String)]> {
        self.sink.images(target, &workload_name(&self.kind.info, name))
    }

    /// Whether the metadata alone says that the target does not capture the object, and why.
    fn is_settled(&self, target: &Target, head: &Value) -> bool {
        let verdict = target
            .selection
            .verdict(&self.kind.info, self.kind.component, head, &target.seen().references);
        is_settled(self.kind, &verdict)
    }

    /// Reads the rows that are needed whole, from the page or singly, and takes the others as they are known.
    async fn read_changed(&self, singly: bool, rows: Vec<Row<'_>>, listed: Option<&str>) -> Result<Vec<Item>, Trouble> {
        let collection = self.kind.collection(None);
        let wanted: Vec<(String, String)> = rows
            .iter()
            .filter(|row| singly && row.whole)
            .map(|row| {
                let what = format!("get {} {} in {}", self.kind.display(), row.name(), row.namespace);
                (collection.object_path(&row.namespace, row.name()), what)
            })
            .collect();
        let client = self.client.clone();
        let mut singles = stream::iter(wanted)
            .map(move |(uri, what)| get(client.clone(), uri, what))
            .buffered(GETS);
        let mut items = Vec::new();
        for row in rows {
            let mut whole: Option<Value> = None;
            if row.whole && singly {
                match singles.next().await.transpose().map_err(Trouble::List)?.flatten() {
                    Some(bytes) => whole = Some(self.parse(&bytes, listed)?),
                    // Deleted since it was listed.
                    None => continue,
                }
            } else if row.whole {
                let is_known = row.known.iter().all(|(_, known)| known.is_some());
                whole = Some(if is_known {
                    self.parse::<Facts>(row.raw, listed)?.0
                } else {
                    self.parse(row.raw, listed)?
                });
            }
            for (identity, known) in row.known {
                let target = &self.targets[identity.target];
                match (known, &whole) {
                    (Some(known), whole) => {
                        let images = match whole {
                            None if self.wants_images(identity.target) => self.images(identity.target, &identity.name),
                            _ => None,
                        };
                        if self.belongs(target, whole.as_ref().unwrap_or(&row.head), images) {
                            items.push(Item::Same(identity, known));
                        }
                    }
                    (None, Some(value)) => items.extend(self.read(identity.target, value.clone())),
                    // Settled: noted as skipped, where it is.
                    (None, None) => {
                        self.belongs(target, &row.head, None);
                    }
                }
            }
        }
        Ok(items)
    }

    /// The content of `value`, if the target captures it.
    fn read(&self, index: usize, value: Value) -> Option<Item> {
        let target = &self.targets[index];
        if !self.belongs(target, &value, None) {
            return None;
        }
        match self.content(target, value) {
            Ok(object) => Some(Item::Read(Observed { target: index, object })),
            Err(failure) => {
                target.fail(failure);
                None
            }
        }
    }

    /// Whether the target captures the object; notes what it says of images and references, and why it is left out. `images`: what is
    /// known of its containers, where `value` is no more than its metadata.
    fn belongs(&self, target: &Target, value: &Value, images: Option<&[(String, String)]>) -> bool {
        let mut seen = target.seen();
        let seen = &mut *seen;
        if target.selection.wants_images() {
            seen.images.observe(&self.kind.info, value);
        }
        match target
            .selection
            .verdict(&self.kind.info, self.kind.component, value, &seen.references)
        {
            ObjectVerdict::Capture => {}
            ObjectVerdict::ImagesOnly => {
                seen.images.workload(&self.kind.info, value);
                return false;
            }
            ObjectVerdict::NotSelected => return false,
            ObjectVerdict::Skip(reason) => {
                seen.skips.add(&self.kind.display(), reason);
                return false;
            }
        }
        match images {
            Some(images) => seen.images.workload_of(&self.kind.info, value, images.to_vec()),
            None if target.selection.wants_images() => seen.images.workload(&self.kind.info, value),
            None => {}
        }
        if self.kind.component == Component::Volumes && target.lists_volume_data {
            seen.skips.add(&self.kind.display(), reasons::VOLUME_DATA_NOT_CAPTURED);
        }
        seen.references.collect(&self.kind.info, value);
        if self.kind.is_job() && !facts::is_finished_job(value) {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            seen.unfinished_jobs.insert(name.to_owned());
        }
        match seen
            .captured
            .iter_mut()
            .find(|(component, _)| *component == self.kind.component)
        {
            Some((_, count)) => *count += 1,
            None => seen.captured.push((self.kind.component, 1)),
        }
        true
    }

    fn content(&self, target: &Target, value: Value) -> Result<Normalised, Failure> {
        let secrets = match (&target.fingerprint_key, target.selection.secrets()) {
            (Some(key), SecretsMode::Fingerprint) => SecretValues::Fingerprint(key),
            (None, SecretsMode::Fingerprint) => {
                return Err(Failure::new(
                    Class::Transient,
                    reasons::STORE_UNAVAILABLE,
                    "the key for spec.capture.secrets: Fingerprint is not available; the operator must be able to read and create \
                     Secrets in its own namespace",
                ));
            }
            (_, SecretsMode::Include | SecretsMode::Exclude) => SecretValues::Keep,
        };
        let name = value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        normalise(value, &self.kind.info, &self.kind.shape, secrets).map_err(|error| {
            let message = format!("{} {name}: {error}", self.kind.display());
            Failure::new(Class::Invalid, reasons::CAPTURE_INCOMPLETE, message)
        })
    }

    fn fail_all(&self, failure: &Failure) {
        for index in self.wanting {
            self.targets[*index].fail(failure.clone());
        }
    }

    fn fail_namespace(&self, namespace: &str, failure: &Failure) {
        for index in self.by_namespace.get(namespace).into_iter().flatten() {
            if self.wanting.binary_search(index).is_ok() {
                self.targets[*index].fail(failure.clone());
            }
        }
    }
}

/// One object; `None` when it is gone.
async fn get(client: Client, uri: String, what: String) -> cluster::Result<Option<Bytes>> {
    match list::get_object(&client, &uri, &what).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
