//! Backstep: the undo button of a Kubernetes namespace.
//!
//! Decisions are pure ([`domain`]), effects are thin (everything else). Without features only [`api`] and [`domain`] are built.
#![warn(missing_docs)]

pub mod api;
pub mod domain;

#[cfg(feature = "client")]
#[allow(missing_docs)]
pub mod repository;

#[cfg(feature = "client")]
#[allow(missing_docs)]
pub mod cluster;

#[cfg(feature = "operator")]
#[allow(missing_docs)]
pub mod config;
#[cfg(all(feature = "operator", feature = "cli"))]
pub mod generate;
#[cfg(feature = "operator")]
#[allow(missing_docs)]
pub mod telemetry;

#[cfg(feature = "client")]
#[allow(missing_docs)]
pub mod capture;
#[cfg(feature = "cli")]
#[allow(missing_docs)]
pub mod cli;
#[cfg(feature = "operator")]
#[allow(missing_docs)]
pub mod controller;
#[cfg(feature = "cli")]
#[allow(missing_docs)]
pub mod ops;
