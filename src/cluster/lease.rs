//! Leader election: a Lease taken by compare-and-swap on its resourceVersion.
//!
//! A holder that cannot renew within the lease's duration has lost it, by the monotonic clock, whatever the wall clock says.
//! A candidate takes a foreign Lease only after it has itself seen no renewal for the whole duration (clock skew cannot matter).

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};

use super::{call, clock, error::Result};

/// How leadership is held.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who this process is; unique.
    pub identity: String,
    /// Without a renewal for this long the Lease is free.
    pub duration: Duration,
    /// How often the holder renews.
    pub renew_every: Duration,
}

/// A Lease that this process competes for or holds.
pub struct Election {
    api: Api<Lease>,
    options: LeaseOptions,
    /// The foreign renewal last seen, and when this process saw it first.
    seen: Option<(String, Instant)>,
}

impl Election {
    /// Prepares to compete.
    pub fn new(client: Client, options: LeaseOptions) -> Self {
        Self {
            api: Api::namespaced(client, &options.namespace),
            options,
            seen: None,
        }
    }

    /// Goes on with what an earlier look at the same Lease saw: when it runs out is known only by watching it.
    #[must_use]
    pub fn having_seen(mut self, seen: Option<(String, Instant)>) -> Self {
        self.seen = seen;
        self
    }

    /// The foreign renewal last seen, and when first; for [`having_seen`](Self::having_seen).
    pub fn seen(&self) -> Option<(String, Instant)> {
        self.seen.clone()
    }

    /// Waits until this process holds the Lease. Errors are logged and tried again: election never degrades to none.
    pub async fn acquire(&mut self) {
        let mut announced = String::new();
        loop {
            match self.attempt().await {
                Ok(None) => return,
                Ok(Some(holder)) => {
                    if holder != announced {
                        tracing::info!(%holder, "waiting for leadership");
                        announced = holder;
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot take the leader lease; trying again"),
            }
            tokio::time::sleep(self.options.renew_every).await;
        }
    }

    /// Holds the Lease; returns when it is lost.
    pub async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.options.renew_every).await;
            match self.attempt().await {
                Ok(None) => renewed = Instant::now(),
                Ok(Some(holder)) => {
                    tracing::error!(%holder, "another process took the leader lease");
                    return;
                }
                Err(error) => tracing::warn!(%error, "cannot renew the leader lease"),
            }
            // Half a renewal before others may take it, so that two never work at once.
            if renewed.elapsed() + self.options.renew_every / 2 >= self.options.duration {
                tracing::error!("the leader lease could not be renewed in time");
                return;
            }
        }
    }

    /// Gives the Lease up, so that the next process need not wait.
    pub async fn release(&self) {
        let Ok(Some(mut lease)) = self.read().await else { return };
        let Some(spec) = lease.spec.as_mut() else { return };
        if spec.holder_identity.as_deref() != Some(&self.options.identity) {
            return;
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        let params = PostParams::default();
        let what = "release a lease";
        let deadline = Duration::from_secs(3);
        let released = call::repeat(what, deadline, || self.api.replace(&self.options.name, &params, &lease)).await;
        if let Err(error) = released {
            tracing::debug!(%error, name = self.options.name, "the lease was not released; it runs out by itself");
        }
    }

    async fn read(&self) -> Result<Option<Lease>> {
        let what = format!("get lease {}/{}", self.options.namespace, self.options.name);
        call::once(&what, Duration::from_secs(5), self.api.get_opt(&self.options.name)).await
    }

    /// One attempt. `Ok(None)`: this process holds it now. `Ok(Some(holder))`: somebody else does.
    ///
    /// # Errors
    /// The Lease could not be read or written.
    pub async fn attempt(&mut self) -> Result<Option<String>> {
        let what = format!("take lease {}/{}", self.options.namespace, self.options.name);
        let Some(mut lease) = self.read().await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.options.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(None)),
            };
            let created = call::once(
                &what,
                Duration::from_secs(5),
                self.api.create(&PostParams::default(), &lease),
            )
            .await;
            return match created {
                Ok(_) => Ok(None),
                Err(error) if error.is_conflict() => Ok(Some("another process".into())),
                Err(error) => Err(error),
            };
        };
        let held = lease.spec.clone().unwrap_or_default();
        let holder = held.holder_identity.clone().unwrap_or_default();
        if holder != self.options.identity && !holder.is_empty() && !self.has_run_out(&held) {
            return Ok(Some(holder));
        }
        lease.spec = Some(self.spec(Some(&held)));
        match call::once(
            &what,
            Duration::from_secs(5),
            self.api.replace(&self.options.name, &PostParams::default(), &lease),
        )
        .await
        {
            Ok(_) => Ok(None),
            Err(error) if error.is_conflict() => Ok(Some("another process".into())),
            Err(error) => Err(error),
        }
    }

    fn has_run_out(&mut self, held: &LeaseSpec) -> bool {
        let mark = format!("{:?}/{:?}", held.holder_identity, held.renew_time);
        let duration = held
            .lease_duration_seconds
            .and_then(|s| u64::try_from(s).ok())
            .map_or(self.options.duration, Duration::from_secs);
        match &self.seen {
            Some((seen, since)) if *seen == mark => since.elapsed() >= duration,
            _ => {
                self.seen = Some((mark, Instant::now()));
                false
            }
        }
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(clock::now());
        let mine = before.is_some_and(|b| b.holder_identity.as_deref() == Some(&self.options.identity));
        let transitions = before.and_then(|b| b.lease_transitions).unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.options.identity.clone()),
            lease_duration_seconds: i32::try_from(self.options.duration.as_secs()).ok(),
            acquire_time: if mine {
                before.and_then(|b| b.acquire_time.clone())
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(if mine || before.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            ..LeaseSpec::default()
        }
    }
}
