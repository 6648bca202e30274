//! Long work that belongs to the operator process, keyed by the UID it is for: reconcile starts it, asks how it stands, and takes what came of it.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, mpsc};

/// Where one piece of work stands.
#[derive(Clone, Debug)]
pub enum Progress<T> {
    /// Nobody started it, or what came of it was taken.
    Unknown,
    /// Waits for a place, or runs.
    Running,
    /// Ended.
    Ended(Arc<T>),
}

/// Pieces of work of one kind; cheap to clone.
pub struct Tasks<T> {
    entries: Arc<Mutex<HashMap<String, Option<Arc<T>>>>>,
    places: Arc<Semaphore>,
    /// Told the namespace and name of each object whose work ended.
    ended: mpsc::UnboundedSender<(String, String)>,
}

impl<T> Clone for Tasks<T> {
    fn clone(&self) -> Self {
        Self {
            entries: Arc::clone(&self.entries),
            places: Arc::clone(&self.places),
            ended: self.ended.clone(),
        }
    }
}

impl<T: Send + Sync + 'static> Tasks<T> {
    /// At most `at_once` pieces of work run together; `ended` is told what has ended.
    pub fn new(at_once: usize, ended: mpsc::UnboundedSender<(String, String)>) -> Self {
        Self {
            entries: Arc::default(),
            places: Arc::new(Semaphore::new(at_once)),
            ended,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<T>>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `work` for the object; a second call while it runs changes nothing.
    pub fn start(&self, uid: &str, namespace: String, name: String, work: impl Future<Output = T> + Send + 'static) {
        if self.lock().contains_key(uid) {
            return;
        }
        self.lock().insert(uid.to_owned(), None);
        let (tasks, uid) = (self.clone(), uid.to_owned());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _place = tasks.places.acquire().await;
            let outcome = work.await;
            tasks.lock().insert(uid, Some(Arc::new(outcome)));
            // The receiver lives as long as the operator.
            let _ = tasks.ended.send((namespace, name));
        });
    }

    /// Where the work for `uid` stands.
    pub fn progress(&self, uid: &str) -> Progress<T> {
        match self.lock().get(uid) {
            None => Progress::Unknown,
            Some(None) => Progress::Running,
            Some(Some(outcome)) => Progress::Ended(Arc::clone(outcome)),
        }
    }

    /// Lets go of an outcome that was published.
    pub fn forget(&self, uid: &str) {
        let mut entries = self.lock();
        if matches!(entries.get(uid), Some(Some(_))) {
            entries.remove(uid);
        }
    }
}

/// Drops what is large beside the work that comes next, which need not wait for it.
pub fn let_go<T: Send + 'static>(large: T) {
    tokio::task::spawn_blocking(move || drop(large));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_once_and_its_outcome_kept_until_it_is_forgotten() {
        let (sender, mut ended) = mpsc::unbounded_channel();
        let tasks = Tasks::new(1, sender);
        for _ in 0..3 {
            tasks.start("a", "shop".into(), "undo".into(), async { 7 });
        }
        assert_eq!(ended.recv().await, Some(("shop".into(), "undo".into())));
        assert!(matches!(tasks.progress("a"), Progress::Ended(outcome) if *outcome == 7));
        tasks.forget("a");
        assert!(matches!(tasks.progress("a"), Progress::Unknown));
        assert!(ended.try_recv().is_err());
    }
}
