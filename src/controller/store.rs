//! The operator's one repository: opened in the background, and never assumed to be there.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
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
    released: Arc<Mutex<Released>>,
    maintenance: Arc<Notify>,
    damage: Arc<RwLock<Damage>>,
    location: Location,
    options: repository::Options,
    quota: u64,
    client: Client,
    namespace: String,
}

/// Snapshots that were seen to go, until their contents are let go: when each was made, by UID.
pub type Released = HashMap<String, Timestamp>;

/// What is known of damage.
#[derive(Default)]
struct Damage {
    /// The store was read back since this process began.
    verified: bool,
    /// UIDs of Snapshots whose contents are damaged, by the last verification, here or in a process before.
    snapshots: HashSet<String>,
}

/// What the last verification said of a Snapshot's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet: this process has not verified. What the Snapshot's status says still counts.
    Unknown,
    /// They match their digests.
    Sound,
    /// They do not.
    Damaged,
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
            damage: Arc::default(),
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

    /// Notes that the Snapshot `uid`, made at `created`, was seen to go, and its contents are no longer wanted.
    pub fn release(&self, uid: String, created: Timestamp) {
        self.lock_released().insert(uid, created);
        self.want_maintenance();
    }

    /// What was noted since the last call.
    pub fn take_released(&self) -> Released {
        std::mem::take(&mut *self.lock_released())
    }

    /// Notes again what could not be let go.
    pub fn put_released_back(&self, released: Released) {
        self.lock_released().extend(released);
    }

    fn lock_released(&self) -> MutexGuard<'_, Released> {
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what is known to be damaged after a verification; returns what was or is.
    pub fn set_damaged(&self, uids: HashSet<String>) -> HashSet<String> {
        match self.damage.write() {
            Ok(mut damage) => {
                damage.verified = true;
                let concerned = damage.snapshots.union(&uids).cloned().collect();
                damage.snapshots = uids;
                concerned
            }
            Err(_) => HashSet::new(),
        }
    }

    /// Takes over what a process before this one found; the store is then verified soon. Returns whether it was new.
    pub fn remember_damaged(&self, uid: &str) -> bool {
        let new = self
            .damage
            .write()
            .is_ok_and(|mut damage| !damage.verified && damage.snapshots.insert(uid.to_owned()));
        if new {
            self.want_maintenance();
        }
        new
    }

    /// Whether damage is known only from a process before this one.
    pub fn wants_verification(&self) -> bool {
        self.damage
            .read()
            .is_ok_and(|damage| !damage.verified && !damage.snapshots.is_empty())
    }

    /// What the last verification said of the contents of the Snapshot.
    pub fn verdict(&self, uid: &str) -> Verdict {
        match self.damage.read() {
            Ok(damage) if damage.snapshots.contains(uid) => Verdict::Damaged,
            Ok(damage) if damage.verified => Verdict::Sound,
            _ => Verdict::Unknown,
        }
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
