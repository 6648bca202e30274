use std::collections::BTreeMap;

use super::*;
use crate::repository::backend::fault::{Crash, FakeApi, FaultBackend, Faults};

/// Uid → contents.
type Model = BTreeMap<&'static str, Objects>;

enum Step {
    Capture(&'static str, Objects),
    Delete(&'static str),
    Maintain,
}

/// Bytes that do not compress, so that blobs have several parts.
fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut digest = Digest::of(&[seed]);
    let mut bytes = Vec::with_capacity(len + 32);
    while bytes.len() < len {
        bytes.extend_from_slice(digest.as_bytes());
        digest = Digest::of(digest.as_bytes());
    }
    bytes
}

fn script() -> Vec<Step> {
    let mut a = objects(&[
        ("ConfigMap", "a", "1"),
        ("ConfigMap", "b", "2"),
        ("Deployment", "web", "3"),
    ]);
    a.insert(("Secret".to_owned(), "big".to_owned()), noise(1, 1_900_000));
    let mut b = a.clone();
    b.insert(("ConfigMap".to_owned(), "a".to_owned()), b"4".to_vec());
    let mut c = b.clone();
    c.insert(("Secret".to_owned(), "big".to_owned()), noise(2, 1_000_000));
    let d = objects(&[("ConfigMap", "z", "9")]);
    vec![
        Step::Capture("u1", a),
        Step::Capture("u2", b),
        Step::Delete("u1"),
        Step::Maintain,
        Step::Capture("u3", c),
        Step::Delete("u2"),
        Step::Maintain,
        Step::Capture("u4", d),
        Step::Maintain,
    ]
}

async fn run(step: &Step, repository: &Repository) -> Result<()> {
    match step {
        Step::Capture(uid, state) => capture(repository, uid, "shop", state).await.map(drop),
        Step::Delete(uid) => repository.delete(&[(*uid).to_owned()]).await,
        Step::Maintain => repository.maintain().await.map(drop),
    }
}

fn models() -> Vec<Model> {
    let mut models = vec![Model::new()];
    for step in script() {
        let mut next = models.last().unwrap().clone();
        match step {
            Step::Capture(uid, state) => drop(next.insert(uid, state)),
            Step::Delete(uid) => drop(next.remove(uid)),
            Step::Maintain => {}
        }
        models.push(next);
    }
    models
}

fn tight() -> Options {
    Options {
        checkpoint_records: 3,
        small_packs: 2,
        pack_bytes: 1 << 20,
        ..options()
    }
}

async fn read_all(repository: &Repository) -> Model {
    let mut found = Model::new();
    for uid in ["u1", "u2", "u3", "u4"] {
        if repository.snapshot(uid).is_some() {
            found.insert(uid, contents(repository, uid).await.unwrap());
        }
    }
    found
}

/// A place whose writes can fail: a client with faults, and one without.
trait Place {
    fn attach(&self, faults: Arc<Faults>) -> Arc<dyn Backend>;
    /// Pieces that belong to no blob.
    async fn leftovers(&self) -> usize;
}

struct Files(Arc<dyn Backend>);

impl Place for Files {
    fn attach(&self, faults: Arc<Faults>) -> Arc<dyn Backend> {
        Arc::new(FaultBackend::new(self.0.clone(), faults))
    }

    async fn leftovers(&self) -> usize {
        0
    }
}

struct Secrets(Arc<FakeApi>);

impl Place for Secrets {
    fn attach(&self, faults: Arc<Faults>) -> Arc<dyn Backend> {
        *self.0.faults.lock().unwrap() = faults;
        Arc::new(SecretsBackend::new(self.0.client(), "backstep-system", "main", 1 << 30).unwrap())
    }

    async fn leftovers(&self) -> usize {
        let listed = self.attach(Arc::default()).list("").await.unwrap();
        let expected: u64 = listed.iter().map(|blob| blob.size.div_ceil(900 << 10).max(1)).sum();
        self.0.secrets.lock().unwrap().len() - usize::try_from(expected).unwrap()
    }
}

async fn crash_everywhere<P: Place>(fresh: impl Fn() -> P) {
    let (script, models) = (script(), models());
    let mut crashes = 0;
    for write in 0.. {
        let mut finished = false;
        for after in [false, true] {
            let place = fresh();
            let faults = Faults::crash_at(Crash { write, after });
            let at = format!("write {write}, after it took effect: {after}");
            let mut died = None;
            match Repository::open(place.attach(faults.clone()), tight()).await {
                Ok(repository) => {
                    for (number, step) in script.iter().enumerate() {
                        if let Err(error) = run(step, &repository).await {
                            assert!(faults.is_dead(), "{at}: step {number}: {error}");
                            died = Some(number);
                            break;
                        }
                    }
                }
                Err(error) => panic!("{at}: {error}"),
            }
            let backend = place.attach(Arc::default());
            let repository = Repository::open(backend.clone(), tight())
                .await
                .unwrap_or_else(|e| panic!("{at}: {e}"));
            let found = read_all(&repository).await;
            let step = died.unwrap_or(script.len());
            let allowed = [&models[step], &models[(step + 1).min(script.len())]];
            assert!(allowed.contains(&&found), "{at}: {:?} in step {step}", found.keys());
            let report = repository.verify(|_| {}).await.unwrap();
            assert!(report.is_clean(), "{at}: {:?}", report.findings);
            repository.maintain().await.unwrap();
            assert_eq!(
                packs_on(&backend).await,
                repository.usage().packs,
                "{at}: leftover packs"
            );
            assert_eq!(place.leftovers().await, 0, "{at}: leftover pieces");
            // Whoever comes after repeats the step and goes on.
            for step in &script[step.min(script.len())..] {
                run(step, &repository).await.unwrap_or_else(|e| panic!("{at}: {e}"));
            }
            assert_eq!(&read_all(&repository).await, models.last().unwrap(), "{at}");
            assert!(repository.verify(|_| {}).await.unwrap().is_clean(), "{at}");
            crashes += usize::from(died.is_some());
            finished = died.is_none() && !faults.is_dead();
        }
        if finished {
            break;
        }
    }
    assert!(crashes > 30, "only {crashes} crashes");
}

#[tokio::test]
async fn a_crash_at_any_write_to_objects_leaves_the_old_state_or_the_new_one() {
    crash_everywhere(|| Files(memory())).await;
}

#[tokio::test]
async fn a_crash_at_any_write_of_a_secret_leaves_the_old_state_or_the_new_one() {
    crash_everywhere(|| Secrets(Arc::default())).await;
}
