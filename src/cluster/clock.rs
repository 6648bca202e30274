//! The only place that reads the clock.
#![allow(clippy::disallowed_methods)]

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The current time.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The current time as Kubernetes writes it: whole seconds.
pub fn now_time() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
