//! Backends that fail on demand, for tests: a process that dies between any two writes, lost answers, writes that wait at a gate.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use axum::{
    Router,
    extract::{Path, RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Backend, BlobInfo, Call, Put};
use crate::repository::{Result, pack::lock};

/// When the process dies: at the `write`-th write from now, before or after that write took effect.
#[derive(Clone, Copy, Debug)]
pub struct Crash {
    pub write: usize,
    pub after: bool,
}

/// Decides the fate of writes.
#[derive(Default, Debug)]
pub struct Faults {
    crash: Mutex<Option<Crash>>,
    writes: AtomicUsize,
    dead: AtomicBool,
    /// Answers lost from now on: the write takes effect, the client hears 503.
    pub lose_answers: AtomicUsize,
}

/// What becomes of one write.
#[derive(PartialEq, Eq, Debug)]
pub enum Fate {
    Normal,
    FailBefore,
    FailAfter,
}

impl Faults {
    pub fn crash_at(crash: Crash) -> Arc<Self> {
        let faults = Self::default();
        *lock(&faults.crash) = Some(crash);
        Arc::new(faults)
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    pub fn write(&self) -> Fate {
        if self.is_dead() {
            return Fate::FailBefore;
        }
        let at = self.writes.fetch_add(1, Ordering::SeqCst);
        match *lock(&self.crash) {
            Some(crash) if crash.write == at => {
                self.dead.store(true, Ordering::SeqCst);
                if crash.after { Fate::FailAfter } else { Fate::FailBefore }
            }
            _ => Fate::Normal,
        }
    }
}

/// Holds up calls on keys with a prefix.
#[derive(Debug)]
pub struct Gate {
    pub prefix: &'static str,
    pub reached: Semaphore,
    pub open: Semaphore,
}

impl Gate {
    pub fn new(prefix: &'static str) -> Arc<Self> {
        Arc::new(Self {
            prefix,
            reached: Semaphore::new(0),
            open: Semaphore::new(0),
        })
    }
}

/// A backend that obeys [`Faults`] and a [`Gate`], and counts.
#[derive(Debug)]
pub struct FaultBackend {
    inner: Arc<dyn Backend>,
    faults: Arc<Faults>,
    /// Before writes.
    pub gate: Mutex<Option<Arc<Gate>>>,
    /// Before reads.
    pub read_gate: Mutex<Option<Arc<Gate>>>,
    pub gets: AtomicUsize,
    pub got_bytes: AtomicUsize,
    pub put_bytes: AtomicUsize,
}

impl FaultBackend {
    pub fn new(inner: Arc<dyn Backend>, faults: Arc<Faults>) -> Self {
        Self {
            inner,
            faults,
            gate: Mutex::default(),
            read_gate: Mutex::default(),
            gets: AtomicUsize::new(0),
            got_bytes: AtomicUsize::new(0),
            put_bytes: AtomicUsize::new(0),
        }
    }

    fn alive(&self, key: &str) -> Result<()> {
        if self.faults.is_dead() { Err(died(key)) } else { Ok(()) }
    }

    async fn wait(gate: &Mutex<Option<Arc<Gate>>>, key: &str) {
        let gate = lock(gate).clone();
        if let Some(gate) = gate.filter(|gate| key.starts_with(gate.prefix)) {
            gate.reached.add_permits(1);
            gate.open.acquire().await.unwrap().forget();
        }
    }

    fn read(&self, bytes: Option<&Bytes>) {
        self.gets.fetch_add(1, Ordering::SeqCst);
        self.got_bytes.fetch_add(bytes.map_or(0, Bytes::len), Ordering::SeqCst);
    }
}

fn died(key: &str) -> crate::repository::Error {
    Call {
        backend: "a test",
        operation: "write",
        key,
    }
    .failed(&"the process died", false)
}

#[async_trait]
impl Backend for FaultBackend {
    async fn put_new(&self, key: &str, blob: Vec<Bytes>) -> Result<Put> {
        Self::wait(&self.gate, key).await;
        let fate = self.faults.write();
        if fate == Fate::FailBefore {
            return Err(died(key));
        }
        self.put_bytes
            .fetch_add(blob.iter().map(Bytes::len).sum(), Ordering::SeqCst);
        let put = self.inner.put_new(key, blob).await;
        if fate == Fate::FailAfter { Err(died(key)) } else { put }
    }

    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.alive(key)?;
        Self::wait(&self.read_gate, key).await;
        let bytes = self.inner.get(key).await?;
        self.read(bytes.as_ref());
        Ok(bytes)
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>> {
        self.alive(key)?;
        Self::wait(&self.read_gate, key).await;
        let bytes = self.inner.get_range(key, range).await?;
        self.read(bytes.as_ref());
        Ok(bytes)
    }

    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>> {
        self.alive(prefix)?;
        self.inner.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        Self::wait(&self.gate, key).await;
        let fate = self.faults.write();
        if fate == Fate::FailBefore {
            return Err(died(key));
        }
        let deleted = self.inner.delete(key).await;
        if fate == Fate::FailAfter {
            Err(died(key))
        } else {
            deleted
        }
    }

