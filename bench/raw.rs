//! RAW, the yardstick: the least calls that the API allows, answers drained unparsed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use http::{Request, header::ACCEPT};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};

/// Objects a page, as the API server's own clients ask for.
pub const PAGE: u64 = 500;
/// The head of a page that the `continue` token is looked for in: the list's metadata comes before its items.
const HEAD: usize = 4096;

/// A kind to list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural name.
    pub plural: String,
}

impl Resource {
    /// The path of the whole collection, in `namespace` or in all.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Requests sent.
    pub requests: u64,
    /// Bytes of the answers' bodies.
    pub bytes: u64,
}

/// Reads every page of `resources`, `connections` of them at once, and keeps nothing.
///
/// # Errors
/// The first list that the API server refuses.
pub async fn list(
    client: &Client,
    resources: &[Resource],
    namespace: Option<&str>,
    connections: usize,
) -> Result<Read> {
    futures::stream::iter(resources)
        .map(|resource| list_one(client, resource.path(namespace)))
        .buffer_unordered(connections)
        .try_fold(Read::default(), |sum, one| async move {
            Ok(Read {
                requests: sum.requests + one.requests,
                bytes: sum.bytes + one.bytes,
            })
        })
        .await
}

async fn list_one(client: &Client, path: String) -> Result<Read> {
    let mut read = Read::default();
    let mut next = Some(String::new());
    while let Some(token) = next {
        let mut uri = format!("{path}?limit={PAGE}");
        if !token.is_empty() {
            uri.push_str("&continue=");
            uri.push_str(&token);
        }
        let (bytes, token) = drain(client, &uri).await?;
        read.requests += 1;
        read.bytes += bytes;
        next = token;
    }
    Ok(read)
}

/// Sends one GET, throws the answer away but for its `continue` token, and returns its size.
async fn drain(client: &Client, uri: &str) -> Result<(u64, Option<String>)> {
    let request = Request::get(uri)
        .header(ACCEPT, "application/json")
        .body(Body::empty())?;
    let response = client.send(request).await.with_context(|| format!("GET {uri}"))?;
    let status = response.status();
    let mut body = response.into_body();
    let (mut head, mut bytes) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.with_context(|| format!("GET {uri}"))?.into_data() else {
            continue;
        };
        bytes += data.len() as u64;
        head.extend_from_slice(&data[..data.len().min(HEAD - head.len())]);
    }
    if !status.is_success() {
        bail!("GET {uri}: {status}: {}", String::from_utf8_lossy(&head));
    }
    Ok((bytes, continue_token(&head)))
}

/// The list's token in the `head` of a page; tokens are URL-safe base64.
pub fn continue_token(head: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    let metadata = head.split("\"items\":").next()?;
    let token = metadata.split("\"continue\":\"").nth(1)?.split('"').next()?;
    (!token.is_empty()).then(|| token.to_owned())
}

/// The least LIST requests that any client needs for `counts` objects by kind: a full page each, and one request for a
/// kind that turns out empty, since nothing else tells that it is.
pub fn least_requests<'a>(counts: impl IntoIterator<Item = &'a u64>) -> u64 {
    counts.into_iter().map(|count| count.div_ceil(PAGE).max(1)).sum()
}

/// How many objects each of `resources` has, by metadata of one object each.
///
/// # Errors
/// The first list that the API server refuses.
pub async fn counts(
    client: &Client,
    resources: &[Resource],
    namespace: Option<&str>,
) -> Result<BTreeMap<Resource, u64>> {
    let mut counts = BTreeMap::new();
    for resource in resources {
        let request = Request::get(format!("{}?limit=1", resource.path(namespace)))
            .header(
                ACCEPT,
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            )
            .body(Vec::new())?;
        let list: serde_json::Value = client.request(request).await?;
        let shown = list["items"].as_array().map_or(0, |items| items.len() as u64);
        let rest = list["metadata"]["remainingItemCount"].as_u64().unwrap_or(0);
        counts.insert(resource.clone(), shown + rest);
    }
    Ok(counts)
}
