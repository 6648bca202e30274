//! Paged lists that are never held whole: one page is read, split into raw objects, and let go.

use std::ops::Range;

use bytes::Bytes;
use http::{Request, header::ACCEPT};
use kube::{Client, client::Body};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    call,
    error::{Error, Result},
    metadata::{self, Metadata},
};

/// Objects a page, as the API server's own clients use.
pub const PAGE: u32 = 500;
/// Objects a page of metadata, which are small and cheap for the server.
const METADATA_PAGE: u32 = 2000;
/// What such a page takes in protobuf, roughly: most of it are `managedFields`.
const METADATA_PAGE_BYTES: usize = 2 << 20;
/// Above this size the next page asks for fewer objects, so that a kind with large objects stays small in memory.
const LARGE_PAGE_BYTES: usize = 8 * 1024 * 1024;
const ONE_AS_METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// What is listed.
#[derive(Clone, Debug)]
pub struct Collection {
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource name.
    pub plural: String,
    /// One namespace, or all of them (and cluster-scoped kinds).
    pub namespace: Option<String>,
}

/// What a name may hold unescaped in a path.
const IN_PATH: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_');

impl Collection {
    /// Path of the object `name` in `namespace`.
    pub fn object_path(&self, namespace: &str, name: &str) -> String {
        let within = Self {
            namespace: Some(namespace.to_owned()),
            ..self.clone()
        };
        within.item_path(name)
    }

    /// Path of the object `name` in this collection.
    pub fn item_path(&self, name: &str) -> String {
        format!(
            "{}/{}",
            self.path(),
            percent_encoding::utf8_percent_encode(name, IN_PATH)
        )
    }

    /// Path of the collection in URLs.
    pub fn path(&self) -> String {
        let root = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        match &self.namespace {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }
}

impl std::fmt::Display for Collection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "list {}", self.plural)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        match &self.namespace {
            Some(namespace) => write!(f, " in {namespace}"),
            None => write!(f, " in all namespaces"),
        }
    }
}

/// One page: its raw bytes, and where the objects lie in them; or the metadata of its objects.
pub struct Page {
    body: Bytes,
    objects: Vec<Range<usize>>,
    metadata: Option<Vec<Metadata>>,
}

/// A list as the server wrote it, borrowed from its bytes.
#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
    metadata: PageMeta,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    #[serde(rename = "continue")]
    continue_token: Option<String>,
}

impl Page {
    /// Splits a page into its objects without parsing them (about 2 µs an object); with the token of the next page.
    fn split(body: Bytes) -> serde_json::Result<(Self, Option<String>)> {
        let list: List<'_> = serde_json::from_slice(&body)?;
        let start = body.as_ptr().addr();
        let range = |item: &&RawValue| {
            let from = item.get().as_ptr().addr() - start;
            from..from + item.get().len()
        };
        let objects = list.items.iter().flatten().map(range).collect();
        let continue_token = list.metadata.continue_token.filter(|token| !token.is_empty());
        let page = Self {
            body,
            objects,
            metadata: None,
        };
        Ok((page, continue_token))
    }

    fn of_metadata(body: Bytes) -> serde_json::Result<(Self, Option<String>)> {
        let (objects, continue_token) = metadata::list(&body)?;
        let page = Self {
            body,
            objects: Vec::new(),
            metadata: Some(objects),
        };
        Ok((page, continue_token))
    }

    /// Each whole object as the server wrote it, in JSON; none of a page of metadata.
    pub fn objects(&self) -> impl Iterator<Item = &[u8]> {
        self.objects.iter().map(|range| &self.body[range.clone()])
    }

    /// The metadata of its objects; `None` where it holds whole ones, and when asked again.
    pub fn take_metadata(&mut self) -> Option<Vec<Metadata>> {
        self.metadata.take()
    }

    /// Bytes of the page as it came.
    pub fn len(&self) -> usize {
        self.body.len()
    }

    /// Whether the page has no bytes.
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }
}

/// Pages of one collection; the next page is fetched while the last one is worked on.
pub struct Pager {
    client: Client,
    collection: Collection,
    metadata_only: bool,
    limit: u32,
    /// Bytes of the largest page so far: the next ones need no more, as a rule.
    largest: usize,
    next: Option<tokio::task::JoinHandle<Result<Fetched>>>,
    /// Where the page that was given last began, …
    current: Option<String>,
    /// … and the one that is being fetched.
    following: Option<String>,
}

struct Fetched {
    page: Page,
    continue_token: Option<String>,
}

impl Pager {
    /// Starts to list; `metadata_only` asks for `PartialObjectMetadata`.
    pub fn start(client: Client, collection: Collection, metadata_only: bool) -> Self {
        let mut pager = Self {
            client,
            collection,
            metadata_only,
            limit: if metadata_only { METADATA_PAGE } else { PAGE },
            // A buffer that grows is copied again and again; what is not filled costs nothing.
            largest: if metadata_only { METADATA_PAGE_BYTES } else { 0 },
            next: None,
            current: None,
            following: None,
        };
        pager.fetch(None);
        pager
    }