    async fn sweep(&self, older_than: Timestamp) -> Result<u64> {
        self.alive("")?;
        self.inner.sweep(older_than).await
    }
}

/// Enough of an API server for Secrets: create, get, delete, and metadata lists with label selectors and pages.
#[derive(Default)]
pub struct FakeApi {
    pub secrets: Mutex<BTreeMap<String, Value>>,
    /// Who dies is the client, so a restart swaps this.
    pub faults: Mutex<Arc<Faults>>,
    pub lists: Mutex<Vec<String>>,
    /// Answers of this status before any request is looked at.
    pub refuse: Mutex<Vec<Value>>,
}

fn answer(code: u16, body: &Value) -> Response {
    let json = [("content-type", "application/json")];
    (StatusCode::from_u16(code).unwrap(), json, body.to_string()).into_response()
}

/// Names and values of a query string.
fn query(raw: Option<String>) -> BTreeMap<String, String> {
    let decode = |text: &str| {
        let mut pieces = text.split('%');
        let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
        for piece in pieces {
            bytes.extend(hex::decode(&piece[..2]).unwrap());
            bytes.extend(piece[2..].bytes());
        }
        String::from_utf8(bytes).unwrap()
    };
    let raw = raw.unwrap_or_default();
    raw.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect()
}

type Shared = State<Arc<FakeApi>>;

impl FakeApi {
    pub fn client(self: &Arc<Self>) -> kube::Client {
        let collection = get(list_secrets).post(create_secret);
        let one = get(get_secret).delete(delete_secret);
        let router = Router::new()
            .route("/api/v1/namespaces/{namespace}/secrets", collection)
            .route("/api/v1/namespaces/{namespace}/secrets/{name}", one)
            .with_state(self.clone());
        kube::Client::new(router, "backstep-system")
    }

    fn refused(&self) -> Option<Response> {
        if lock(&self.faults).is_dead() {
            return Some(status(400, "BadRequest", "the process died"));
        }
        let refusal = lock(&self.refuse).pop()?;
        let code = refusal["code"]
            .as_u64()
            .and_then(|code| u16::try_from(code).ok())
            .unwrap_or(500);
        Some(answer(code, &refusal))
    }

    /// Runs a write under the faults.
    fn write(&self, run: impl FnOnce(&mut BTreeMap<String, Value>) -> Response) -> Response {
        if let Some(refused) = self.refused() {
            return refused;
        }
        let faults = lock(&self.faults).clone();
        let fate = faults.write();
        let dead = || status(400, "BadRequest", "the process died");
        if fate == Fate::FailBefore {
            return dead();
        }
        let answered = run(&mut lock(&self.secrets));
        let lost = faults
            .lose_answers
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
            .is_ok();
        match fate {
            Fate::FailAfter => dead(),
            _ if lost => status(503, "ServiceUnavailable", "the answer was lost"),
            _ => answered,
        }
    }
}

pub fn status(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message});
    answer(code, &status)
}

async fn create_secret(State(api): Shared, body: Bytes) -> Response {
    let mut secret: Value = serde_json::from_slice(&body).unwrap();
    let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
    secret["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let size: usize = secret["data"]
        .as_object()
        .unwrap()
        .values()
        .map(|v| v.as_str().unwrap().len() * 3 / 4)
        .sum();
    if size > 1 << 20 {
        return status(422, "Invalid", "data: Too long: may not be more than 1048576 bytes");
    }
    api.write(|secrets| {
        if secrets.contains_key(&name) {
            return status(409, "AlreadyExists", "secrets already exists");
        }
        secrets.insert(name, secret.clone());
        answer(201, &secret)
    })
}

async fn get_secret(State(api): Shared, Path((_, name)): Path<(String, String)>) -> Response {
    if let Some(refused) = api.refused() {
        return refused;
    }
    match lock(&api.secrets).get(&name) {
        Some(secret) => answer(200, secret),
        None => status(404, "NotFound", "secrets not found"),
    }
}

async fn delete_secret(State(api): Shared, Path((_, name)): Path<(String, String)>) -> Response {
    api.write(|secrets| match secrets.remove(&name) {
        Some(secret) => answer(200, &secret),
        None => status(404, "NotFound", "secrets not found"),
    })
}

async fn list_secrets(State(api): Shared, RawQuery(raw): RawQuery, headers: axum::http::HeaderMap) -> Response {
    if let Some(refused) = api.refused() {
        return refused;
    }
    let query = query(raw);
    let accept = headers
        .get("accept")
        .and_then(|accept| accept.to_str().ok())
        .unwrap_or_default();
    lock(&api.lists).push(format!("{accept} {query:?}"));
    let selector = query.get("labelSelector").cloned().unwrap_or_default();
    let wanted: Vec<(&str, &str)> = selector.split(',').filter_map(|term| term.split_once('=')).collect();
    let secrets = lock(&api.secrets);
    let after = query.get("continue").cloned().unwrap_or_default();
    let limit: usize = query
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(usize::MAX);
    let mut found: Vec<_> = secrets
        .iter()
        .filter(|(name, _)| **name > after)
        .filter(|(_, secret)| {
            wanted
                .iter()
                .all(|(label, value)| secret["metadata"]["labels"][*label] == **value)
        })
        .take(limit.saturating_add(1))
        .collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let next = if more {
        found.last().map(|(name, _)| (*name).clone())
    } else {
        None
    };
    let items: Vec<_> = found
        .into_iter()
        .map(|(_, secret)| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": secret["metadata"]}))
        .collect();
    answer(
        200,
        &json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"continue": next, "resourceVersion": "1"}, "items": items,
        }),
    )
}
