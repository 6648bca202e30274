//! Waiting for objects by watching them: no list is made, and nothing is asked twice.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::{StreamExt as _, stream::BoxStream};
use kube::{Client, core::WatchEvent};
use serde_json::Value;
use tokio::time::Instant;

use super::{call, list::Collection};

/// The server ends a watch after this long; the next one goes on where it stood.
const ONE_WATCH: Duration = Duration::from_secs(240);
/// Any state the server has, then everything that follows.
const ANY: &str = "0";

/// What a watch shows of an object.
pub enum Seen<'a> {
    /// As it is now.
    There(&'a Value),
    /// As it was when it went.
    Gone(&'a Value),
}

/// What is watched.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Where the objects are.
    pub collection: Collection,
    /// One of them; absent is all.
    pub name: Option<String>,
    /// Changes after this resourceVersion; absent is the present state, which may be a moment old, and all changes after it.
    pub from: Option<String>,
}

/// Shows every change to `see` until it answers; `None` where `deadline` passed first.
///
/// Errors of the server are waited out: a watch that breaks is opened again at the last state that was seen, and from the
/// present state where the server no longer has it.
pub async fn until<T>(
    client: &Client,
    subject: &Subject,
    deadline: Instant,
    see: impl FnMut(Seen<'_>) -> Option<T>,
) -> Option<T> {
    tokio::time::timeout_at(deadline, follow(client, subject, see))
        .await
        .ok()
}

async fn follow<T>(client: &Client, subject: &Subject, mut see: impl FnMut(Seen<'_>) -> Option<T>) -> T {
    let mut from = subject.from.clone().unwrap_or_else(|| ANY.to_owned());
    let mut delays = backoff();
    loop {
        let before = from.clone();
        match open(client, subject, &from).await {
            Ok(events) => {
                if let Some(answer) = read(events, &mut from, &mut see).await {
                    return answer;
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the watch is opened again");
                if error.is_expired() {
                    ANY.clone_into(&mut from);
                }
            }
        }
        if from != before {
            delays = backoff();
        }
        tokio::time::sleep(delays.next().unwrap_or(Duration::from_secs(4))).await;
    }
}

/// Reads one watch to its end; `from` is where the next one goes on.
async fn read<T>(
    mut events: BoxStream<'static, kube::Result<WatchEvent<Value>>>,
    from: &mut String,
    see: &mut impl FnMut(Seen<'_>) -> Option<T>,
) -> Option<T> {
    // The present state comes in no order: only after a bookmark it is known to be whole.
    let mut ordered = from != ANY;
    while let Some(event) = events.next().await {
        let object = match event {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                if let Some(answer) = see(Seen::There(&object)) {
                    return Some(answer);
                }
                object
            }
            Ok(WatchEvent::Deleted(object)) => {
                if let Some(answer) = see(Seen::Gone(&object)) {
                    return Some(answer);
                }
                object
            }
            Ok(WatchEvent::Bookmark(bookmark)) => {
                *from = bookmark.metadata.resource_version;
                ordered = true;
                continue;
            }
            Ok(WatchEvent::Error(status)) => {
                tracing::debug!(message = status.message, "the watch is opened again");
                ANY.clone_into(from);
                return None;
            }
            Err(error) => {
                tracing::debug!(%error, "the watch is opened again");
                return None;
            }
        };
        if let Some(version) = object["metadata"]["resourceVersion"].as_str().filter(|_| ordered) {
            version.clone_into(from);
        }
    }
    None
}

fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(4))
        .without_max_times()
        .build()
}

async fn open(
    client: &Client,
    subject: &Subject,
    from: &str,
) -> super::Result<BoxStream<'static, kube::Result<WatchEvent<Value>>>> {
    let escaped =
        |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let mut uri = format!(
        "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
        subject.collection.path(),
        ONE_WATCH.as_secs(),
        escaped(from)
    );
    if let Some(name) = &subject.name {
        uri.push_str("&fieldSelector=");
        uri.push_str(&escaped(&format!("metadata.name={name}")));
    }
    let what = format!("watch {}", subject.collection.plural);
    let request = http::Request::get(uri)
        .body(Vec::new())
        .map_err(|error| super::Error::api(&what, kube::Error::HttpError(error)))?;
    let events = call::once(&what, call::DEADLINE, client.request_events::<Value>(request)).await?;
    Ok(events.boxed())
}
