//! Captures that wait, run and have ended, keyed by the Snapshot's UID. Reconcile only asks; the work is done here.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{api::SnapshotSpec, cluster::Class, domain::snapshot::Extras, repository::SnapshotRecord};

/// Waiting Snapshots share a pass: it starts when nobody new has come for this long, …
const QUIET: Duration = Duration::from_millis(40);
/// … or for this long while there is only one: of many that are due together the next one comes sooner, …
const QUIET_ALONE: Duration = Duration::from_millis(10);
/// … or when the first has waited this long, …
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// … with at most this many.
const MOST_IN_A_PASS: usize = 4096;

/// One capture to make.
#[derive(Clone, Debug)]
pub struct CaptureRequest {
    /// UID of the Snapshot.
    pub uid: String,
    /// Name of the Snapshot.
    pub name: String,
    /// Its namespace, which is what is captured.
    pub namespace: String,
    /// What to capture.
    pub spec: Arc<SnapshotSpec>,
    /// A rollback stands still until it is there, and no other one comes with it.
    pub urgent: bool,
}

/// A capture that was committed.
#[derive(Clone, Debug)]
pub struct Captured {
    /// As the repository keeps it.
    pub record: Arc<SnapshotRecord>,
    /// Images, skips and counts.
    pub extras: Extras,
}

/// A capture that was not.
#[derive(Clone, Debug)]
pub struct CaptureFailure {
    /// Whether to try again.
    pub class: Class,
    /// Reason of the condition.
    pub reason: &'static str,
    /// What, why and how to fix.
    pub message: String,
}

/// How a capture ended.
pub type CaptureOutcome = Result<Captured, CaptureFailure>;

/// Where one capture stands.
#[derive(Clone, Debug)]
pub enum Progress {
    /// Nobody asked for it, or its outcome was taken.
    Unknown,
    /// Waits for a pass.
    Waiting,
    /// Is being read.
    Running,
    /// Ended.
    Ended(Box<CaptureOutcome>),
}

enum Entry {
    /// Seen to need a capture, not asked for yet.
    Expected,
    Waiting(CaptureRequest),
    Running,
    Ended(Box<CaptureOutcome>),
}

/// The queue; cheap to clone.
#[derive(Clone)]
pub struct Captures {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    arrived: Arc<Notify>,
    /// Told the namespace and name of each Snapshot whose capture ended, so that it is reconciled.
    ended: mpsc::UnboundedSender<(String, String)>,
}

impl Captures {
    /// An empty queue, and the channel of what has ended.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<(String, String)>) {
        let (ended, receiver) = mpsc::unbounded_channel();
        (
            Self {
                entries: Arc::default(),
                arrived: Arc::default(),
                ended,
            },
            receiver,
        )
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a capture will be asked for: a pass waits for it, so that what is due together is read together.
    pub fn expect(&self, uid: &str) {
        self.lock().entry(uid.to_owned()).or_insert(Entry::Expected);
    }

    /// Notes that a capture that was expected is not asked for after all.
    pub fn expect_no_more(&self, uid: &str) {
        let mut entries = self.lock();
        if matches!(entries.get(uid), Some(Entry::Expected)) {
            entries.remove(uid);
            drop(entries);
            self.arrived.notify_one();
        }
    }

    /// Asks for a capture; a second call while it waits or runs changes nothing.
    pub fn submit(&self, request: CaptureRequest) {
        let mut entries = self.lock();
        if matches!(entries.get(&request.uid), None | Some(Entry::Expected)) {
            entries.insert(request.uid.clone(), Entry::Waiting(request));
        }
        drop(entries);
        self.arrived.notify_one();
    }

    /// Where the capture of `uid` stands.
    pub fn progress(&self, uid: &str) -> Progress {
        match self.lock().get(uid) {
            None | Some(Entry::Expected) => Progress::Unknown,
            Some(Entry::Waiting(_)) => Progress::Waiting,
            Some(Entry::Running) => Progress::Running,
            Some(Entry::Ended(outcome)) => Progress::Ended(outcome.clone()),
        }
    }

    /// Lets go of an outcome that was published, or of a request whose Snapshot is gone.
    pub fn forget(&self, uid: &str) {
        let mut entries = self.lock();
        if !matches!(entries.get(uid), Some(Entry::Running)) {
            entries.remove(uid);
        }
    }

    /// Has the Snapshot looked at again.
    pub fn look_again(&self, namespace: &str, name: &str) {
        // The receiver lives as long as the operator.
        let _ = self.ended.send((namespace.to_owned(), name.to_owned()));
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.lock().values().filter(|e| matches!(e, Entry::Waiting(_))).count()
    }

