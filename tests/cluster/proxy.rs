//! Stands between the operator and the API server, and makes calls go wrong on purpose.

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use kube::Client;
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, UnboundedReceiver},
    task::JoinHandle,
};

use crate::support::{Installed, OPERATOR_NAMESPACE};

/// A call of the operator.
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub path: String,
}

impl Call {
    /// Whether it would change something.
    pub fn writes(&self) -> bool {
        ![Method::GET, Method::HEAD].contains(&self.method)
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It never arrives; this is answered.
    Before(u16),
    /// It is carried out; this is answered.
    After(u16),
    /// It never arrives, and the caller is to be ended.
    StopBefore,
    /// It is carried out, the caller never hears of it, and is to be ended.
    StopAfter,
}

/// Answers in the place of the API server.
pub struct Proxy {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Proxy {
    /// Begins to answer; `decide` says what goes wrong. The receiver is told when the caller is to be ended.
    pub async fn start(
        installed: &Installed,
        decide: impl Fn(&Call) -> Fault + Send + Sync + 'static,
    ) -> Result<(Self, UnboundedReceiver<()>)> {
        let client = installed
            .cluster
            .service_account_client(OPERATOR_NAMESPACE, "backstep")
            .await?;
        let (stop, stops) = mpsc::unbounded_channel();
        let decide = Arc::new(decide);
        let router = Router::new().fallback(move |request: Request| {
            let (client, stop, decide) = (client.clone(), stop.clone(), Arc::clone(&decide));
            async move {
                let call = Call {
                    method: request.method().clone(),
                    path: request.uri().to_string(),
                };
                let fault = decide(&call);
                match fault {
                    Fault::Before(code) => return broken(code),
                    Fault::StopBefore => {
                        let _ = stop.send(());
                        std::future::pending::<()>().await;
                    }
                    Fault::None | Fault::After(_) | Fault::StopAfter => {}
                }
                let answer = forward(&client, request).await;
                match fault {
                    Fault::After(code) => broken(code),
                    Fault::StopAfter => {
                        let _ = stop.send(());
                        std::future::pending().await
                    }
                    Fault::None | Fault::Before(_) | Fault::StopBefore => answer,
                }
            }
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok((Self { address, server }, stops))
    }

    /// A kubeconfig that leads here; the proxy brings the operator's own token.
    pub fn kubeconfig(&self, installed: &Installed) -> Result<PathBuf> {
        let content = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "operator", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "operator", "namespace": OPERATOR_NAMESPACE}}],
        });
        let path = installed.file("proxy.kubeconfig");
        std::fs::write(&path, content.to_string()).context("write the proxy's kubeconfig")?;
        Ok(path)
    }
}

async fn forward(client: &Client, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    head.headers.remove(header::HOST);
    let body = match axum::body::to_bytes(body, 16 << 20).await {
        Ok(bytes) => kube::client::Body::from(bytes),
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    match client.send(axum::http::Request::from_parts(head, body)).await {
        Ok(answer) => answer.map(Body::new).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// As the API server words an error of its own.
fn broken(code: u16) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reason = match code {
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "InternalError",
    };
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": "injected by the test",
    });
    let mut answer = (status, body.to_string()).into_response();
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/json"),
    );
    if code == 429 {
        headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    answer
}
