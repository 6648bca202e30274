//! Where blobs live. The repository needs create-if-absent, never an update in place.

pub mod object_store;
pub mod secrets;

#[cfg(test)]
#[cfg(feature = "operator")]
pub mod fault;

use std::{fmt::Debug, ops::Range, time::Duration};

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use jiff::Timestamp;

use super::error::{Error, Result};

/// Whether [`Backend::put_new`] made the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The blob did not exist and does now.
    Created,
    /// The key was taken; nothing was written.
    AlreadyExists,
}

/// One blob of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Full key, for example `packs/0f3c…`.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, by the backend's clock.
    pub modified: Timestamp,
}

/// A place for immutable blobs. Keys are `<prefix>/<name>` of lower-case letters, digits and `-`.
///
/// Listings are consistent: they show every blob whose `put_new` returned before the call.
#[async_trait]
pub trait Backend: Send + Sync + Debug {
    /// Writes a blob unless its key is taken. Atomic: readers see all of it or nothing.
    async fn put_new(&self, key: &str, blob: Vec<Bytes>) -> Result<Put>;
    /// The whole blob, `None` when there is none.
    async fn get(&self, key: &str) -> Result<Option<Bytes>>;
    /// A part of a blob, `None` when there is no blob. A range beyond its end is an error or a shorter answer.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Bytes>>;
    /// Blobs under a prefix that ends in `/`, or all with an empty one; in no order.
    async fn list(&self, prefix: &str) -> Result<Vec<BlobInfo>>;
    /// Removes a blob; one that is not there is fine.
    async fn delete(&self, key: &str) -> Result<()>;
    /// Removes what torn writes left behind before `older_than`; returns how many pieces.
    async fn sweep(&self, older_than: Timestamp) -> Result<u64>;
    /// Most bytes this place may hold.
    fn quota(&self) -> Option<u64> {
        None
    }
}

/// Longest wait for one call, and for all tries of it together.
const CALL_DEADLINE: Duration = Duration::from_secs(60);
const TOTAL_DEADLINE: Duration = Duration::from_secs(180);

/// What a backend is doing, for deadlines and messages.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub backend: &'a str,
    pub operation: &'static str,
    pub key: &'a str,
}

impl Call<'_> {
    pub fn failed(&self, reason: &dyn ToString, transient: bool) -> Error {
        Error::Backend {
            backend: self.backend.to_owned(),
            operation: self.operation,
            key: self.key.to_owned(),
            reason: reason.to_string(),
            transient,
            retry_after: None,
        }
    }

    pub fn forbidden(&self, reason: &dyn ToString) -> Error {
        Error::Forbidden {
            backend: self.backend.to_owned(),
            operation: self.operation,
            key: self.key.to_owned(),
            reason: reason.to_string(),
        }
    }

    /// Tries with a deadline each, backs off with jitter while the failure is transient, and honours what the server asks for.
    pub async fn attempt<T, Fut>(&self, run: impl FnMut() -> Fut) -> Result<T>
    where
        Fut: Future<Output = Result<T>>,
    {
        let mut run = run;
        let tries = || {
            let one = run();
            async move {
                tokio::time::timeout(CALL_DEADLINE, one)
                    .await
                    .unwrap_or_else(|_| Err(self.failed(&format!("no answer within {CALL_DEADLINE:?}"), true)))
            }
        };
        let policy = ExponentialBuilder::default()
            .with_jitter()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(Duration::from_secs(5))
            .with_max_times(6);
        let all = tries
            .retry(policy)
            .when(Error::is_transient)
            .adjust(|error: &Error, delay| delay.map(|d| error.retry_after().map_or(d, |asked| asked.max(d))));
        tokio::time::timeout(TOTAL_DEADLINE, all)
            .await
            .unwrap_or_else(|_| Err(self.failed(&format!("no success within {TOTAL_DEADLINE:?}"), true)))
    }
}
