//! One way to call: a deadline for each try, bounded retries of what can be repeated, and the server's `Retry-After` honoured.

use std::{future::Future, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body, core::response::StatusDetails};

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

/// Waits between tries: up to six, about ten seconds in all.
pub fn delays() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(4))
        .with_max_times(6)
        .build()
}

/// Sends `request` and reads the whole answer; an error answer becomes the API's own `Status`, with the seconds of a `Retry-After`.
pub async fn exchange(client: &Client, request: Request<Body>) -> kube::Result<(StatusCode, Bytes)> {
    exchange_sized(client, request, 0).await
}

/// Like [`exchange`], for an answer of about `expected` bytes.
pub async fn exchange_sized(
    client: &Client,
    request: Request<Body>,
    expected: usize,
) -> kube::Result<(StatusCode, Bytes)> {
    let response = client.send(request).await?;
    let status = response.status();
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    let body = whole(response.into_body(), expected).await?;
    if status.is_success() {
        return Ok((status, body));
    }
    let mut parsed = serde_json::from_slice::<kube::core::Status>(&body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body).chars().take(300).collect::<String>();
        kube::core::Status::failure(&text, "Failed to parse error data").with_code(status.as_u16())
    });
    if let Some(seconds) = retry_after {
        let details = parsed.details.get_or_insert_with(|| StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: 0,
        });
        if details.retry_after_seconds == 0 {
            details.retry_after_seconds = seconds;
        }
    }
    Err(kube::Error::Api(parsed.boxed()))
}

/// A body in one piece. Its frames are copied as they come: kept, each would hold a read buffer of the connection until the last is there.
async fn whole(mut body: Body, expected: usize) -> kube::Result<Bytes> {
    let mut all = BytesMut::with_capacity(expected);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Ok(all.freeze())
}

/// Tries a call that may be repeated (reads, and writes with a precondition) up to six times within about ten seconds of waiting.
pub async fn repeat<T, F, Fut>(what: &str, deadline: Duration, mut call: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = kube::Result<T>>,
{
    let mut delays = delays();
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
