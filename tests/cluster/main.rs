//! Tests against a real API server, through the custom resources and the command line, as several users with real RBAC.
#![allow(clippy::disallowed_methods)]
#![allow(clippy::similar_names, reason = "people and what they do")]
#![allow(clippy::too_many_lines, reason = "a test tells one story")]

mod approval;
mod approval_changes;
mod approval_guard;
mod approval_rows;
mod cel;
mod chart;
mod cli;
mod cli_decide;
mod cli_rollback;
mod court;
mod deleting;
mod doctor;
mod edges;
mod exact;
mod faults;
mod figures;
mod incremental;
mod metadata;
mod plan_reads;
mod plans;
mod proxy;
mod put_back;
mod refusals;
mod reports;
mod rollback_figures;
mod rollbacks;
mod rows;
mod snapshots;
mod support;
mod tampering;
mod team;
mod verify;
mod writes;
