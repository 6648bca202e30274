//! Does the calls that bring an item about: each with a deadline, a bounded number of tries, and an answer to what became of a
//! write whose own answer was lost.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use kube::{Client, client::Body};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::{
    call,
    error::{Class, Error},
    list::{self, Collection},
};
use crate::domain::{
    object::Digest,
    plan::{
        Content, LiveState,
        write::{self, Call},
    },
};

/// Deadline of one try: the API server ends a write after 34 s at the latest, webhooks included.
const DEADLINE: Duration = Duration::from_secs(35);
/// A resourceVersion that no object ever has, because etcd counts the first write as 2: whoever is there has another one, which the
/// server refuses as a conflict; where nobody is, it is not looked at.
const NEVER: &str = "1";

/// Where an object is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// API group; empty for core.
    pub group: String,
    /// API version; a body in another version of the group goes there.
    pub version: String,
    /// Plural resource name.
    pub plural: String,
    /// Namespace; `None` for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
}

/// The object after the last call.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// `metadata.uid`; of a dry run of a create, one that will not be. Empty after a delete and where nothing was done.
    pub uid: String,
    /// `metadata.resourceVersion`, likewise.
    pub resource_version: String,
    /// As the server gave it back; `Null` after a delete and where nothing was done.
    pub object: Content,
}

/// Why the calls were not all done.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object is not the one that was planned against: it changed, is gone, or appeared. Plan again.
    #[error("{0}")]
    Drift(String),
    /// The server refuses, or does not answer.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Does `calls` on the object at `place`, in order. With `dry_run` the server goes through all of a write but storing it; owners