    /// Makes passes until `stop`; the pass under way is ended first.
    pub async fn run<F, Fut>(self, stop: CancellationToken, pass: F)
    where
        F: Fn(Vec<CaptureRequest>) -> Fut,
        Fut: Future<Output = Vec<CaptureOutcome>>,
    {
        loop {
            tokio::select! {
                () = self.arrived.notified() => {}
                () = stop.cancelled() => return,
            }
            self.settle().await;
            while !stop.is_cancelled() {
                let batch = self.take();
                if batch.is_empty() {
                    break;
                }
                let keys: Vec<_> = batch
                    .iter()
                    .map(|r| (r.uid.clone(), r.namespace.clone(), r.name.clone()))
                    .collect();
                let outcomes = pass(batch).await;
                let mut entries = self.lock();
                for ((uid, namespace, name), outcome) in keys.into_iter().zip(outcomes) {
                    entries.insert(uid, Entry::Ended(Box::new(outcome)));
                    // The receiver lives as long as the operator.
                    let _ = self.ended.send((namespace, name));
                }
            }
        }
    }

    /// Waits until nobody new comes and nobody is expected.
    async fn settle(&self) {
        let began = Instant::now();
        if self.is_urgent() {
            return;
        }
        while began.elapsed() < LONGEST_WAIT && self.waiting() < MOST_IN_A_PASS {
            let quiet = if self.waiting() > 1 { QUIET } else { QUIET_ALONE };
            let quiet = tokio::time::timeout(quiet, self.arrived.notified()).await.is_err();
            if quiet && !self.lock().values().any(|entry| matches!(entry, Entry::Expected)) {
                return;
            }
        }
    }

    /// Whether all that wait are urgent, and nobody else is expected.
    fn is_urgent(&self) -> bool {
        self.lock().values().all(|entry| match entry {
            Entry::Expected => false,
            Entry::Waiting(request) => request.urgent,
            Entry::Running | Entry::Ended(_) => true,
        })
    }

    fn take(&self) -> Vec<CaptureRequest> {
        let mut entries = self.lock();
        let mut batch = Vec::new();
        for entry in entries.values_mut() {
            if batch.len() == MOST_IN_A_PASS {
                break;
            }
            if let Entry::Waiting(request) = entry {
                batch.push(request.clone());
                *entry = Entry::Running;
            }
        }
        batch.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uid: &str) -> CaptureRequest {
        CaptureRequest {
            uid: uid.into(),
            name: uid.into(),
            namespace: "shop".into(),
            spec: Arc::default(),
            urgent: false,
        }
    }

    #[test]
    fn what_a_rollback_waits_for_is_read_at_once_unless_others_are_due_with_it() {
        let (captures, _ended) = Captures::new();
        let urgent = |uid: &str| CaptureRequest {
            urgent: true,
            ..request(uid)
        };
        captures.submit(urgent("safety"));
        assert!(captures.is_urgent());
        captures.expect("scheduled");
        assert!(!captures.is_urgent());
        captures.submit(request("scheduled"));
        assert!(!captures.is_urgent());
    }

    #[tokio::test]
    async fn a_pass_waits_for_what_is_expected_and_not_for_what_is_no_more() {
        let (captures, _ended) = Captures::new();
        captures.expect("late");
        captures.expect("never");
        captures.submit(request("early"));
        let passes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&passes);
        let runner = tokio::spawn(captures.clone().run(CancellationToken::new(), move |batch| {
            seen.lock().unwrap().push(batch.len());
            async move {
                batch
                    .iter()
                    .map(|_| {
                        Err(CaptureFailure {
                            class: Class::Invalid,
                            reason: "Test",
                            message: String::new(),
                        })
                    })
                    .collect()
            }
        }));
        tokio::time::timeout(QUIET * 3, std::future::pending::<()>())
            .await
            .unwrap_err();
        assert!(passes.lock().unwrap().is_empty(), "the pass did not wait");
        captures.submit(request("late"));
        captures.expect_no_more("never");
        tokio::time::timeout(Duration::from_secs(5), async {
            while passes.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        assert_eq!(*passes.lock().unwrap(), [2]);
        runner.abort();
    }

    #[tokio::test]
    async fn requests_that_wait_together_share_one_pass() {
        let (captures, mut ended) = Captures::new();
        for uid in ["a", "b", "c"] {
            captures.submit(request(uid));
            captures.submit(request(uid));
        }
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sizes);
        let runner = tokio::spawn(captures.clone().run(CancellationToken::new(), move |batch| {
            seen.lock().unwrap().push(batch.len());
            async move {
                batch
                    .iter()
                    .map(|_| {
                        Err(CaptureFailure {
                            class: Class::Invalid,
                            reason: "Test",
                            message: String::new(),
                        })
                    })
                    .collect()
            }
        }));
        for _ in 0..3 {
            tokio::time::timeout(Duration::from_secs(5), ended.recv())
                .await
                .unwrap()
                .unwrap();
        }
        assert_eq!(*sizes.lock().unwrap(), [3]);
        assert!(matches!(captures.progress("a"), Progress::Ended(_)));
        captures.forget("a");
        assert!(matches!(captures.progress("a"), Progress::Unknown));
        runner.abort();
    }
}
