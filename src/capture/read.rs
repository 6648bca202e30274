//! Reads one kind for every target that wants it.

use std::collections::HashMap;

use kube::Client;
use serde_json::Value;

use super::{
    Observed, Sink, WantedKind,
    target::{Failure, Target},
};
use crate::{
    api::{
        reasons,
        snapshot::{Component, SecretsMode},
    },
    cluster::{
        self, Class,
        list::{Page, Pager},
    },
    domain::{
        object::{Normalised, SecretValues, normalise},
        snapshot::ObjectVerdict,
    },
};

/// Lists that outlive the server's revision are started again this often.
const RESTARTS: u32 = 3;

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

/// The last object that was handled; lists are ordered by namespace and name within one server key space.
#[derive(Default, Clone)]
struct Position(Option<(String, String)>);

impl Position {
    fn covers(&self, namespace: &str, name: &str) -> bool {
        // Keys are `<namespace>/<name>`: '/' sorts after '-' and '.', so compare as the server does.
        self.0.as_ref().is_some_and(|(ns, n)| {
            let left = namespace.bytes().chain(*b"/").chain(name.bytes());
            left.le(ns.bytes().chain(*b"/").chain(n.bytes()))
        })
    }
}

impl Reader<'_> {
    /// Lists `namespace` (or all); what `position` covers was handled before.
    async fn list(&self, namespace: Option<&str>, position: &mut Position) -> Result<(), Trouble> {
        let mut restarts = 0;
        'start: loop {
            let already = position.clone();
            let mut pager = Pager::start(self.client.clone(), self.kind.collection(namespace), false);
            loop {
                match pager.next().await {
                    Ok(Some(page)) => self.page(&page, namespace, &already, position).await?,
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

    async fn page(
        &self,
        page: &Page,
        listed: Option<&str>,
        already: &Position,
        position: &mut Position,
    ) -> Result<(), Trouble> {
        let mut observed = Vec::new();
        for raw in page.items().map_err(Trouble::List)?.items {
            let value: Value = serde_json::from_str(raw.get()).map_err(|source| {
                Trouble::List(cluster::Error::Unreadable {
                    what: self.kind.collection(listed).to_string(),
                    source,
                })
            })?;
            let metadata = &value["metadata"];
            let namespace = metadata["namespace"].as_str().or(listed).unwrap_or_default().to_owned();
            let name = metadata["name"].as_str().unwrap_or_default().to_owned();
            if already.covers(&namespace, &name) {
                continue;
            }
            if let Some(indices) = self.by_namespace.get(namespace.as_str()) {
                self.object(value, indices, &mut observed);
            }
            position.0 = Some((namespace, name));
        }
        if observed.is_empty() {
            Ok(())
        } else {
            self.sink.take(self.kind, observed).await.map_err(Trouble::Other)
        }
    }

    /// Hands `value` to each target of its namespace that wants it.
    fn object(&self, value: Value, indices: &[usize], observed: &mut Vec<Observed>) {
        let mut wanting = indices
            .iter()
            .copied()
            .filter(|i| self.wanting.binary_search(i).is_ok())
            .peekable();
        let mut value = Some(value);
        while let Some(index) = wanting.next() {
            let taken = if wanting.peek().is_some() {
                value.clone()
            } else {
                value.take()
            };
            let Some(taken) = taken else { return };
            let target = &self.targets[index];
            match self.examine(target, taken) {
                Ok(Some(object)) => observed.push(Observed { target: index, object }),
                Ok(None) => {}
                Err(failure) => target.fail(failure),
            }
        }
    }

    fn examine(&self, target: &Target, value: Value) -> Result<Option<Normalised>, Failure> {
        {
            let mut seen = target.seen();
            let seen = &mut *seen;
            if target.selection.wants_images() {
                seen.images.observe(&self.kind.info, &value);
            }
            match target
                .selection
                .verdict(&self.kind.info, self.kind.component, &value, &seen.references)
            {
                ObjectVerdict::Capture => {}
                ObjectVerdict::ImagesOnly => {
                    seen.images.workload(&self.kind.info, &value);
                    return Ok(None);
                }
                ObjectVerdict::NotSelected => return Ok(None),
                ObjectVerdict::Skip(reason) => {
                    seen.skips.add(&self.kind.display(), reason);
                    return Ok(None);
                }
            }
            if target.selection.wants_images() {
                seen.images.workload(&self.kind.info, &value);
            }
            if self.kind.component == Component::Volumes && target.lists_volume_data {
                seen.skips.add(&self.kind.display(), reasons::VOLUME_DATA_NOT_CAPTURED);
            }
            seen.references.collect(&self.kind.info, &value);
            match seen
                .captured
                .iter_mut()
                .find(|(component, _)| *component == self.kind.component)
            {
                Some((_, count)) => *count += 1,
                None => seen.captured.push((self.kind.component, 1)),
            }
        }
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
        normalise(value, &self.kind.info, &self.kind.shape, secrets)
            .map(Some)
            .map_err(|error| {
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