/// that only come back after a write are left out then.
///
/// A delete returns when the server took it: finalizers may hold the object longer.
///
/// # Errors
/// [`WriteError::Drift`] where the object is not as planned: of that call nothing was written, except by a server that answers an
/// apply of a new object, which carries a resourceVersion that no object has, with 200. [`WriteError::Failed`] after up to seven
/// tries of at most 35 s each.
pub async fn perform(client: &Client, place: &Place, calls: &[Call], dry_run: bool) -> Result<Written, WriteError> {
    let writer = Writer { client, place, dry_run };
    let mut last: Option<Value> = None;
    for call in calls {
        let object = match call {
            Call::Apply {
                manager,
                body,
                replaces: None,
            } => writer.create_by_apply(manager, body).await?,
            Call::Apply {
                manager,
                body,
                replaces: Some(state),
            } => writer.replace(How::Apply, manager, body, *state).await?,
            Call::Put {
                manager,
                body,
                replaces,
            } => writer.replace(How::Put, manager, body, *replaces).await?,
            Call::Post { manager, body } => writer.create(manager, body).await?,
            // What it would work on was not written.
            Call::Fields { .. } if dry_run && last.is_some() => continue,
            Call::Fields { managed_fields, from } => {
                writer.give_back(managed_fields, from.as_deref(), last.as_ref()).await?
            }
            Call::Merge { manager, body } => writer.merge(manager, body).await?,
            Call::Delete {
                uid,
                resource_version,
                deletes,
            } => writer.delete(uid, resource_version, *deletes).await?,
        };
        last = Some(object);
    }
    let object = last.unwrap_or(Value::Null);
    Ok(Written {
        uid: meta(&object, "uid").to_owned(),
        resource_version: meta(&object, "resourceVersion").to_owned(),
        object: object.into(),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Apply,
    Put,
}

/// What one try came to.
enum Tried {
    Done(StatusCode, Value),
    /// 409.
    Conflict(Error),
    /// 404.
    Gone(Error),
    /// The server did not take it.
    Busy(Error),
    /// It may have been written.
    Unknown(Error),
}

/// Waits between tries, and gives up in the end.
struct Patience(Box<dyn Iterator<Item = Duration> + Send>);

impl Patience {
    fn new() -> Self {
        Self(Box::new(call::delays()))
    }

    async fn after(&mut self, error: Error) -> Result<(), WriteError> {
        let Some(delay) = self.0.next() else {
            return Err(error.into());
        };
        let delay = error.retry_after().map_or(delay, |asked| asked.max(delay));
        tracing::debug!(%error, ?delay, "trying the write again");
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

fn managed_fields(object: &Value) -> &[Value] {
    object["metadata"]["managedFields"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// Whether a write of `body` as `manager` has arrived in `now`.
fn arrived(body: &Value, manager: &str, now: &Value) -> bool {
    managed_fields(now).iter().any(|entry| entry["manager"] == manager) && write::holds(body, now)
}

struct Writer<'a> {
    client: &'a Client,
    place: &'a Place,
    dry_run: bool,
}

impl Writer<'_> {
    fn object(&self) -> String {
        let Place {
            group,
            plural,
            namespace,
            name,
            ..
        } = self.place;
        let dot = if group.is_empty() { "" } else { "." };
        let within = namespace.as_deref().unwrap_or_default();
        let slash = if within.is_empty() { "" } else { "/" };
        format!("{plural}{dot}{group} {within}{slash}{name}")
    }

    fn collection(&self, body: Option<&Value>) -> Collection {
        let version = body
            .and_then(|body| body["apiVersion"].as_str())
            .map(|text| text.split_once('/').unwrap_or(("", text)))
            .filter(|(group, _)| *group == self.place.group)
            .map_or(self.place.version.as_str(), |(_, version)| version);
        Collection {
            group: self.place.group.clone(),
            version: version.to_owned(),
            plural: self.place.plural.clone(),
            namespace: self.place.namespace.clone(),
        }
    }

    fn query(&self, manager: &str) -> String {
        let manager = utf8_percent_encode(manager, NON_ALPHANUMERIC);
        // Unknown fields are dropped and show as a difference; a warning would go to nobody.
        let mut query = format!("fieldManager={manager}&fieldValidation=Ignore");
        if self.dry_run {
            query.push_str("&dryRun=All");
        }
        query
    }

    /// The object as it is now; `None` where it is absent.
    async fn read(&self) -> Result<Option<Value>, WriteError> {
        let what = format!("get {}", self.object());
        let uri = self.collection(None).item_path(&self.place.name);
        match list::get_object(self.client, &uri, &what).await {
            Ok(bytes) => Ok(Some(self.parse(&bytes)?)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The object as it is now, where it is still the one with `uid`.
    async fn read_same(&self, uid: &str) -> Result<Value, WriteError> {
        match self.read().await? {
            None => Err(self.drift("was deleted")),
            Some(now) if meta(&now, "uid") != uid => Err(self.drift("was deleted and created again")),
            Some(now) => Ok(now),
        }
    }

    fn parse(&self, bytes: &Bytes) -> Result<Value, Error> {
        serde_json::from_slice(bytes).map_err(|source| Error::Unreadable {
            what: self.object(),
            source,
        })
    }

    fn drift(&self, what: &str) -> WriteError {
        WriteError::Drift(format!("{} {what} since the plan was made", self.object()))
    }

    async fn attempt(
        &self,
        verb: &str,
        method: Method,
        uri: &str,
        content_type: &str,
        body: &Value,
    ) -> Result<Tried, WriteError> {
        let what = format!("{verb} {}", self.object());
        let unwritable = |error: serde_json::Error| Error::api(what.as_str(), kube::Error::SerdeError(error));
        let bytes = serde_json::to_vec(body).map_err(unwritable)?;
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(CONTENT_TYPE, content_type)
            .body(Body::from(bytes))
            .map_err(|error| Error::api(what.as_str(), kube::Error::HttpError(error)))?;
        let error = match call::once(&what, DEADLINE, call::exchange(self.client, request)).await {
            Ok((status, bytes)) => return Ok(Tried::Done(status, self.parse(&bytes)?)),
            Err(error) => self.without_values(error),
        };
        match error.code() {
            Some(409) => Ok(Tried::Conflict(error)),
            Some(404) => Ok(Tried::Gone(error)),
            Some(429) => Ok(Tried::Busy(error)),
            _ if error.class() == Class::Transient => Ok(Tried::Unknown(error)),
            _ => Err(error.into()),
        }
    }

    /// What a server or a webhook says about a Secret may quote its values.
    fn without_values(&self, error: Error) -> Error {
        if !self.place.group.is_empty() || self.place.plural != "secrets" {
            return error;
        }
        let Error::Api { what, source } = error else {
            return error;
        };
        match *source {
            kube::Error::Api(mut status) => {
                let fields: Vec<String> = status
                    .details
                    .iter_mut()
                    .flat_map(|details| std::mem::take(&mut details.causes))
                    .map(|cause| cause.field)
                    .filter(|field| !field.is_empty())
                    .collect();
                let spoken = status
                    .message
                    .split_once("denied the request")
                    .map(|(who, _)| who.to_owned());
                status.message = match (spoken, fields.is_empty()) {
                    (Some(who), _) => format!("{who}denied the request"),
                    (None, false) => format!("refused because of {}", fields.join(", ")),
                    (None, true) => "refused; the reason may hold values of the Secret and is not shown".to_owned(),
                };
                Error::api(what, kube::Error::Api(status))
            }
            other => Error::api(what, other),
        }
    }

    async fn replace(&self, how: How, manager: &str, body: &Value, replaces: Digest) -> Result<Value, WriteError> {
        let uri = self.collection(Some(body)).item_path(&self.place.name);
        let query = self.query(manager);
        let (verb, method, uri, content_type) = match how {
            How::Apply => (
                "apply",
                Method::PATCH,
                format!("{uri}?{query}&force=true"),
                "application/apply-patch+yaml",
            ),
            How::Put => ("update", Method::PUT, format!("{uri}?{query}"), "application/json"),
        };
        let mut body = body.clone();
        let mut patience = Patience::new();
        let mut in_doubt = false;
        loop {
            let error = match self.attempt(verb, method.clone(), &uri, content_type, &body).await? {
                Tried::Done(_, object) => return Ok(object),
                Tried::Busy(error) => {
                    patience.after(error).await?;
                    continue;
                }
                Tried::Unknown(error) => {
                    in_doubt |= !self.dry_run;
                    error
                }
                Tried::Conflict(error) | Tried::Gone(error) => error,
            };
            let now = self.read_same(meta(&body, "uid")).await?;
            if write::state(&now) == replaces {
                // The object is there, so it is its version that is not served.
                if error.is_not_found() {
                    return Err(error.into());
                }
                body = write::refreshed(&body, &now, how == How::Put);
            } else if in_doubt && arrived(&body, manager, &now) {
                return Ok(now);
            } else {
                return Err(self.drift("changed"));
            }
            patience.after(error).await?;
        }
    }

    async fn create(&self, manager: &str, body: &Value) -> Result<Value, WriteError> {
        let uri = format!("{}?{}", self.collection(Some(body)).path(), self.query(manager));
        let mut patience = Patience::new();
        let mut in_doubt = false;
        loop {
            let tried = self
                .attempt("create", Method::POST, &uri, "application/json", body)
                .await?;
            if let Tried::Done(_, object) = tried {
                return Ok(object);
            }
            if let Some(object) = self
                .not_created(tried, &mut in_doubt, &mut patience, manager, body)
                .await?
            {
                return Ok(object);
            }
        }
    }

    async fn create_by_apply(&self, manager: &str, body: &Value) -> Result<Value, WriteError> {
        let uri = self.collection(Some(body)).item_path(&self.place.name);
        let uri = format!("{uri}?{}&force=false", self.query(manager));
        // An apply has no precondition "absent", and where nothing conflicts it would merge into what appeared.
        let mut absent = body.clone();
        absent["metadata"]["resourceVersion"] = NEVER.into();
        let mut patience = Patience::new();
        let mut in_doubt = false;
        loop {
            let tried = self
                .attempt("apply", Method::PATCH, &uri, "application/apply-patch+yaml", &absent)
                .await?;
            match tried {
                Tried::Done(StatusCode::CREATED, object) => return Ok(object),
                // A server that does not look at the version.
                Tried::Done(_, object) if in_doubt => return Ok(object),
                Tried::Done(..) => return Err(self.drift("appeared")),
                other => {
                    if let Some(object) = self
                        .not_created(other, &mut in_doubt, &mut patience, manager, body)
                        .await?
                    {
                        return Ok(object);
                    }
                }
            }
        }
    }

    /// What became of a create that did not succeed: the object, where it arrived all the same; `None` to try again.
    async fn not_created(
        &self,
        tried: Tried,
        in_doubt: &mut bool,
        patience: &mut Patience,
        manager: &str,
        body: &Value,
    ) -> Result<Option<Value>, WriteError> {
        let error = match tried {
            Tried::Done(_, object) => return Ok(Some(object)),
            // A create is not found where its namespace or its version is not there.
            Tried::Gone(error) => return Err(error.into()),
            Tried::Busy(error) => {
                patience.after(error).await?;
                return Ok(None);
            }
            Tried::Unknown(error) => {
                *in_doubt |= !self.dry_run;
                error
            }
            Tried::Conflict(error) => error,
        };
        match self.read().await? {
            Some(now) if *in_doubt && arrived(body, manager, &now) => Ok(Some(now)),
            Some(_) => Err(self.drift("appeared")),
            // Quota, too, is counted by compare-and-swap, and conflicts.
            None => {
                patience.after(error).await?;
                Ok(None)
            }
        }
    }

    async fn give_back(
        &self,
        target: &[Value],
        from: Option<&LiveState>,
        before: Option<&Value>,
    ) -> Result<Value, WriteError> {
        let mut current = match (before, from) {
            (Some(object), _) => object.clone(),
            (None, Some(live)) => {
                let now = self.read_same(&live.uid).await?;
                if write::state(&now) != live.state {
                    return Err(self.drift("changed"));
                }
                now
            }
            (None, None) => return Err(self.drift("cannot be told apart")),
        };
        let uid = meta(&current, "uid").to_owned();
        let base = match (before, from) {
            (None, Some(live)) => live.managed_fields.clone(),
            _ => managed_fields(&current).to_vec(),
        };
        let uri = self.collection(None).item_path(&self.place.name);
        let uri = format!("{uri}?{}", self.query(write::RESTORING));
        let mut patience = Patience::new();
        loop {
            let owners = write::restored(target, &base, managed_fields(&current));
            // A patch has no other precondition than the resourceVersion that it writes.
            let patch = json!([
                {"op": "add", "path": "/metadata/resourceVersion", "value": meta(&current, "resourceVersion")},
                {"op": "add", "path": "/metadata/managedFields", "value": owners},
            ]);
            let tried = self
                .attempt("patch", Method::PATCH, &uri, "application/json-patch+json", &patch)
                .await?;
            let error = match tried {
                Tried::Done(_, object) => return Ok(object),
                Tried::Conflict(error) | Tried::Gone(error) | Tried::Busy(error) | Tried::Unknown(error) => error,
            };
            patience.after(error).await?;
            current = self.read_same(&uid).await?;
            if !write::is_unfinished(managed_fields(&current)) {
                return Ok(current);
            }
        }
    }

    async fn merge(&self, manager: &str, body: &Value) -> Result<Value, WriteError> {
        let uri = self.collection(None).item_path(&self.place.name);
        let uri = format!("{uri}?{}", self.query(manager));
        let mut patience = Patience::new();
        // The server checks a UID in a patch only against what it patches, so that it is looked at first.
        self.read_same(meta(body, "uid")).await?;
        loop {
            let tried = self
                .attempt("patch", Method::PATCH, &uri, "application/merge-patch+json", body)
                .await?;
            let error = match tried {
                Tried::Done(_, object) => return Ok(object),
                Tried::Conflict(error) | Tried::Gone(error) => {
                    self.read_same(meta(body, "uid")).await?;
                    error
                }
                Tried::Busy(error) | Tried::Unknown(error) => error,
            };
            patience.after(error).await?;
        }
    }

    async fn delete(&self, uid: &str, resource_version: &str, deletes: Digest) -> Result<Value, WriteError> {
        let uri = self.collection(None).item_path(&self.place.name);
        let mut resource_version = resource_version.to_owned();
        let mut patience = Patience::new();
        loop {
            // A server that finds options in the body does not look at those in the query.
            let dry_run: &[&str] = if self.dry_run { &["All"] } else { &[] };
            let body = json!({
                "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background", "dryRun": dry_run,
                "preconditions": {"uid": uid, "resourceVersion": resource_version},
            });
            let tried = self
                .attempt("delete", Method::DELETE, &uri, "application/json", &body)
                .await?;
            let error = match tried {
                Tried::Done(..) | Tried::Gone(_) => return Ok(Value::Null),
                Tried::Conflict(error) | Tried::Busy(error) | Tried::Unknown(error) => error,
            };
            if error.is_conflict() {
                let now = match self.read().await? {
                    None => return Ok(Value::Null),
                    Some(now) if meta(&now, "uid") != uid => return Err(self.drift("was deleted and created again")),
                    Some(now) => now,
                };
                // It goes already, by an earlier try or by somebody else.
                if !now["metadata"]["deletionTimestamp"].is_null() {
                    return Ok(Value::Null);
                }
                if write::state(&now) != deletes {
                    return Err(self.drift("changed"));
                }
                meta(&now, "resourceVersion").clone_into(&mut resource_version);
            }
            patience.after(error).await?;
        }
    }
}
