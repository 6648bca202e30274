//! One user, one cluster, one namespace.

use std::{future::Future, path::PathBuf, time::Duration};

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, UserInfo};
use kube::{Api, Client, Resource, api::PostParams};

use super::{Error, Result};
use crate::{
    api::{Snapshot, names, reference::Identity},
    cluster::{self, call},
};

/// How a user reaches a cluster; the standard flags of kubectl.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// Path of a kubeconfig; absent is `$KUBECONFIG`, `~/.kube/config`, then the Pod's own account.
    pub kubeconfig: Option<PathBuf>,
    /// Context; absent is the current one.
    pub context: Option<String>,
    /// Namespace; absent is that of the context.
    pub namespace: Option<String>,
    /// User to act as.
    pub impersonate: Option<String>,
    /// Groups to act as.
    pub impersonate_groups: Vec<String>,
    /// UID to act as.
    pub impersonate_uid: Option<String>,
    /// Deadline of one try of one call; absent is 20 s, 60 s for a page of a list.
    pub request_timeout: Option<Duration>,
    /// Namespace of the operator; absent is `backstep-system`.
    pub operator_namespace: Option<String>,
}

/// A connection with what every operation needs to know.
#[derive(Clone)]
pub struct Session {
    /// The client, with the user's own rights.
    pub client: Client,
    /// Namespace to work in.
    pub namespace: String,
    /// Where the operator runs.
    pub operator_namespace: String,
    request_timeout: Option<Duration>,
}

impl Session {
    /// Reads the kubeconfig; makes no call yet.
    pub async fn connect(options: &ConnectOptions) -> Result<Self> {
        let mut config = cluster::client::config(options.kubeconfig.as_deref(), options.context.as_deref()).await?;
        if let Some(user) = &options.impersonate {
            config.auth_info.impersonate = Some(user.clone());
        }
        if let Some(uid) = &options.impersonate_uid {
            config.auth_info.impersonate_uid = Some(uid.clone());
        }
        if !options.impersonate_groups.is_empty() {
            config.auth_info.impersonate_groups = Some(options.impersonate_groups.clone());
        }
        let namespace = options
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        Ok(Self {
            client: cluster::client::client(config)?,
            namespace,
            operator_namespace: options
                .operator_namespace
                .clone()
                .unwrap_or_else(|| names::DEFAULT_NAMESPACE.to_owned()),
            request_timeout: options.request_timeout,
        })
    }

    /// A session over an existing client.
    pub fn over(client: Client, namespace: impl Into<String>) -> Self {
        Self {
            client,
            namespace: namespace.into(),
            operator_namespace: names::DEFAULT_NAMESPACE.to_owned(),
            request_timeout: None,
        }
    }

    /// The same session in another namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            ..self.clone()
        }
    }

    /// Snapshots of the session's namespace.
    pub fn snapshots(&self) -> Api<Snapshot> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A namespaced API elsewhere.
    pub fn api_in<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Deadline of one try of an ordinary call.
    pub fn deadline(&self) -> Duration {
        self.request_timeout.unwrap_or(call::DEADLINE)
    }

    /// Deadline of one page of a list.
    pub fn page_deadline(&self) -> Duration {
        self.request_timeout.unwrap_or(call::PAGE_DEADLINE)
    }

    /// A call that may be repeated: reads, and writes with a precondition.
    pub async fn repeat<T, F, Fut>(&self, what: &str, call: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = kube::Result<T>>,
    {
        Ok(call::repeat(what, self.deadline(), call).await?)
    }

    /// A write that must happen once: tried again only when the server said that it did not begin (429, 503).
    pub async fn once<T, F, Fut>(&self, what: &str, mut call: F) -> Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = kube::Result<T>>,
    {
        let started = tokio::time::Instant::now();
        let mut delay = Duration::from_millis(100);
        loop {
            let error = match call::once(what, self.deadline(), call()).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let not_begun = matches!(error.code(), Some(429 | 503));
            if !not_begun || started.elapsed() + delay > Duration::from_secs(15) {
                return Err(error.into());
            }
            tokio::time::sleep(
                error
                    .retry_after()
                    .map_or(delay, |asked| asked.min(Duration::from_secs(5))),
            )
            .await;
            delay = (delay * 2).min(Duration::from_secs(2));
        }
    }

    /// Who the API server takes this user for.
    pub async fn whoami(&self) -> Result<UserInfo> {
        let api: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let review = self
            .repeat("ask who you are", || async {
                api.create(&PostParams::default(), &SelfSubjectReview::default()).await
            })
            .await?;
        review
            .status
            .and_then(|s| s.user_info)
            .ok_or_else(|| Error::internal("the API server did not say who you are"))
    }

    /// The user as `requestedBy` holds it. More groups than the field takes: none, as the cluster's own stamping does.
    pub async fn identity(&self) -> Result<Identity> {
        let user = self.whoami().await?;
        Ok(Identity {
            username: user.username.filter(|name| !name.is_empty()),
            uid: user.uid.filter(|uid| !uid.is_empty()),
            groups: user.groups.filter(|groups| !groups.is_empty() && groups.len() <= 256),
        })
    }
}
