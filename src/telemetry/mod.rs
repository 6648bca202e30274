//! Logs, metrics and the admin server. Never uses object names as metric labels.

pub mod admin;
pub mod logs;
pub mod metrics;
