//! How long the operator's calls would take one after the other, as the API server's audit log tells.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;
use testbed::Access;

use super::operator;

/// A place in the audit log.
pub struct Position(usize);

fn log(access: &Access) -> PathBuf {
    access.directory().join("audit.jsonl")
}

fn read(access: &Access) -> Result<String> {
    let path = log(access);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

impl Position {
    /// Its end.
    ///
    /// # Errors
    /// There is none.
    pub fn now(access: &Access) -> Result<Self> {
        Ok(Self(read(access)?.len()))
    }

    /// The time that the API server took for the operator's calls from here on, watches left out, added up.
    ///
    /// # Errors
    /// A line that is no audit event; or no call of the operator.
    pub fn since(&self, access: &Access) -> Result<Duration> {
        let text = read(access)?;
        let operator = format!("system:serviceaccount:{}:{}", operator::NAMESPACE, operator::NAME);
        let mut sum = Duration::ZERO;
        for line in text.get(self.0..).unwrap_or_default().lines() {
            // The last line may still be under way.
            let Ok(event) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if event["user"]["username"] != operator.as_str() || event["verb"] == "watch" {
                continue;
            }
            let time = |field: &str| -> Result<jiff::Timestamp> {
                let text = event[field]
                    .as_str()
                    .with_context(|| format!("an audit event without {field}"))?;
                Ok(text.parse()?)
            };
            let took = time("stageTimestamp")?.duration_since(time("requestReceivedTimestamp")?);
            sum += Duration::try_from(took).unwrap_or_default();
        }
        anyhow::ensure!(!sum.is_zero(), "the audit log holds no call of the operator");
        Ok(sum)
    }
}
