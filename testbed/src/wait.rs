//! Waiting for a condition, with a deadline and with what was seen last.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` returns `Ok(Some(value))`, for at most `deadline`, and returns the value.
///
/// `Ok(None)` means "not yet", `Err(seen)` means "not yet, and this is what I saw". When the deadline passes (a look
/// that hangs is given up as well) the error names `what` was waited for and what was seen last.
///
/// ```
/// # async fn example() -> anyhow::Result<()> {
/// use std::time::Duration;
/// let value = testbed::wait_until(Duration::from_secs(5), "the answer", async || {
///     Err::<Option<u8>, _>(format!("thinking"))
/// })
/// .await;
/// # Ok(())
/// # }
/// ```
pub async fn wait_until<T, E, L>(deadline: Duration, what: &str, mut look: L) -> Result<T>
where
    L: AsyncFnMut() -> Result<Option<T>, E>,
    E: Display,
{
    let end = Instant::now() + deadline;
    let mut seen = None;
    loop {
        match tokio::time::timeout_at(end, look()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => seen = Some(format!("{error:#}")),
            Err(_) => {
                let before = seen.as_deref().unwrap_or("nothing");
                seen = Some(format!("{before} (and the last look did not return)"));
            }
        }
        if Instant::now() + PAUSE >= end {
            let seen = seen.as_deref().unwrap_or("nothing to tell");
            bail!(
                "waited {:.1} s for {what}, in vain; last seen: {seen}",
                deadline.as_secs_f32()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_in_vain_tells_what_was_seen_last() {
        let mut looks = 0;
        let error = wait_until::<(), _, _>(Duration::from_millis(300), "the end", async || {
            looks += 1;
            Err(format!("look {looks}"))
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("the end") && error.contains("look "), "{error}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_given_up_at_the_deadline() {
        let error = wait_until::<(), String, _>(Duration::from_millis(200), "a word", async || {
            std::future::pending::<()>().await;
            Ok(None)
        })
        .await
        .unwrap_err()
        .to_string();
        assert!(error.contains("did not return"), "{error}");
    }

    #[tokio::test]
    async fn a_value_ends_the_wait() {
        let value = wait_until::<_, String, _>(Duration::from_secs(5), "three", async || Ok(Some(3)))
            .await
            .unwrap();
        assert_eq!(value, 3);
    }
}
