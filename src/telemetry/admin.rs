//! `/livez`, `/readyz` and `/metrics`.

use std::{
    net::SocketAddr,
    sync::{Arc, RwLock},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};

use super::metrics::Telemetry;

/// What `/readyz` answers: the list of what is still missing.
#[derive(Clone, Default)]
pub struct Readiness(Arc<RwLock<Vec<String>>>);

impl Readiness {
    /// Not ready until [`Readiness::set`] is called with nothing missing.
    pub fn new() -> Self {
        let readiness = Self::default();
        readiness.set(vec!["starting".into()]);
        readiness
    }

    /// Replaces what is missing.
    pub fn set(&self, missing: Vec<String>) {
        if let Ok(mut guard) = self.0.write() {
            *guard = missing;
        }
    }

    /// What is missing; empty is ready.
    pub fn missing(&self) -> Vec<String> {
        self.0
            .read()
            .map_or_else(|_| vec!["state is poisoned".into()], |guard| guard.clone())
    }
}

/// What the admin server shows.
#[derive(Clone)]
pub struct AdminState {
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// Readiness.
    pub readiness: Readiness,
}

/// Listens on `address` and serves until `shutdown` resolves; returns the bound address and the server.
///
/// # Errors
/// The address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    state: AdminState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .map_err(|e| anyhow::anyhow!("cannot listen on --admin-address {address}: {e}"))?;
    let bound = listener.local_addr()?;
    let app = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state);
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(shutdown).await {
            tracing::error!(%error, "the admin server stopped");
        }
    });
    Ok((bound, task))
}

async fn readyz(State(state): State<AdminState>) -> (StatusCode, String) {
    let missing = state.readiness.missing();
    if missing.is_empty() {
        (StatusCode::OK, "ok\n".into())
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {}\n", missing.join("; ")),
        )
    }
}

async fn metrics(State(state): State<AdminState>) -> ([(&'static str, &'static str); 1], String) {
    (
        [(
            "content-type",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        state.telemetry.encode(),
    )
}
