//! A stand-in for an API server with many objects in one namespace: answers the lists of that namespace's `ConfigMaps`
//! with generated pages, and hands everything else to the real server. So 100,000 objects need not be written first.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request, Response, StatusCode, header};
use kube::Client;
use serde_json::{Value, json};

use super::data::Kind;
use super::objects::{self, Place};
use super::random::{HEXADECIMAL, Random};

/// Most bytes of a request that are handed on.
const REQUEST_LIMIT: usize = 16 << 20;

/// A listening server; ends when it is dropped.
pub struct GeneratedApi {
    address: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: Client,
    namespace: String,
    place: Place,
    count: usize,
    resource_version: String,
    lists: AtomicU64,
    bytes: AtomicU64,
}

impl GeneratedApi {
    /// Serves on a free port of loopback; calls go on to `upstream`, whoever makes them. `namespace` exists there and has
    /// no `ConfigMap`.
    ///
    /// # Errors
    /// No port is free, or `upstream` does not answer.
    pub async fn start(upstream: Client, namespace: &str, count: usize) -> Result<Self> {
        let path = format!("{}?limit=1", Kind::ConfigMap.collection(namespace));
        let list: Value = upstream.request(Request::get(path).body(Vec::new())?).await?;
        let resource_version = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
        let shared = Arc::new(Shared {
            upstream,
            namespace: namespace.to_owned(),
            place: Place::new(namespace, count, &mut Random::new(3, u64::MAX)),
            count,
            resource_version,
            lists: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .context("no port is free on 127.0.0.1")?;
        let address = format!("http://{}", listener.local_addr()?);
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                eprintln!("the generated API stopped: {error}");
            }
        });
        Ok(Self { address, shared, task })
    }

    /// A kubeconfig for this server, without credentials.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "generated", "cluster": {"server": self.address}}],
            "users": [{"name": "generated", "user": {}}],
            "contexts": [{"name": "generated", "context": {"cluster": "generated", "user": "generated"}}],
            "current-context": "generated",
        })
        .to_string()
    }

    /// Generated pages served so far, and their bytes.
    pub fn served(&self) -> (u64, u64) {
        (
            self.shared.lists.load(Ordering::Relaxed),
            self.shared.bytes.load(Ordering::Relaxed),
        )
    }
}

impl Drop for GeneratedApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response<Body> {
    // No value of these queries is escaped: limits and this server's own tokens are numbers.
    let query: HashMap<&str, &str> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let path = request.uri().path();
    let generated = request.method() == Method::GET
        && !query.contains_key("watch")
        && (path == Kind::ConfigMap.collection(&shared.namespace) || path == "/api/v1/configmaps");
    if generated {
        let accept = request
            .headers()
            .get(header::ACCEPT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        let body = shared.page(&query, accept.contains("PartialObjectMetadataList"));
        shared.lists.fetch_add(1, Ordering::Relaxed);
        shared.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        return reply(StatusCode::OK, body);
    }
    match hand_on(&shared.upstream, request).await {
        Ok(response) => response,
        Err(error) => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "ServiceUnavailable", "code": 503,
                "message": format!("{error:#}"),
            });
            reply(StatusCode::SERVICE_UNAVAILABLE, status.to_string().into_bytes())
        }
    }
}

fn reply(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    response
}

async fn hand_on(upstream: &Client, request: Request<Body>) -> Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, REQUEST_LIMIT)
        .await
        .context("the request is too long")?;
    let target = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::builder().method(parts.method).uri(target);
    for name in [header::ACCEPT, header::CONTENT_TYPE, header::USER_AGENT] {
        if let Some(value) = parts.headers.get(&name) {
            onward = onward.header(name, value);
        }
    }
    let (mut parts, body) = upstream.send(onward.body(body.to_vec().into())?).await?.into_parts();
    for name in [header::TRANSFER_ENCODING, header::CONNECTION] {
        parts.headers.remove(name);
    }
    Ok(Response::from_parts(parts, Body::new(body)))
}

impl Shared {
    /// One page as the API server writes it; tokens are the index of the next object.
    fn page(&self, query: &HashMap<&str, &str>, metadata_only: bool) -> Vec<u8> {
        let start = query
            .get("continue")
            .and_then(|token| token.parse().ok())
            .unwrap_or(0)
            .min(self.count);
        let limit = query
            .get("limit")
            .and_then(|limit| limit.parse().ok())
            .filter(|limit| *limit > 0);
        let end = limit
            .map_or(self.count, |limit: usize| start.saturating_add(limit))
            .min(self.count);
        let mut metadata = json!({"resourceVersion": self.resource_version});
        if end < self.count {
            metadata["continue"] = end.to_string().into();
            metadata["remainingItemCount"] = (self.count - end).into();
        }
        let items: Vec<_> = (start..end)
            .map(|index| config_map(&self.place, index, metadata_only))
            .collect();
        let (kind, version) = if metadata_only {
            ("PartialObjectMetadataList", "meta.k8s.io/v1")
        } else {
            ("ConfigMapList", "v1")
        };
        // The list's metadata come before its items, as the API server writes them.
        let items = Value::Array(items);
        format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":{items}}}"#).into_bytes()
    }
}

/// The `ConfigMap` at `index`, with what the API server adds.
fn config_map(place: &Place, index: usize, metadata_only: bool) -> Value {
    let mut random = Random::new(3, index as u64);
    let mut object = objects::build(Kind::ConfigMap, place, (index / 8, index), 1, &mut random);
    let text = |random: &mut Random, length| random.text(HEXADECIMAL, length);
    let uid = format!(
        "{}-{}-4{}-8{}-{}",
        text(&mut random, 8),
        text(&mut random, 4),
        text(&mut random, 3),
        text(&mut random, 3),
        text(&mut random, 12)
    );
    let time = format!(
        "2026-0{}-1{}T0{}:4{}:1{}Z",
        1 + index % 9,
        index % 7,
        index % 10,
        index % 8,
        index % 6
    );
    let fields: serde_json::Map<_, _> = object.body["data"]
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys)
        .map(|key| (format!("f:{key}"), json!({})))
        .collect();
    let metadata = &mut object.body["metadata"];
    let owned = |field: &str| -> serde_json::Map<_, _> {
        let keys = metadata[field].as_object().into_iter().flat_map(serde_json::Map::keys);
        keys.map(|key| (format!("f:{key}"), json!({}))).collect()
    };
    let managed = json!([{
        "manager": object.manager, "operation": if object.applied { "Apply" } else { "Update" }, "apiVersion": "v1",
        "time": time, "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": fields, "f:metadata": {"f:annotations": owned("annotations"), "f:labels": owned("labels")}},
    }]);
    // Lists come in the order of names, which begin with the application's; here the index stands for it.
    metadata["name"] = format!("cm-{index:07}-{}", object.name).into();
    metadata["uid"] = uid.into();
    metadata["resourceVersion"] = (1_000 + index).to_string().into();
    metadata["creationTimestamp"] = time.into();
    metadata["managedFields"] = managed;
    if metadata_only {
        return json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object.body["metadata"],
        });
    }
    // Objects of a list name neither their kind nor their version.
    if let Some(fields) = object.body.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    object.body
}
