//! One way to call: a deadline for each try, bounded retries of what can be repeated, and the server's `Retry-After` honoured.

use std::{future::Future, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};

use super::error::{Class, Error, Result};

/// Deadline of one try of an ordinary call.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Deadline of one page of a list: 500 large objects on a busy server.
pub const PAGE_DEADLINE: Duration = Duration::from_secs(60);

/// One try with a deadline.
pub async fn once<T>(what: &str, deadline: Duration, call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Error::api(what, source)),
        Err(_) => Err(Error::Deadline {
            what: what.to_owned(),
            after: deadline,
        }),
    }
}

/// Tries a call that may be repeated (reads, and writes with a precondition) up to six times within about ten seconds of waiting.
pub async fn repeat<T, F, Fut>(what: &str, deadline: Duration, mut call: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = kube::Result<T>>,
{
    let mut delays = ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(4))
        .with_max_times(6)
        .build();
    loop {
        let error = match once(what, deadline, call()).await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        // A conflict needs a new read, which is the caller's to make.
        if error.class() != Class::Transient || error.is_conflict() || error.is_expired() {
            return Err(error);
        }
        let Some(delay) = delays.next() else { return Err(error) };
        let delay = error.retry_after().map_or(delay, |asked| asked.max(delay));
        tracing::debug!(what, %error, ?delay, "trying again");
        tokio::time::sleep(delay).await;
    }
}
