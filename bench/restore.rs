//! What brings objects back without Backstep: RAW, a bare client that makes the least writes, and `kubectl apply`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Method, Request, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use testbed::{Access, User, wait_until};

use super::data::{Kind, Object};
use super::load;
use super::raw::{self, Resource};

const PATIENCE: Duration = Duration::from_secs(300);
const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// A write that is ready to be sent.
struct Write {
    method: Method,
    path: String,
    content_type: &'static str,
    body: Bytes,
}

impl Write {
    /// The create of `object` as its first writer did it.
    fn create(object: &Object) -> Result<Self> {
        let collection = object.kind.collection(&object.namespace);
        let body = serde_json::to_vec(&object.body)?.into();
        Ok(if object.applied {
            Self {
                method: Method::PATCH,
                path: format!("{collection}/{}?fieldManager={}", object.name, object.manager),
                content_type: APPLY,
                body,
            }
        } else {
            Self {
                method: Method::POST,
                path: format!("{collection}?fieldManager={}", object.manager),
                content_type: JSON,
                body,
            }
        })
    }

    /// Sends it and throws the answer away unread.
    async fn send(self, client: &Client) -> Result<()> {
        let what = format!("{} {}", self.method, self.path);
        let request = Request::builder()
            .method(self.method)
            .uri(self.path)
            .header(CONTENT_TYPE, self.content_type)
            .body(Body::from(self.body.to_vec()))?;
        let response = client.send(request).await.context(what.clone())?;
        let status = response.status();
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame.context(what.clone())?;
        }
        if !status.is_success() {
            bail!("{what}: {status}");
        }
        Ok(())
    }
}

/// RAW: creates `objects`, `connections` at once, one call each; how long the calls took.
///
/// # Errors
/// The first write that the API server refuses.
pub async fn raw(client: &Client, objects: &[Object], connections: usize) -> Result<Duration> {
    // As the operator: kinds one after the other, in the order of the data.
    let mut steps: Vec<(Kind, Vec<Write>)> = Vec::new();
    for object in objects {
        let write = Write::create(object)?;
        match steps.last_mut() {
            Some((kind, writes)) if *kind == object.kind => writes.push(write),
            _ => steps.push((object.kind, vec![write])),
        }
    }
    let started = Instant::now();
    for (_, writes) in steps {
        futures::stream::iter(writes)
            .map(|write| write.send(client))
            .buffer_unordered(connections)
            .try_collect::<()>()
            .await?;
    }
    Ok(started.elapsed())
}

/// Deletes every object of the kinds of `objects` in their namespaces, and waits until they are gone.
///
/// # Errors
/// The API server's; or what is left after some minutes.
pub async fn clear(client: &Client, namespace: &str, kinds: &[Resource]) -> Result<()> {
    for kind in kinds {
        let path = kind.path(Some(namespace));
        let body = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"});
        load::call(client, Method::DELETE, &path, JSON, &body).await?;
    }
    wait_until(PATIENCE, "the namespace to be empty", async || {
        let left: u64 = raw::counts(client, kinds, Some(namespace)).await?.values().sum();
        if left == 0 {
            return Ok(Some(()));
        }
        bail!("{left} objects are left")
    })
    .await
}

/// Writes `objects` into one file, as `kubectl apply -f` reads them.
///
/// # Errors
/// The file's.
pub fn manifest(objects: &[Object], file: &Path) -> Result<()> {
    let items: Vec<&Value> = objects.iter().map(|object| &object.body).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    std::fs::write(file, serde_json::to_vec(&list)?).with_context(|| format!("cannot write {}", file.display()))
}

/// `kubectl apply --server-side --force-conflicts` of `file`; how long it took.
///
/// # Errors
/// What kubectl prints.
pub async fn kubectl(access: &Access, file: &Path) -> Result<Duration> {
    let file = file.to_str().context("the manifest's path is no text")?;
    let arguments = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=kubectl",
        "-o",
        "name",
        "-f",
        file,
    ];
    let started = Instant::now();
    access.kubectl(&User::admin(), &arguments, None).await?.success()?;
    Ok(started.elapsed())
}

/// Changes one field of `object` as its own writer does it: it stays the only owner.
///
/// # Errors
/// What the API server answers.
pub async fn drift(client: &Client, object: &Object, round: usize) -> Result<()> {
    let mark = format!("drifted-{round}");
    let change = match object.kind {
        Kind::ConfigMap => json!({"data": {"app": mark}}),
        Kind::Secret if object.body.get("data").is_some() => json!({"data": {"username": BASE64.encode(mark)}}),
        Kind::Secret => json!({"stringData": {"username": mark}}),
        _ => json!({"metadata": {"labels": {"team": mark}}}),
    };
    let path = format!("{}/{}", object.kind.collection(&object.namespace), object.name);
    if object.applied {
        let mut body = object.body.clone();
        merge(&mut body, &change);
        let path = format!("{path}?fieldManager={}&force=true", object.manager);
        load::call(client, Method::PATCH, &path, APPLY, &body).await
    } else {
        let path = format!("{path}?fieldManager={}", object.manager);
        load::call(client, Method::PATCH, &path, MERGE, &change).await
    }
}

fn merge(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, value) => into.clone_from(value),
    }
}
