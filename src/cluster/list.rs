//! Paged lists that are never held whole: one page is read, split into raw objects, and let go.

use bytes::Bytes;
use http::{Request, header::ACCEPT};
use kube::{Client, client::Body};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    call,
    error::{Error, Result},
};

/// Objects a page, as the API server's own clients use.
pub const PAGE: u32 = 500;
/// Objects a page of metadata, which are small and cheap for the server.
const METADATA_PAGE: u32 = 2000;
/// Above this size the next page asks for fewer objects, so that a kind with large objects stays small in memory.
const LARGE_PAGE_BYTES: usize = 8 * 1024 * 1024;
const ONE_AS_METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const AS_METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

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

/// One page: its raw bytes, and what is in them.
pub struct Page {
    body: Bytes,
    what: String,
    metadata_only: bool,
}

/// The objects of a page, borrowed from its bytes.
#[derive(Deserialize)]
pub struct Items<'a> {
    /// Each object as the server wrote it; metadata lists say `null` where there is none.
    #[serde(borrow, default, deserialize_with = "null_is_empty")]
    pub items: Vec<&'a RawValue>,
    metadata: PageMeta,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Vec<&'de RawValue>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    #[serde(rename = "continue")]
    continue_token: Option<String>,
    resource_version: Option<String>,
}

impl Items<'_> {
    /// The collection's resourceVersion.
    pub fn resource_version(&self) -> Option<&str> {
        self.metadata.resource_version.as_deref()
    }
}

impl Page {
    /// Splits the page into its objects (about 2 µs an object).
    pub fn items(&self) -> Result<Items<'_>> {
        serde_json::from_slice(&self.body).map_err(|source| Error::Unreadable {
            what: self.what.clone(),
            source,
        })
    }

    /// Whether it holds `PartialObjectMetadata`.
    pub fn is_metadata(&self) -> bool {
        self.metadata_only
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
        (self.metadata_only, self.limit) = (false, PAGE);
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
        self.next = Some(tokio::spawn(async move {
            fetch_page(&client, &collection, limit, continue_token.as_deref(), metadata_only).await
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
        if fetched.page.len() > LARGE_PAGE_BYTES && self.limit > 10 {
            self.limit = (self.limit / 4).max(10);
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
) -> Result<Fetched> {
    let what = collection.to_string();
    let mut uri = format!("{}?limit={limit}", collection.path());
    if let Some(token) = continue_token {
        uri.push_str("&continue=");
        uri.push_str(&percent_encoding::utf8_percent_encode(token, percent_encoding::NON_ALPHANUMERIC).to_string());
    }
    let accept = if metadata_only { AS_METADATA } else { "application/json" };
    let body = call::repeat(&what, call::PAGE_DEADLINE, || get_bytes(client, &uri, accept)).await?;
    let page = Page {
        body,
        what,
        metadata_only,
    };
    let continue_token = page.items()?.metadata.continue_token.filter(|t| !t.is_empty());
    Ok(Fetched { page, continue_token })
}

/// GET `uri` as raw bytes; an error answer becomes the API's own `Status`.
async fn get_bytes(client: &Client, uri: &str, accept: &str) -> kube::Result<Bytes> {
    let request = Request::get(uri)
        .header(ACCEPT, accept)
        .body(Body::empty())
        .map_err(kube::Error::HttpError)?;
    Ok(call::exchange(client, request).await?.1)
}

/// The object at `uri`, as JSON.
pub async fn get_object(client: &Client, uri: &str, what: &str) -> Result<Bytes> {
    call::repeat(what, call::DEADLINE, || get_bytes(client, uri, "application/json")).await
}

/// The `PartialObjectMetadata` of the object at `uri`, as JSON.
pub async fn get_metadata(client: &Client, uri: &str, what: &str) -> Result<Bytes> {
    call::repeat(what, call::DEADLINE, || get_bytes(client, uri, ONE_AS_METADATA)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_split_into_raw_objects_without_parsing_them() {
        let body = Bytes::from_static(
            br#"{"kind":"List","metadata":{"resourceVersion":"7","continue":"x","remainingItemCount":3},"items":[{"a":1},{"b":[2]}]}"#,
        );
        let page = Page {
            body,
            what: "test".into(),
            metadata_only: false,
        };
        let items = page.items().unwrap();
        assert_eq!(items.items[1].get(), r#"{"b":[2]}"#);
        assert_eq!(items.resource_version(), Some("7"));
    }

    #[test]
    fn a_list_without_objects_is_read_whether_it_says_null_or_nothing() {
        for body in [
            &br#"{"metadata":{},"items":null}"#[..],
            br#"{"metadata":{},"items":[]}"#,
        ] {
            let page = Page {
                body: Bytes::from_static(body),
                what: "test".into(),
                metadata_only: true,
            };
            assert!(page.items().unwrap().items.is_empty());
        }
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