    /// Gives the last page once more, now with whole objects, and all that follow too. A `continue` token does not depend on what is
    /// asked for, so the list goes on at the same revision.
    pub fn again_whole(&mut self) {
        if let Some(task) = self.next.take() {
            task.abort();
        }
        (self.metadata_only, self.limit, self.largest) = (false, PAGE, 0);
        self.fetch(self.current.clone());
    }

    fn fetch(&mut self, continue_token: Option<String>) {
        self.following.clone_from(&continue_token);
        let (client, collection, limit, metadata_only) = (
            self.client.clone(),
            self.collection.clone(),
            self.limit,
            self.metadata_only,
        );
        let expected = self.largest + self.largest / 16;
        self.next = Some(tokio::spawn(async move {
            fetch_page(
                &client,
                &collection,
                limit,
                continue_token.as_deref(),
                metadata_only,
                expected,
            )
            .await
        }));
    }

    /// The next page, or `None` after the last.
    ///
    /// # Errors
    /// `is_expired` when the list took longer than the server keeps its revision: start again.
    pub async fn next(&mut self) -> Result<Option<Page>> {
        let Some(task) = self.next.take() else { return Ok(None) };
        let fetched = task.await.map_err(|_| Error::Deadline {
            what: self.collection.to_string(),
            after: call::PAGE_DEADLINE,
        })??;
        self.current = self.following.take();
        self.largest = self.largest.max(fetched.page.len());
        if fetched.page.len() > LARGE_PAGE_BYTES && self.limit > 10 {
            self.limit = (self.limit / 4).max(10);
            self.largest = 0;
        }
        if let Some(token) = fetched.continue_token {
            self.fetch(Some(token));
        }
        Ok(Some(fetched.page))
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        if let Some(task) = self.next.take() {
            task.abort();
        }
    }
}

async fn fetch_page(
    client: &Client,
    collection: &Collection,
    limit: u32,
    continue_token: Option<&str>,
    metadata_only: bool,
    expected: usize,
) -> Result<Fetched> {
    let what = collection.to_string();
    let mut uri = format!("{}?limit={limit}", collection.path());
    if let Some(token) = continue_token {
        uri.push_str("&continue=");
        uri.push_str(&percent_encoding::utf8_percent_encode(token, percent_encoding::NON_ALPHANUMERIC).to_string());
    }
    let accept = if metadata_only {
        metadata::ACCEPT_LIST
    } else {
        "application/json"
    };
    let body = call::repeat(&what, call::PAGE_DEADLINE, || get_bytes(client, &uri, accept, expected)).await?;
    let page = if metadata_only {
        Page::of_metadata(body)
    } else {
        Page::split(body)
    };
    let (page, continue_token) = page.map_err(|source| Error::Unreadable { what, source })?;
    Ok(Fetched { page, continue_token })
}

/// GET `uri` as raw bytes; an error answer becomes the API's own `Status`.
async fn get_bytes(client: &Client, uri: &str, accept: &str, expected: usize) -> kube::Result<Bytes> {
    let request = Request::get(uri)
        .header(ACCEPT, accept)
        .body(Body::empty())
        .map_err(kube::Error::HttpError)?;
    Ok(call::exchange_sized(client, request, expected).await?.1)
}

/// The object at `uri`, as JSON.
pub async fn get_object(client: &Client, uri: &str, what: &str) -> Result<Bytes> {
    call::repeat(what, call::DEADLINE, || get_bytes(client, uri, "application/json", 0)).await
}

/// The `PartialObjectMetadata` of the object at `uri`, as JSON.
pub async fn get_metadata(client: &Client, uri: &str, what: &str) -> Result<Bytes> {
    call::repeat(what, call::DEADLINE, || get_bytes(client, uri, ONE_AS_METADATA, 0)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_split_into_raw_objects_without_parsing_them() {
        let body = Bytes::from_static(
            br#"{"kind":"List","metadata":{"resourceVersion":"7","continue":"x","remainingItemCount":3},"items":[{"a":1},{"b":[2]}]}"#,
        );
        let (page, token) = Page::split(body).unwrap();
        let objects: Vec<_> = page.objects().collect();
        assert_eq!(objects, [&br#"{"a":1}"#[..], br#"{"b":[2]}"#]);
        assert_eq!(token.as_deref(), Some("x"));
    }

    #[test]
    fn paths_name_group_version_and_namespace() {
        let of = |group: &str, namespace: Option<&str>| {
            Collection {
                group: group.into(),
                version: "v1".into(),
                plural: "things".into(),
                namespace: namespace.map(Into::into),
            }
            .path()
        };
        assert_eq!(of("", Some("shop")), "/api/v1/namespaces/shop/things");
        assert_eq!(of("apps", None), "/apis/apps/v1/things");
        let roles = Collection {
            group: "rbac.authorization.k8s.io".into(),
            version: "v1".into(),
            plural: "roles".into(),
            namespace: None,
        };
        assert_eq!(
            roles.object_path("shop", "team:read-only"),
            "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/roles/team%3Aread-only"
        );
    }
}
