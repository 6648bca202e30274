//! The operator's one repository: opened in the background, and never assumed to be there.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use jiff::SignedDuration;
use tokio::sync::Notify;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};

use crate::{
    api::names,
    cluster::{self, call, clock},
    config::RunOptions,
    repository::{self, Backend, ObjectStoreBackend, Repository, SecretsBackend},
};

/// The repository, or why there is none; cheap to clone.
#[derive(Clone)]
pub struct Store {
    state: Arc<RwLock<State>>,
    /// UIDs of Snapshots that were seen to go, until their contents are let go.
    released: Arc<Mutex<Vec<String>>>,
    maintenance: Arc<Notify>,
    /// UIDs of Snapshots whose contents the last verification found damaged.
    damaged: Arc<RwLock<HashSet<String>>>,
    location: Location,
    options: repository::Options,
    quota: u64,
    client: Client,
    namespace: String,
}

#[derive(Clone)]
enum State {
    Closed { reason: String, corrupt: bool },
    Open(Repository),
}

/// Where contents live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Secrets in the operator's namespace.
    Secrets,
    /// A directory.
    Directory(String),
}

impl std::str::FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "secrets" {
            return Ok(Self::Secrets);
        }
        match text.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => Ok(Self::Directory(path.to_owned())),
            _ => Err(format!("--store `{text}`: write `secrets` or `file:///absolute/path`")),
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secrets => f.write_str("secrets"),
            Self::Directory(path) => write!(f, "file://{path}"),
        }
    }
}

impl Store {
    /// A store that is not open yet.
    pub fn new(client: Client, location: Location, options: &RunOptions) -> Self {
        let repository_options = repository::Options {
            orphan_grace: SignedDuration::try_from(options.orphan_grace).unwrap_or(SignedDuration::MAX),
            ..repository::Options::new(clock::now)
        };
        Self {
            state: Arc::new(RwLock::new(State::Closed {
                reason: "the store is being opened".into(),
                corrupt: false,
            })),
            released: Arc::default(),
            maintenance: Arc::default(),
            damaged: Arc::default(),
            location,
            options: repository_options,
            quota: if options.store_quota == 0 {
                u64::MAX
            } else {
                options.store_quota
            },
            client,
            namespace: options.namespace.clone(),
        }
    }

    /// The repository, or why there is none and whether that is damage.
    pub fn repository(&self) -> Result<Repository, (String, bool)> {
        match self.state.read() {
            Ok(state) => match &*state {
                State::Open(repository) => Ok(repository.clone()),
                State::Closed { reason, corrupt } => Err((reason.clone(), *corrupt)),
            },
            Err(_) => Err(("the store's state is lost; restart the operator".into(), false)),
        }
    }

    /// Notes that the contents of the Snapshot `uid` are no longer wanted.
    pub fn release(&self, uid: String) {
        self.released.lock().unwrap_or_else(PoisonError::into_inner).push(uid);
        self.want_maintenance();
    }

    /// The UIDs noted since the last call.
    pub fn take_released(&self) -> Vec<String> {
        std::mem::take(&mut *self.released.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces what is known to be damaged; returns what was or is.
    pub fn set_damaged(&self, uids: HashSet<String>) -> HashSet<String> {
        match self.damaged.write() {
            Ok(mut damaged) => {
                let concerned = damaged.union(&uids).cloned().collect();
                *damaged = uids;
                concerned
            }
            Err(_) => HashSet::new(),
        }
    }

    /// Whether the last verification found the contents of the Snapshot damaged.
    pub fn is_damaged(&self, uid: &str) -> bool {
        self.damaged.read().is_ok_and(|damaged| damaged.contains(uid))
    }

    /// Asks for maintenance soon.
    pub fn want_maintenance(&self) {
        self.maintenance.notify_one();
    }

    /// Resolves when maintenance was asked for.
    pub async fn maintenance_wanted(&self) {
        self.maintenance.notified().await;
    }

    fn set(&self, state: State) {
        if let Ok(mut current) = self.state.write() {
            *current = state;
        }
    }

    fn backend(&self) -> Result<Arc<dyn Backend>, repository::Error> {
        Ok(match &self.location {
            Location::Secrets => Arc::new(SecretsBackend::new(
                self.client.clone(),
                &self.namespace,
                names::BUILT_IN_STORE,
                self.quota,
            )?),
            Location::Directory(path) => Arc::new(ObjectStoreBackend::local(path)?.with_quota(self.quota)),
        })
    }

    /// Opens the repository, trying again until it works.
    pub async fn open(&self) {
        let mut delay = Duration::from_secs(1);
        loop {
            let opened = match self.backend() {
                Ok(backend) => Repository::open(backend, self.options.clone()).await,
                Err(error) => Err(error),
            };
            match opened {
                Ok(repository) => {
                    tracing::info!(store = %self.location, "the store is open");
                    self.set(State::Open(repository));
                    return;
                }
                Err(error) => {
                    tracing::error!(store = %self.location, %error, "the store cannot be opened; trying again");
                    self.set(State::Closed {
                        reason: error.to_string(),
                        corrupt: error.is_corrupt(),
                    });
                }
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(60));
        }
    }

    /// Publishes where contents live, for administrators' tools.
    pub async fn publish_location(&self) -> cluster::Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut data = BTreeMap::from([
            ("store".into(), self.location.to_string()),
            ("namespace".into(), self.namespace.clone()),
        ]);
        if self.quota != u64::MAX {
            data.insert("quota".into(), self.quota.to_string());
        }
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(names::STORE_CONFIG_MAP.into()),
                labels: Some(BTreeMap::from([(names::PART_OF_LABEL.into(), names::PART_OF.into())])),
                ..ObjectMeta::default()
            },
            data: Some(data),
            ..ConfigMap::default()
        };
        let params = PatchParams::apply(names::FIELD_MANAGER).force();
        let patch = Patch::Apply(&map);
        call::repeat("publish the store's location", call::DEADLINE, || {
            api.patch(names::STORE_CONFIG_MAP, &params, &patch)
        })
        .await
        .map(drop)
    }
}
